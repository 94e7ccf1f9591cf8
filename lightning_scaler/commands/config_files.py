"""The folders of the Hydra configs: those for every application, and those of the commands.

Hydra lists every folder on its search path in the ``--help`` of every application in the
environment, so the two are apart. A module of its own: the wheel has ``search_path.py`` under
``hydra_plugins`` alone.
"""

from pathlib import Path


def command_configs() -> Path:
    """The configs of the commands ``lightning-scaler-…``."""
    return Path(__file__).with_name("configs")


def configs_folder() -> Path:
    """Find the shared configs: in the installed package, or beside the package in a checkout.

    Raises:
        FileNotFoundError: if they are in neither place.
    """
    package = Path(__file__).parents[1]
    folders = (package / "configs", package.parent / "configs")
    for folder in folders:
        if (folder / "callbacks" / "target_scaler.yaml").is_file():
            return folder
    raise FileNotFoundError(
        f"expected the configs of lightning_scaler in one of {[str(f) for f in folders]}, found "
        "them in neither; reinstall the package"
    )
