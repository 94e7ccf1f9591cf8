"""The command ``lightning-scaler-train``: train, test or predict, configured with Hydra."""

import io
import sys

import hydra
from omegaconf import DictConfig

from .config_files import command_configs

# Hydra refuses null for a group of configs.
LEFT_OUT = {
    "logger=null": ["~logger"],
    "callbacks=null": ["callbacks=[]", "callbacks.target_scaler=null"],
}


def main() -> None:
    """Run the command with the arguments in ``sys.argv``; ``group=null`` leaves a group out."""
    arguments = [LEFT_OUT.get(argument, [argument]) for argument in sys.argv[1:]]
    sys.argv[1:] = [word for words in arguments for word in words]
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # progress bars have characters of their own
            stream.reconfigure(errors="replace")
    _run()


@hydra.main(
    version_base="1.3",
    config_path=str(command_configs()),
    config_name="train",
)
def _run(config: DictConfig) -> None:
    """Run the task of the composed configuration; see ``configs/train.yaml``."""
    # Importing Lightning takes seconds, which --help and misspelled overrides need not wait for.
    from .run import run

    run(config)


if __name__ == "__main__":
    main()
