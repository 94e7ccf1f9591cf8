"""A frozen module whose contributions come off before the baseline and the scales."""

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import Any, NamedTuple, cast

import torch
from metatensor.torch import Labels, TensorBlock, TensorMap, detach

from ..batches import (
    Atoms,
    SystemIndexing,
    find_gradient_rows,
    find_rows,
    relabel_by_position,
    selected,
)
from ..tensors import describe, is_system, is_tensormap


class FrozenModule:
    """A frozen copy of a module that gives an additive part of some targets.

    Not a ``torch.nn.Module`` itself: its weights are not for optimizers, precision plugins or DDP.
    It follows the device alone. Made by :meth:`from_state`, it has no code until
    :meth:`attach_module`.

    Args:
        module: maps a list of systems and a list of target names to a dict of TensorMaps with
            contributions to those targets that it knows, ``system`` being the position in the list.
            It may give gradients too; a gradient that it does not give is zero. It must not write
            to the systems.
    """

    def __init__(self, module: torch.nn.Module) -> None:
        self.name = class_name(module)
        self.module: torch.nn.Module | None = None
        self._weights: Mapping[str, Any] | None = None
        self.attach_module(module)

    def attach_module(self, module: torch.nn.Module) -> None:
        """Take the code from a module of the same class; weights that are here already stay."""
        with torch.no_grad():  # else copies of TorchScript parameters are no leaves
            taken = copy.deepcopy(module).eval()
        for parameter in taken.parameters():
            parameter.requires_grad_(False)
        weights = self._weights if self.module is None else self.module.state_dict()
        if weights is not None:
            taken.load_state_dict(weights)
        self.module, self._weights = taken, None
        self._default_dtype = torch.get_default_dtype()

    def __call__(self, atoms: Atoms, names: Iterable[str]) -> dict[str, TensorMap]:
        """The contributions to those of the named targets that the module knows, detached.

        The systems of the batch come to the module in its own floating dtype, float64 if it has
        none; precision plugins do not reach it. A batch without systems has no contributions.

        Raises:
            RuntimeError: without code.
            TypeError: for anything but TensorMaps by target name.
            ValueError: for atoms without their systems, or contributions that are not finite.
        """
        if len(atoms.systems) != len(atoms):
            raise ValueError(
                f"expected the systems of the batch, which the additive module {self.name} needs, "
                "got their atoms alone; give the systems"
            )
        if self.module is None:
            raise RuntimeError(
                f"the scales were fitted with the additive module {self.name}, whose weights came "
                "with them and whose code did not; give it again, constructed as in the fit: "
                f"scaler.set_additive({self.name}(...)), or "
                f"TargetScaler(baseline={self.name}(...)) in the Trainer"
            )
        if len(atoms) == 0:
            return {}
        tensors = chain(self.module.parameters(), self.module.buffers())
        first = next((tensor for tensor in tensors if tensor.is_floating_point()), None)
        dtype = torch.float64 if first is None else first.dtype
        device = atoms.systems[0].types.device if first is None else first.device
        received = [
            cast(Any, system).to(dtype=dtype, device=device) if is_system(system) else system
            for system in atoms.systems
        ]
        names = list(names)
        with _own_precision(device, self._default_dtype), torch.no_grad():
            given = self.module(received, names)
        if not isinstance(given, Mapping):
            raise TypeError(
                f"additive module {self.name}: expected a dict of TensorMaps by target name, got "
                f"{type(given).__name__}"
            )
        known = {name: given[name] for name in names if name in given}
        for name, tensor in known.items():
            if not is_tensormap(tensor):
                raise TypeError(
                    f"additive module {self.name}, target '{name}': expected a TensorMap, got "
                    f"{type(tensor).__name__}"
                )
            _check_finite(f"additive module {self.name}, target '{name}'", tensor)
        return {name: detach(tensor) for name, tensor in known.items()}

    def needs_module(self, module: torch.nn.Module | None) -> bool:
        """Whether this is the module's code that is lacking here."""
        return self.module is None and module is not None and self.name == class_name(module)

    def to(self, device: torch.device | str) -> "FrozenModule":
        """Move the module; devices without float64 leave it on the CPU."""
        if self.module is not None:
            self.module.to("cpu" if torch.device(device).type == "mps" else device)
        return self

    def state(self) -> dict[str, Any]:
        """The name of the class and the weights; the code is not part of it."""
        weights = self._weights if self.module is None else self.module.state_dict()
        return {"name": self.name, "weights": dict(weights or {})}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "FrozenModule":
        """The inverse of :meth:`state`, its code still lacking."""
        frozen = cls.__new__(cls)
        frozen.name, frozen.module, frozen._weights = state["name"], None, state["weights"]
        return frozen


def frozen(module: torch.nn.Module | FrozenModule | None) -> FrozenModule | None:
    """The module frozen, unless it is already.

    Raises:
        TypeError: for anything else, such as a class.
    """
    if module is None or isinstance(module, FrozenModule):
        return module
    if not isinstance(module, torch.nn.Module):
        raise TypeError(
            f"additive: expected a torch.nn.Module (an instance, not its class), got {module!r}"
        )
    return FrozenModule(module)


def class_name(module: torch.nn.Module) -> str:
    """The name of the module's class, of a TorchScript module too."""
    return str(getattr(module, "original_name", type(module).__name__))


@contextmanager
def _own_precision(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Neither autocast nor the default dtype of a precision plugin."""
    outside = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_default_dtype(outside)


def _check_finite(where: str, tensor: TensorMap) -> None:
    for row, block in enumerate(tensor.blocks()):
        parts = {f", gradient '{name}'": block.gradient(name) for name in block.gradients_list()}
        for which, part in {"": block, **parts}.items():
            finite = torch.isfinite(part.values)
            if not bool(finite.all()):
                first = int((~finite).flatten(1).any(1).nonzero()[0])
                raise ValueError(
                    f"{where}, block ({describe(tensor.keys, row)}){which}: expected finite "
                    f"contributions, got {int((~finite).sum())} that are not, the first of them "
                    f"in the row ({describe(part.samples, first)}) of a batch; remove the "
                    "structures on which it fails"
                )


class Contribution(NamedTuple):
    """Contributions to one block of a target.

    Attributes:
        values: in the shape of its values.
        gradients: in the shapes of its gradients, by name.
        lacking: names of its gradients without contributions.
    """

    values: torch.Tensor
    gradients: dict[str, torch.Tensor]
    lacking: tuple[str, ...] = ()


def contributions(
    given: Mapping[str, TensorMap],
    tensors: Mapping[str, TensorMap],
    atoms: Atoms,
    reading: SystemIndexing,
) -> dict[str, list[Contribution | None]]:
    """What an additive module gave, in the blocks and rows of some tensors.

    Args:
        given: by the module, by target name.
        tensors: targets, or predictions in physical units, by name.
        atoms: of the batch.
        reading: of the ``system`` labels of the tensors.

    Returns:
        By target name, for each block; ``None`` for a block without contributions.
    """
    return {
        name: aligned(name, given[name], relabel_by_position(name, tensor, reading, atoms))
        for name, tensor in tensors.items()
        if name in given
    }


def aligned(name: str, given: TensorMap, target: TensorMap) -> list[Contribution | None]:
    """Contributions in the blocks, rows and device of a target, ``None`` for blocks without one.

    Args:
        name: of the target, for the messages.
        given: by an additive module.
        target: its ``system`` labels being positions in the batch.

    Raises:
        ValueError: for other key names, components or properties (one property goes with one,
            whatever its label), or rows of the target without a contribution.
    """
    if given.keys.names != target.keys.names:
        raise ValueError(
            f"target '{name}': expected contributions with keys named {target.keys.names}, got "
            f"{given.keys.names}"
        )
    given = given.to(device=target.device)
    parts: list[Contribution | None] = []
    for row, block in enumerate(target.blocks()):
        where = f"target '{name}', block ({describe(target.keys, row)})"
        position = given.keys.position(target.keys.entry(row))
        parts.append(
            None if position is None else _aligned_block(where, given.block_by_id(position), block)
        )
    return parts


def _aligned_block(where: str, given: TensorBlock, target: TensorBlock) -> Contribution:
    same_properties = given.properties == target.properties or (
        len(given.properties) == len(target.properties) == 1
    )
    if not same_properties or given.components != target.components:
        raise ValueError(
            f"{where}: expected contributions with components {target.components} and properties "
            f"{target.properties}, got {given.components} and {given.properties}"
        )
    what = "contribution"
    rows = find_rows(where, given.samples, target.samples, target.samples.values, what)
    gradients, lacking = {}, []
    for parameter in target.gradients_list():
        if parameter not in given.gradients_list():
            lacking.append(parameter)
        else:
            gradient = given.gradient(parameter)
            expected = target.gradient(parameter).components
            if gradient.components != expected:
                raise ValueError(
                    f"{where}, gradient '{parameter}': expected contributions with components "
                    f"{expected}, got {gradient.components}"
                )
            among, wanted = gradient.samples, target.gradient(parameter).samples
            of_rows = find_gradient_rows(
                where, parameter, _without_system(among), _without_system(wanted), rows, what
            )
            gradients[parameter] = selected(gradient.values, of_rows)
    return Contribution(selected(given.values, rows), gradients, tuple(lacking))


def _without_system(labels: Labels) -> Labels:
    """Gradients name the system or not; the sample that they belong to tells it anyway."""
    if "system" not in labels.names:
        return labels
    kept = [column for column, name in enumerate(labels.names) if name != "system"]
    return Labels([labels.names[column] for column in kept], labels.values[:, kept])
