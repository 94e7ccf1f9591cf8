"""The base class of the projects whose layers are known."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from ..plain_tensors import Declaration
from .folded_target import FoldedTarget


class Preset(ABC):
    """A project for whose modules :func:`lightning_scaler.fold` needs no names of layers."""

    @abstractmethod
    def recognises(self, source: Any) -> bool:
        """Whether a module, or the content of a checkpoint, is of this project."""

    @abstractmethod
    def module_class(self, checkpoint: Any) -> Any:
        """The class of the module in a checkpoint."""

    def batch(self, path: Any) -> Any:
        """A batch for the module in a checkpoint; ``None`` if it does not say where data are."""
        return None

    def predict(self, module: Any, batch: Any) -> Any:
        """The output of a module for a batch, which has the predictions: that of ``forward``."""
        return module(batch)

    @abstractmethod
    def write(
        self, module: Any, targets: Mapping[str, FoldedTarget], declaration: Declaration
    ) -> None:
        """Write scales and shifts into the layers of a module, and into its hyperparameters.

        Raises:
            ValueError: where they have no place.
        """
