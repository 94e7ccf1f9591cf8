"""The command ``lightning-scaler-train``: train, test or predict, configured with Hydra."""

import hydra
from omegaconf import DictConfig

from .config_files import configs_folder


@hydra.main(
    version_base="1.3",
    config_path=str(configs_folder() / "lightning_scaler"),
    config_name="train",
)
def main(config: DictConfig) -> None:
    """Run the task of the composed configuration; see ``configs/lightning_scaler/train.yaml``."""
    # Importing Lightning takes seconds, which --help and misspelled overrides need not wait for.
    from .run import run

    run(config)


if __name__ == "__main__":
    main()
