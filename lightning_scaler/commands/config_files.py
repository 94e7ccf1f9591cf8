"""The folder of the Hydra configs.

A module of its own: the wheel has ``search_path.py`` under ``hydra_plugins`` alone, and both it and
the command need the folder.
"""

from pathlib import Path


def configs_folder() -> Path:
    """Find the configs: inside the installed package, or beside the package in a checkout.

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
