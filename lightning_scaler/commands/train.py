"""The command ``lightning-scaler-train``: train, test or predict, all set by Hydra configs."""

import hydra
from omegaconf import DictConfig

from .config_files import configs_folder


@hydra.main(
    version_base="1.3",
    config_path=str(configs_folder() / "lightning_scaler"),
    config_name="train",
)
def main(config: DictConfig) -> None:
    """Compose the configuration, then run its task; see ``configs/lightning_scaler/train.yaml``."""
    # Imports Lightning, which takes seconds that help and typing errors need not wait for.
    from .run import run

    run(config)


if __name__ == "__main__":
    main()
