"""A network in physical units, in Python."""

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import torch
from typing_extensions import override

from ..batches import is_system
from ..plain_tensors import DeclaredBatch
from ..scaling import Scaler
from ..settings import kind_of


class PhysicalModel(torch.nn.Module):
    """A network and its scales, for code that calls networks in Python.

    Unlike the file that :func:`export` writes, it needs no TorchScript. Autograd can follow
    energies back to the positions and the cell: forces contain the part of an additive module.

    Args:
        network: maps a list of systems to predictions in model space by target name, such as a
            LightningModule with ``TargetScalingMixin``; it is not copied. If targets are declared,
            it may map a batch of plain tensors to an output that has them.
        scaler: its fitted scaler.

    Raises:
        RuntimeError: for a scaler that was never fitted.
        TypeError: for anything else than a module and a scaler, and for a module with
            ``ScaledSteps``, which gives physical units by itself.

    Example:
        >>> from lightning_scaler import ScaleAccumulator
        >>> from metatensor.torch import Labels, TensorBlock, TensorMap
        >>> from metatomic.torch import System
        >>> class Half(torch.nn.Module):
        ...     def forward(self, systems):
        ...         return {"energy": energies([0.5] * len(systems))}
        >>> def energies(numbers):
        ...     samples = Labels.range("system", len(numbers))
        ...     values = torch.tensor(numbers)[:, None]
        ...     block = TensorBlock(values, samples, [], Labels.range("energy", 1))
        ...     return TensorMap(Labels.single(), [block])
        >>> box, types = torch.zeros(3, 3), torch.tensor([1, 8, 1])
        >>> water = System(types, torch.rand(3, 3), box, torch.tensor([False] * 3))
        >>> accumulator = ScaleAccumulator()
        >>> accumulator.update([water], {"energy": energies([-6.0])})  # 2 per atom
        >>> model = PhysicalModel(Half(), accumulator.compute())
        >>> model([water])["energy"].block().values
        tensor([[1.]])
    """

    def __init__(self, network: torch.nn.Module, scaler: Scaler) -> None:
        super().__init__()
        check_fitted(scaler)
        check_module(network)
        if hasattr(network, "target_scaler"):
            raise TypeError(
                f"expected a network in model space, got {type(network).__name__}, which gives "
                "physical units outside of its steps by ScaledSteps; call it without PhysicalModel"
            )
        self.network = network
        self.scaler = scaler

    @override
    def forward(self, systems: Any) -> Any:
        """Predict all targets of some systems in physical units.

        Args:
            systems: systems on the device of the network, which receives them in its dtype; or,
                for declared targets, a batch of plain tensors, which it receives as it is.

        Returns:
            TensorMaps by target name; for a batch of plain tensors, a copy of the output with
            other tensors.
        """
        declaration = self.scaler.declaration
        if isinstance(systems, Sequence) and all(map(is_system, systems)):
            dtype = systems_dtype(self.network)
            batch, output = systems, self.network([system.to(dtype) for system in systems])
        elif declaration is not None:
            batch, output = DeclaredBatch(systems, declaration), self.network(systems)
        else:
            raise TypeError(
                "expected a list of metatomic systems, which targets that are not declared need, "
                f"got {type(systems).__name__}; metatomic.torch.systems_to_torch makes them of "
                "ASE Atoms"
            )
        return self.scaler.convert(batch, output, source="model", target="physical")


def check_fitted(scaler: Any) -> None:
    """Check the scaler that is given together with a network.

    Raises:
        TypeError: for anything else than a scaler.
        RuntimeError: for a scaler without scales.
    """
    if not isinstance(scaler, Scaler):
        raise TypeError(
            f"expected the network and then its scaler, got {kind_of(scaler)} as the scaler; "
            "pass model.scaler (model.target_scaler with ScaledSteps), accumulator.compute() or "
            "Scaler.load(path)"
        )
    if not scaler.fitted:
        raise RuntimeError(
            "expected a fitted scaler, got one without scales; train with TargetScaler, or load a "
            "checkpoint or file with scales"
        )


def check_module(network: Any) -> None:
    """Raise ``TypeError`` for anything else than a module that can predict."""
    if not isinstance(network, torch.nn.Module) or isinstance(network, Scaler):
        raise TypeError(
            f"expected the network, a torch.nn.Module, got {kind_of(network)}; pass a module "
            "with its weights, such as model.network"
        )


def find_wrapped(module: Any, is_wrapper: Callable[[Any], bool]) -> tuple[str, Any]:
    """The module inside of wrappers, and the attributes that lead to it.

    ``torch.compile``, ``DistributedDataParallel``, ``AveragedModel`` and others hold the module
    that they were given as an attribute.

    Args:
        module: a module, or wrappers around one.
        is_wrapper: whether to look into a module.

    Example:
        >>> averaged = torch.optim.swa_utils.AveragedModel(torch.nn.Linear(1, 1))
        >>> find_wrapped(averaged, lambda one: one is averaged)
        ('.module', Linear(in_features=1, out_features=1, bias=True))
    """
    path, names = "", ("_orig_mod", "module")
    while is_wrapper(module):
        inside = [n for n in names if isinstance(getattr(module, n, None), torch.nn.Module)]
        if not inside:
            break
        path, module = f"{path}.{inside[0]}", getattr(module, inside[0])
    return path, module


def systems_dtype(network: torch.nn.Module) -> torch.dtype:
    """The dtype in which a network takes systems: float64 if its weights are, else float32."""
    tensors = chain(network.parameters(), network.buffers())
    dtypes = (tensor.dtype for tensor in tensors if tensor.is_floating_point())
    return torch.float64 if next(dtypes, torch.float64) == torch.float64 else torch.float32
