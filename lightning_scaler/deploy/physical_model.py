"""A network in physical units, in Python."""

from collections.abc import Sequence
from typing import Any

import torch
from metatensor.torch import TensorMap
from typing_extensions import override

from ..scaling import Scaler
from .deployed_model import systems_dtype


class PhysicalModel(torch.nn.Module):
    """A network and its scales, for code that calls networks in Python.

    Unlike the file that :func:`export` writes, it needs no TorchScript. Autograd can follow
    energies back to the positions and the cell: forces contain the part of an additive module.

    Args:
        network: maps a list of systems to predictions in model space by target name, such as a
            LightningModule with ``TargetScalingMixin``; it is not copied.
        scaler: its fitted scaler.

    Raises:
        RuntimeError: for a scaler that was never fitted.
    """

    def __init__(self, network: torch.nn.Module, scaler: Scaler) -> None:
        super().__init__()
        if not scaler.fitted:
            raise RuntimeError(
                "expected a fitted scaler, got one without scales; train with TargetScaler, or "
                "load a checkpoint or file with scales"
            )
        self.network = network
        self.scaler = scaler

    @override
    def forward(self, systems: Sequence[Any]) -> dict[str, TensorMap]:
        """Predict all targets of some systems in physical units.

        Args:
            systems: systems on the device of the network, which receives them in its dtype.
        """
        dtype = systems_dtype(self.network)
        predictions = self.network([system.to(dtype) for system in systems])
        return self.scaler.convert(systems, predictions, source="model", target="physical")
