"""Running a command: how it starts, what it builds, and errors in one line, without a traceback."""

import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FAILED = 2  # as argparse, and as diff, whose 1 says that files differ

# One of these is in the folder that a sharded checkpoint is.
SHARDED = ("meta.pt", ".metadata", "checkpoint")


@contextmanager
def one_line_errors(command: str) -> Iterator[None]:
    """Print what is wrong with a file on one line, and exit with status 2.

    Warnings are printed on one line too.
    """
    shown = warnings.formatwarning
    warnings.formatwarning = lambda message, *_args, **_options: f"warning: {message}\n"
    try:
        yield
    except (OSError, TypeError, ValueError) as error:
        print(f"{command}: {_in_one_line(error)}", file=sys.stderr)
        sys.exit(FAILED)
    finally:
        warnings.formatwarning = shown


@contextmanager
def hydra_errors(command: str) -> Iterator[None]:
    """Raise what is wrong with a file or a setting as an error that Hydra prints on one line."""
    from hydra.errors import CompactHydraException, HydraException

    try:
        yield
    except HydraException:
        raise
    except (OSError, TypeError, ValueError) as error:
        raise CompactHydraException(f"{command}: {_in_one_line(error)}") from error


def prepare_run(config: Any) -> None:
    """Set the threads and the seed of a configuration, and hide what users cannot change."""
    import torch
    from lightning.pytorch import seed_everything

    # Raised by Lightning's use of torch.
    warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    torch.set_num_threads(config.get("threads") or torch.get_num_threads())
    if config.get("seed") is not None:
        seed_everything(config.seed, workers=True, verbose=False)


def check_ckpt_path(path: Any) -> None:
    """Check that ``ckpt_path`` names a checkpoint.

    URLs, models of a registry and sharded checkpoints are left to Lightning.

    Raises:
        OSError: if there is no such file.
        ValueError: for a file of something else.
    """
    from ..tensors import check_checkpoint

    text, local = str(path), Path(os.path.expanduser(str(path)))  # as Lightning does
    if "://" in text or re.match("registry(:|$)", text, re.IGNORECASE):
        return
    if any((local / name).exists() for name in SHARDED):
        return
    if local.is_dir():
        raise IsADirectoryError(
            f"ckpt_path: expected a file, got the folder '{path}'; name the checkpoint in it, such "
            f"as {local / 'last.ckpt'}"
        )
    if not local.is_file():
        raise FileNotFoundError(f"ckpt_path: there is no file '{path}'")
    check_checkpoint(local)


def build(config: Any, **arguments: Any) -> Any:
    """Instantiate a part of a configuration; say which package is missing, if one is."""
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    try:
        return instantiate(config, **arguments)
    except InstantiationException as error:
        # Hydra's message names the class alone; what to install is in the chained exception.
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, ModuleNotFoundError):
            cause = cause.__cause__
        if cause is None:
            raise
        raise InstantiationException(str(cause)) from error


def _in_one_line(error: Exception) -> str:
    """The message of an error, that of an ``OSError`` as those about damaged files."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"file '{error.filename}': {error.strerror}"
    return str(error)
