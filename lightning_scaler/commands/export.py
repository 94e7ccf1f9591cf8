"""The command ``lightning-scaler-export``: a trained model as one file for simulation engines."""

import warnings

import hydra
from hydra.errors import CompactHydraException, HydraException
from omegaconf import DictConfig

from .config_files import command_configs
from .one_line_errors import in_one_line


@hydra.main(version_base="1.3", config_path=str(command_configs()), config_name="export")
def main(config: DictConfig) -> None:
    """Write the model of a checkpoint; see ``configs/export.yaml``."""
    # Raised by the use of torch in metatensor and e3nn; users cannot do anything about it.
    warnings.filterwarnings("ignore", r"`torch\.jit\.")
    # Importing Lightning takes seconds, which --help and misspelled overrides need not wait for.
    from .model_file import write_model

    try:
        write_model(config)
    except HydraException:
        raise
    except (OSError, TypeError, ValueError) as error:
        # Hydra prints this one without a traceback.
        raise CompactHydraException(f"lightning-scaler-export: {in_one_line(error)}") from error


if __name__ == "__main__":
    main()
