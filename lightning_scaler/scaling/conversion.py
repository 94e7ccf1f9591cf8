"""The targets of a batch from one space to another."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from metatensor.torch import TensorMap

from ..baselines import Contribution
from ..batches import Atoms, Known, SystemIndexing, rows_of_blocks
from ..tensors import Key, TargetLayout, names_of_gradients, names_with_layout
from .arithmetic import rescaled
from .offsets import offset_of_rows
from .target_scales import ScaleKind, TargetScales, on_device

# How far each space is from loss space: powers of the per-target and the per-property scale.
SCALE_EXPONENTS = {"physical": (1, 0), "loss": (0, 0), "model": (0, -1)}


@dataclass(frozen=True)
class Conversion:
    """From which space to which, and how; see :meth:`Scaler.convert`.

    ``per_atom`` divides extensive values by the number of atoms too, and their gradients with
    respect to the whole structure (strain); ``dtype`` is that of the result, if it is to be
    another one.
    """

    source: str
    target: str
    baseline: bool = True
    unseen_types: str = "error"
    per_atom: bool = False
    dtype: torch.dtype | None = None

    @cached_property
    def applies_baseline(self) -> bool:
        """Whether the baseline comes off or on."""
        physical = (self.source == "physical") != (self.target == "physical")
        return self.baseline and physical

    @cached_property
    def scales(self) -> ScaleKind:
        """The scale that lies between the two spaces, which are not the same."""
        per_target, per_property = (
            a != b
            for a, b in zip(SCALE_EXPONENTS[self.source], SCALE_EXPONENTS[self.target], strict=True)
        )
        if per_target:
            return "full" if per_property else "per_target"
        return "per_property"

    @cached_property
    def to_physical(self) -> bool:
        """Whether it leads towards physical space, where scales multiply."""
        return sum(SCALE_EXPONENTS[self.target]) > sum(SCALE_EXPONENTS[self.source])


class Operands(NamedTuple):
    """What one target is converted with; see :func:`rescaling.rescaled`."""

    tensor: TensorMap
    factors: list[torch.Tensor]
    kinds: list[torch.Tensor]
    divisors: list[torch.Tensor]
    offsets: list[torch.Tensor | None]
    gradient_offsets: list[torch.Tensor | None]


def convert_targets(
    targets: Mapping[str, TargetScales],
    tensors: Mapping[str, TensorMap],
    atoms: Atoms,
    reading: SystemIndexing,
    conversion: Conversion,
    contributions: Mapping[str, Sequence[Contribution | None]],
) -> dict[str, TensorMap]:
    """Convert the targets of a batch; see :meth:`Scaler.convert`.

    Args:
        targets: the scales by target name.
        tensors: by target name, values in the space ``conversion.source``.
        atoms: of the batch, on the device of the tensors.
        reading: of the ``system`` labels.
        conversion: from which space to which.
        contributions: of an additive module, by target name, to each block, in the rows of the
            tensor.
    """
    layouts = {name: targets[name].layout for name in tensors}
    held = _names_held(layouts, tensors, atoms)
    operands: dict[str, Operands] = {}
    found: dict[str, TensorMap] = {}
    for name, tensor in tensors.items():
        layout = layouts[name]
        # The labels of a batch that has been moved are looked at where they came from.
        keys = list(layout.blocks)
        if name not in held:
            keys = _keys_of_blocks(layout, atoms.on_host(tensor))
        if layout.kind == "pair":
            # Nothing to scale, but the loss has one dtype.
            found[name] = tensor.to(dtype=conversion.dtype) if conversion.dtype else tensor
        elif keys:
            parts = contributions.get(name)
            operands[name] = _operands(
                targets[name], tensor, keys, atoms, reading, conversion, parts
            )
    if operands:
        each = operands.values()
        converted = rescaled(
            [one.tensor for one in each],
            [one.factors for one in each],
            [one.kinds for one in each],
            [one.divisors for one in each],
            [one.offsets for one in each],
            [one.gradient_offsets for one in each],
            conversion.to_physical,
            conversion.dtype,
        )
        found.update(zip(operands, converted, strict=True))
    for name, tensor in found.items():
        atoms.known.learn_same(tensor, tensors[name])
    return {**tensors, **found}


def _names_held(
    layouts: Mapping[str, TargetLayout], tensors: Mapping[str, TensorMap], atoms: Atoms
) -> set[str]:
    """As :func:`names_with_layout`, for tensors of a batch, of which some may be known already.

    The labels of tensors that have been moved are compared where they came from.
    """
    held, here, moved = set(), {}, {}
    for name, tensor in tensors.items():
        known = atoms.known.get(tensor)
        if known is not None and known.layout is layouts[name]:
            held.add(name)
        elif known is None or known.original is None:
            here[name] = tensor
        else:
            moved[name] = known.original
    found = names_with_layout(layouts, here, atoms.types.device) if here else frozenset()
    if moved:
        found |= names_with_layout(layouts, moved, atoms.host)
    for name in found:
        known = atoms.known.get(tensors[name])
        if known is not None:
            now = Known(known.usual, layouts[name], known.original)
            atoms.known.learn(tensors[name], now)
    return held | found


def _operands(
    scales: TargetScales,
    tensor: TensorMap,
    keys: list[Key],
    atoms: Atoms,
    reading: SystemIndexing,
    conversion: Conversion,
    parts: Sequence[Contribution | None] | None,
) -> Operands:
    """What a target is converted with.

    Args:
        scales: of the target.
        tensor: in the space ``conversion.source``.
        keys: of its blocks.
        atoms: of the batch.
        reading: of the ``system`` labels.
        conversion: from which space to which.
        parts: contributions to each block.
    """
    rows = rows_of_blocks(scales.layout, tensor, atoms, reading)
    which, unseen_types = conversion.scales, conversion.unseen_types
    factors, kinds = factors_of_rows(scales, which, keys, rows, atoms, unseen_types)
    operands = Operands(tensor, factors, kinds, [], [], [])
    if conversion.per_atom and scales.extensive:
        divisors = [atoms.divisors[row] for row in rows] or [atoms.divisors]
        operands.divisors.extend(divisors)
    if conversion.applies_baseline and (scales.weights or parts is not None):
        missing = conversion.source == "physical"
        for i, key in enumerate(keys):
            offset, part = None, parts[i] if parts else None
            if key in scales.weights:
                of_block = rows[i] if rows else None
                offset = offset_of_rows(scales, key, atoms, of_block, tensor, i, missing)
            if part is not None:
                offset = part.values if offset is None else offset + part.values
            operands.offsets.append(offset)
    if operands.offsets and parts is not None:
        for i, name in zip(*names_of_gradients(tensor), strict=True):
            part = parts[i]
            operands.gradient_offsets.append(None if part is None else part.gradients.get(name))
    return operands


def factors_of_rows(
    scales: TargetScales,
    which: ScaleKind,
    keys: Sequence[Key],
    rows: list[torch.Tensor],
    atoms: Atoms,
    unseen_types: str,
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Scales of a target in tables, and where in them the rows of each block are.

    Args:
        scales: of the target.
        which: of them.
        keys: of the blocks.
        rows: for each block the index of every row's atom or system; none for all in order.
        atoms: of the batch.
        unseen_types: what to do with types that were not in the data of the fit.

    Returns:
        As :func:`rescaling.rescaled` takes them.
    """
    device = atoms.types.device
    # One scale serves all blocks.
    keys = keys[:1] if which == "per_target" else keys
    tables = scales.by_type(which, atoms.occurring, device)
    if tables is not None:
        factors = [tables[key] for key in keys]
        if scales.layout.kind != "atom":
            return factors, []
        kinds = [atoms.types[row] for row in rows] or [atoms.types]
    else:
        factors = [scales.factors(which, key) for key in keys]
        if rows:
            kinds = [scales.rows(atoms.types[row], unseen_types) for row in rows]
        else:
            of_kinds, kinds = scales.rows(atoms.kinds, unseen_types), [atoms.kind_of_atom]
            factors = [factor[of_kinds] for factor in factors]
        factors = [on_device(factor, device) for factor in factors]
    # One table serves all blocks, but each has its own rows in it.
    return factors * (len(kinds) if len(factors) < len(kinds) else 1), kinds


def _keys_of_blocks(layout: TargetLayout, tensor: TensorMap) -> list[Key]:
    given = TargetLayout.of(layout.name, tensor)
    if not given.blocks:
        return []
    union = layout.union(given)
    unknown = [key for key in union.blocks if key not in layout.blocks]
    if unknown:
        raise ValueError(
            f"target '{layout.name}': no scale for the block ({layout.describe(unknown[0])}), "
            "which was not in the data of the fit; known: "
            f"{[layout.describe(key) for key in layout.blocks]}"
        )
    return list(given.blocks)
