"""Shows the shared configs of this package to every Hydra application of the environment.

Installed as ``hydra_plugins.lightning_scaler_searchpath``, where Hydra looks for plugins. Every
Hydra application pays for what is imported here: nothing but Hydra and a path.
"""

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin

from lightning_scaler.commands.config_files import configs_folder


class LightningScalerSearchPath(SearchPathPlugin):
    """Appends ``configs/``, so that ``callbacks: target_scaler`` is found in any application."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Append the folder by its path; ``pkg://`` would import torch at every start."""
        search_path.append("lightning_scaler", f"file://{configs_folder()}")
