"""Shows the shared configs of this package to every Hydra application of the environment.

Installed as ``hydra_plugins.lightning_scaler_searchpath``, where Hydra looks for plugins, and
imports Hydra alone: every Hydra application pays for what stands here.
"""

from importlib.util import find_spec
from pathlib import Path

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin


def configs_folder() -> Path | None:
    """The folder of configs: beside the package in a checkout, inside it once installed."""
    spec = find_spec("lightning_scaler")
    if spec is None or spec.origin is None:
        return None
    package = Path(spec.origin).parent
    folders = (package / "configs", package.parent / "configs")
    return next((f for f in folders if (f / "callbacks" / "target_scaler.yaml").is_file()), None)


class LightningScalerSearchPath(SearchPathPlugin):
    """Appends ``configs/``, so that ``callbacks: target_scaler`` is found in any application."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Append the folder by its path; ``pkg://`` would import torch at every start."""
        folder = configs_folder()
        if folder is not None:
            search_path.append("lightning_scaler", f"file://{folder}")
