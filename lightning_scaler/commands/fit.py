"""The command ``lightning-scaler-fit``: statistics of the training data, configured with Hydra."""

import re
import sys

import hydra
from hydra.errors import CompactHydraException, HydraException
from omegaconf import DictConfig

from .config_files import command_configs
from .one_line_errors import in_one_line

# Settings of this command, which the configs of another application do not have.
OWN_SETTING = re.compile(r"(out|shard|shards)=")


def main() -> None:
    """Run the command with the arguments in ``sys.argv``."""
    sys.argv[1:] = [f"++{word}" if OWN_SETTING.match(word) else word for word in sys.argv[1:]]
    _run()


@hydra.main(version_base="1.3", config_path=str(command_configs()), config_name="fit")
def _run(config: DictConfig) -> None:
    """Collect the statistics that a composed configuration describes; see ``configs/fit.yaml``."""
    # Importing Lightning takes seconds, which --help and misspelled overrides need not wait for.
    from .run_fit import run_fit

    try:
        run_fit(config)
    except HydraException:
        raise
    except (OSError, TypeError, ValueError) as error:
        # Hydra prints this one without a traceback.
        raise CompactHydraException(f"lightning-scaler-fit: {in_one_line(error)}") from error


if __name__ == "__main__":
    main()
