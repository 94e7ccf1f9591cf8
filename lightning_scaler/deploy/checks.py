"""What a network and its scaler must be, and the dtype that a network takes."""

from itertools import chain
from typing import Any

import torch

from ..scaling import Scaler


def check_fitted(scaler: Scaler) -> None:
    """Raise ``RuntimeError`` for a scaler without scales."""
    if not scaler.fitted:
        raise RuntimeError(
            "expected a fitted scaler, got one without scales; train with TargetScaler, or load a "
            "checkpoint or file with scales"
        )


def check_network(network: Any) -> None:
    """Raise ``TypeError`` for anything but a module, and for a LightningModule."""
    if hasattr(network, "training_step"):
        raise TypeError(
            "expected the network, a torch.nn.Module, got the LightningModule "
            f"{type(network).__name__}, which TorchScript cannot take; pass the module that it "
            "wraps, as in export(model.network, model.scaler, ...)"
        )
    if not isinstance(network, torch.nn.Module):
        raise TypeError(f"expected the network, a torch.nn.Module, got {network!r}")


def systems_dtype(network: torch.nn.Module) -> torch.dtype:
    """The dtype in which a network takes systems: float64 if its weights are, else float32."""
    tensors = chain(network.parameters(), network.buffers())
    dtypes = (tensor.dtype for tensor in tensors if tensor.is_floating_point())
    return torch.float64 if next(dtypes, torch.float64) == torch.float64 else torch.float32
