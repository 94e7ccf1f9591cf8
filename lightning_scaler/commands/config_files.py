"""Where the Hydra configs of this package are."""

from pathlib import Path


def configs_folder() -> Path:
    """The folder of configs: inside the package once installed, beside it in a checkout.

    Raises:
        FileNotFoundError: where neither has it.
    """
    package = Path(__file__).parents[1]
    folders = (package / "configs", package.parent / "configs")
    for folder in folders:
        if (folder / "callbacks" / "target_scaler.yaml").is_file():
            return folder
    raise FileNotFoundError(
        f"expected the configs of lightning_scaler in one of {[str(f) for f in folders]}, found "
        "neither; install the package again"
    )
