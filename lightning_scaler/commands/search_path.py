"""The plugin that makes the shared configs visible to every Hydra application.

Installed as ``hydra_plugins.lightning_scaler_searchpath``, where Hydra looks for plugins. It runs
at the start of every Hydra application in the environment, so it imports only Hydra and the
function that finds the configs.
"""

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin

from lightning_scaler.commands.config_files import configs_folder


class LightningScalerSearchPath(SearchPathPlugin):
    """Append ``configs/``, so that ``callbacks: [default, target_scaler]`` works everywhere."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Append the folder as a ``file://`` path; ``pkg://`` would import torch at every start."""
        search_path.append("lightning_scaler", f"file://{configs_folder()}")
