"""The projects whose layers are known."""

from collections.abc import Mapping
from typing import Any, Protocol

from ..plain_tensors import Declaration
from .folded_target import FoldedTarget
from .nequip import NequIP
from .schnetpack import SchNetPack
from .torchmdnet import TorchMDNet


class Preset(Protocol):
    """What :func:`lightning_scaler.fold` knows of a project."""

    def recognises(self, source: Any) -> bool:
        """Whether a module, or the content of a checkpoint, is of this project."""

    def module_class(self, checkpoint: Any) -> Any:
        """The class of the module in a checkpoint."""

    def batch(self, path: Any) -> Any:
        """A batch for the module in a checkpoint; ``None`` if there is none."""

    def predict(self, module: Any, batch: Any) -> Any:
        """The output of a module for a batch, which has the predictions."""

    def write(
        self, module: Any, targets: Mapping[str, FoldedTarget], declaration: Declaration
    ) -> None:
        """Write scales and shifts into the layers of a module, and into its hyperparameters.

        Raises:
            ValueError: where they have no place.
        """


def find_preset(source: Any) -> Preset | None:
    """The preset for a module or the content of a checkpoint; ``None`` if there is none."""
    presets: list[Preset] = [NequIP(), SchNetPack(), TorchMDNet()]
    return next((preset for preset in presets if preset.recognises(source)), None)
