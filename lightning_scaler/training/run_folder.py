"""The folder of a run."""

import sys
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer


def run_folder(trainer: Trainer) -> Path | None:
    """The folder in which a run keeps what people read; ``None`` if it has none.

    Under Hydra, this is the run folder of the job; otherwise that of the first logger that writes
    files for people, such as ``CSVLogger`` and ``TensorBoardLogger``. A Trainer without a logger
    has none: its working directory belongs to the user.

    Args:
        trainer: trainer of the run, on rank 0.
    """
    folders = [getattr(logger, "log_dir", None) for logger in trainer.loggers]
    hydra: Any = sys.modules.get("hydra.core.hydra_config")
    if hydra is not None and hydra.HydraConfig.initialized():
        # Missing where a notebook composes a config.
        folders.insert(0, hydra.HydraConfig.get().runtime.get("output_dir"))
    folder = next((folder for folder in folders if isinstance(folder, str)), None)
    # Buckets and the like.
    return None if folder is None or "://" in folder else Path(folder)
