"""A module in evaluation mode, for predictions outside the loops of a Trainer."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def evaluation_mode(module: torch.nn.Module) -> Iterator[None]:
    """Set a module and all its parts to evaluation mode, without gradients; undone afterwards."""
    training = {part: part.training for part in module.modules()}
    try:
        module.eval()
        with torch.no_grad():
            yield
    finally:
        for part, flag in training.items():
            part.training = flag
