"""The folder of the Hydra configs, and the plugin that shows it to every Hydra application.

A copy is installed as ``hydra_plugins.lightning_scaler_searchpath``, where Hydra looks for plugins.
It runs at the start of every Hydra application in the environment, so it imports only Hydra.
"""

from importlib.util import find_spec
from pathlib import Path

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin


def configs_folder() -> Path:
    """Find the configs: inside the installed package, or beside the package in a checkout.

    Raises:
        FileNotFoundError: if they are in neither place.
    """
    spec = find_spec("lightning_scaler")
    package = Path((spec and spec.origin) or __file__).parent
    folders = (package / "configs", package.parent / "configs")
    for folder in folders:
        if (folder / "callbacks" / "target_scaler.yaml").is_file():
            return folder
    raise FileNotFoundError(
        f"expected the configs of lightning_scaler in one of {[str(f) for f in folders]}, found "
        "them in neither; reinstall the package"
    )


class LightningScalerSearchPath(SearchPathPlugin):
    """Append ``configs/``, so that any application finds ``callbacks: target_scaler``."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Append the folder as a ``file://`` path; ``pkg://`` would import torch at every start."""
        search_path.append("lightning_scaler", f"file://{configs_folder()}")
