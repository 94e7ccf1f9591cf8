"""A frozen module whose output is subtracted before the composition baseline and the scales."""

import copy
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any, NamedTuple, cast

import torch
from metatensor.torch import TensorMap, detach

from ..batches import Atoms, is_system
from ..settings import kind_of
from ..tensors import InvalidStateError, describe, from_state, is_tensormap
from .differentiation import connect, requires_gradient


class FrozenModule:
    """A frozen copy of a module that predicts an additive part of some targets.

    Not a ``torch.nn.Module`` itself: its weights are not for optimizers, precision plugins or DDP.
    It follows the device only. Made by :meth:`from_state`, it has weights and no code until
    :meth:`attach_module`.

    Args:
        module: maps a list of systems and a list of target names to a dict of TensorMaps for those
            targets that it knows, with the position in the list as ``system`` label. It may give
            gradients too; a missing gradient counts as zero. It must not write to the systems.
            Where positions or cells require a gradient, it is differentiated by autograd, or by
            the gradients that it gives.

    Raises:
        TypeError: for anything but a module, such as a class.
    """

    def __init__(self, module: torch.nn.Module) -> None:
        self.name = class_name(module)
        self.module: torch.nn.Module | None = None
        self._weights: Mapping[str, Any] | None = None
        # Targets that the module does not give as a function of the positions.
        self._constant: set[str] = set()
        self.attach_module(module)

    def attach_module(self, module: torch.nn.Module) -> None:
        """Take the code of a module of the same class, and its weights if none are known yet.

        Raises:
            InvalidStateError: if the known weights do not match the module.
        """
        with torch.no_grad():  # otherwise copies of TorchScript parameters are not leaves
            frozen_copy = copy.deepcopy(module).eval()
        for parameter in frozen_copy.parameters():
            parameter.requires_grad_(False)
        weights = self._weights if self.module is None else self.module.state_dict()
        if weights is not None:
            try:
                frozen_copy.load_state_dict(weights)
            except RuntimeError as error:
                raise InvalidStateError(
                    f"additive module {self.name}: its fitted weights do not match the module "
                    f"given; construct it as in the fit. {error}"
                ) from error
        self.module, self._weights = frozen_copy, None
        self._default_dtype = torch.get_default_dtype()

    def __call__(self, atoms: Atoms, names: Iterable[str]) -> dict[str, TensorMap]:
        """The contributions to those of the named targets that the module knows.

        The module receives the systems in its own floating dtype (float64 if it has none), and no
        precision plugin changes that. A batch without systems has no contributions. Autograd can
        follow the contributions if positions or cells require a gradient; they are detached
        otherwise.

        Raises:
            RuntimeError: if there is no code.
            TypeError: for an output other than a dict of TensorMaps by target name.
            ValueError: for atoms without their systems, or contributions that are not finite.
        """
        if len(atoms.systems) != atoms.n_systems:
            raise ValueError(
                f"expected the systems of the batch, which the additive module {self.name} needs, "
                "got their atoms alone; give the systems (a batch of plain tensors may have them "
                "as a list of metatomic Systems under the name 'system')"
            )
        if self.module is None:
            raise RuntimeError(
                f"the scales were fitted with the additive module {self.name}, whose weights were "
                "loaded with them and whose code was not; give it again, constructed as in the "
                f"fit: scaler.set_additive({self.name}(...)), or "
                f"TargetScaler(baseline={self.name}(...)) in the Trainer"
            )
        if atoms.n_systems == 0:
            return {}
        tensors = chain(self.module.parameters(), self.module.buffers())
        first = next((tensor for tensor in tensors if tensor.is_floating_point()), None)
        dtype = torch.float64 if first is None else first.dtype
        device = atoms.systems[0].types.device if first is None else first.device
        systems = [
            cast(Any, system).to(dtype=dtype, device=device) if is_system(system) else system
            for system in atoms.systems
        ]
        names = list(names)
        differentiate = requires_gradient(systems)
        with _own_precision(device, self._default_dtype), torch.set_grad_enabled(differentiate):
            outputs = self.module(systems, names)
        if not isinstance(outputs, Mapping):
            raise TypeError(
                f"additive module {self.name}: expected a dict of TensorMaps by target name, got "
                f"{type(outputs).__name__}"
            )
        known = {name: outputs[name] for name in names if name in outputs}
        for name, tensor in known.items():
            if not is_tensormap(tensor):
                raise TypeError(
                    f"additive module {self.name}, target '{name}': expected a TensorMap, got "
                    f"{type(tensor).__name__}"
                )
            _check_finite(f"additive module {self.name}, target '{name}'", tensor)
        if not differentiate:
            return {name: detach(tensor) for name, tensor in known.items()}
        atoms = atoms.to(device)
        return {name: self._connect(name, t, systems, atoms) for name, t in known.items()}

    def _connect(
        self, name: str, output: TensorMap, systems: Sequence[Any], atoms: Atoms
    ) -> TensorMap:
        """The output for a target as a function of the positions; see :func:`connect`."""
        output, complete = connect(output, systems, atoms)
        if not complete and name not in self._constant and "atom" not in output.sample_names:
            self._constant.add(name)
            warnings.warn(
                f"additive module {self.name}: autograd cannot follow its target '{name}' back to "
                "the positions (or the cell), which require a gradient, so that forces from the "
                "physical values do not contain its part; compute it from system.positions and "
                "system.cell, or give its gradients 'positions' and 'strain', unless it is "
                "independent of them",
                stacklevel=2,
            )
        return output

    def needs_module(self, module: torch.nn.Module | None) -> bool:
        """Whether the code is missing and this module has it."""
        return self.module is None and module is not None and self.name == class_name(module)

    def to(self, device: torch.device | str) -> "FrozenModule":
        """Move the module; devices without float64 leave it on the CPU."""
        if self.module is not None:
            self.module.to("cpu" if torch.device(device).type == "mps" else device)
        return self

    def state(self) -> dict[str, Any]:
        """The class name and the weights, without the code."""
        weights = self._weights if self.module is None else self.module.state_dict()
        return {"name": self.name, "weights": dict(weights or {})}

    @classmethod
    def from_state(cls, state: Any) -> "FrozenModule":
        """The inverse of :meth:`state`; the code has to be attached.

        Raises:
            InvalidStateError: for a state that is not that of a frozen module.
        """
        saved = from_state(_SavedModule, state)
        frozen = cls.__new__(cls)
        frozen.name, frozen.module, frozen._weights = saved.name, None, saved.weights
        frozen._constant = set()
        return frozen


class _SavedModule(NamedTuple):
    name: str
    weights: dict[str, Any]


def freeze(module: torch.nn.Module | FrozenModule | None) -> FrozenModule | None:
    """The module frozen, unless it already is."""
    return module if module is None or isinstance(module, FrozenModule) else FrozenModule(module)


def class_name(module: torch.nn.Module) -> str:
    """The name of an additive module's class, also for TorchScript modules.

    Raises:
        TypeError: for anything but a module, such as a class.
    """
    if not isinstance(module, torch.nn.Module):
        raise TypeError(
            "additive: expected a torch.nn.Module (an instance, not its class), got "
            f"{kind_of(module)}"
        )
    return str(getattr(module, "original_name", type(module).__name__))


@contextmanager
def _own_precision(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Switch off autocast and the default dtype of a precision plugin."""
    outside = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_default_dtype(outside)


def _check_finite(where: str, tensor: TensorMap) -> None:
    for index, block in enumerate(tensor.blocks()):
        parts = {"": block}
        for parameter in block.gradients_list():
            parts[f", gradient '{parameter}'"] = block.gradient(parameter)
        for which, part in parts.items():
            finite = torch.isfinite(part.values)
            if not bool(finite.all()):
                first = int((~finite).flatten(1).any(1).nonzero()[0])
                raise ValueError(
                    f"{where}, block ({describe(tensor.keys, index)}){which}: expected finite "
                    f"contributions, got {int((~finite).sum())} that are not, the first of them "
                    f"in the row ({describe(part.samples, first)}) of a batch; remove the "
                    "structures on which it fails"
                )
