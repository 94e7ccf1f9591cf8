"""One target from one space to another."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from metatensor.torch import TensorMap

from .additive import Contribution
from .atoms import Atoms
from .offsets import offset_of_rows
from .scales import Key, TargetScales, Which
from .system_labels import Reading
from .target import TargetLayout
from .torchscript import gradient_samples, values_and_gradients, with_values

# How far each space is from loss space: powers of the per-target and the per-property scale.
POWERS = {"physical": (1, 0), "loss": (0, 0), "model": (0, -1)}


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

    @property
    def through_baseline(self) -> bool:
        """Whether the baseline comes off or on."""
        physical = (self.source == "physical") != (self.target == "physical")
        return self.baseline and physical

    @property
    def scales(self) -> Which:
        """Which scale lies between the two spaces, which are not the same."""
        per_target, per_property = (
            a != b for a, b in zip(POWERS[self.source], POWERS[self.target], strict=True)
        )
        if per_target:
            return "full" if per_property else "per_target"
        return "per_property"

    @property
    def outwards(self) -> bool:
        """Whether it leads towards physical space, where scales multiply."""
        return sum(POWERS[self.target]) > sum(POWERS[self.source])


def convert_target(
    scales: TargetScales,
    tensor: TensorMap,
    atoms: Atoms,
    reading: Reading,
    conversion: Conversion,
    contributions: Sequence[Contribution | None] | None = None,
    held: bool = False,
) -> TensorMap:
    """Convert a single target; see :meth:`Scaler.convert`.

    Args:
        scales: of the target.
        tensor: its values in the space ``conversion.source``.
        atoms: of the batch, on the device of the tensor.
        reading: of the ``system`` labels.
        conversion: from which space to which.
        contributions: of an additive module to each block, in the rows of the tensor.
        held: whether the tensor is known to be one of :func:`target.holding`.
    """
    layout = scales.layout
    keys = list(layout.blocks) if held else _keys_of_blocks(layout, atoms.on_host(tensor))
    if not keys or scales.layout.kind == "pair":
        return tensor
    rows = _rows_of_blocks(scales.layout, tensor, atoms, reading)
    values, gradients = values_and_gradients(tensor)
    stored = dtype = values[0].dtype
    # A scale may underflow in half precision.
    working = torch.promote_types(stored, torch.float32)
    with_baseline = conversion.through_baseline and (
        bool(scales.weights) or contributions is not None
    )
    if with_baseline:
        working = torch.float64
        dtype = working if conversion.target == "physical" else stored
    dtype = conversion.dtype or dtype
    parts = contributions if with_baseline and contributions else [None] * len(keys)
    factors = _factors(scales, keys, rows, atoms, conversion, working)
    per_atom = conversion.per_atom and scales.extensive
    for i, key in enumerate(keys):
        numbers, part, offset = values[i].to(working), parts[i], None
        if with_baseline and key in scales.weights:
            missing = conversion.source == "physical"
            offset = offset_of_rows(scales, key, atoms, rows[i], numbers, missing)
        if part is not None:
            offset = part.values if offset is None else offset + part.values
        numbers = _converted(numbers, factors[i], offset, conversion)
        if per_atom:
            numbers = numbers / _trailing(_divisors(atoms, rows[i]), numbers)
        values[i] = numbers.to(dtype)
    if gradients:
        described = zip(*gradient_samples(tensor), strict=True)
        for i, (block, name, of_block, of_atoms) in enumerate(described):
            numbers, factor, part = gradients[i].to(working), factors[block], parts[block]
            if factor.shape[0] > 1:
                factor = factor.index_select(0, of_block)
            offset = None if part is None else part.gradients.get(name)
            numbers = _converted(numbers, factor, offset, conversion)
            if per_atom and not of_atoms:
                divisors = _divisors(atoms, rows[block])[of_block]
                numbers = numbers / _trailing(divisors, numbers)
            gradients[i] = numbers.to(dtype)
    return with_values(tensor, values, gradients)


def _keys_of_blocks(layout: TargetLayout, tensor: TensorMap) -> list[Key]:
    if layout.holds(tensor):
        return list(layout.blocks)
    given = TargetLayout.of(layout.name, tensor)
    if not given.blocks:
        return []
    united = layout.united(given)
    unknown = [key for key in united.blocks if key not in layout.blocks]
    if unknown:
        raise ValueError(
            f"target '{layout.name}': no scale for the block ({layout.describe(unknown[0])}), "
            "which was not in the data of the fit; known: "
            f"{[layout.describe(key) for key in layout.blocks]}"
        )
    return list(given.blocks)


def _rows_of_blocks(
    layout: TargetLayout, tensor: TensorMap, atoms: Atoms, reading: Reading
) -> list[torch.Tensor | None]:
    """For each block the index of every row's atom or system; ``None`` for all of them in order."""
    if layout.name in reading.usual:
        return [None] * len(tensor)
    find = reading.atom_rows if layout.kind == "atom" else reading.positions
    return [find(layout.name, block.samples, atoms) for block in tensor.blocks()]


def _factors(
    scales: TargetScales,
    keys: list[Key],
    rows: list[torch.Tensor | None],
    atoms: Atoms,
    conversion: Conversion,
    dtype: torch.dtype,
) -> list[torch.Tensor]:
    """For each block what its rows are multiplied or divided by.

    Returns:
        ``(n_samples, n_properties)``; either axis has length 1 where all is the same.
    """
    which, device = conversion.scales, atoms.types.device
    of_kinds = None
    factors: list[torch.Tensor] = []
    for i, key in enumerate(keys):
        if i > 0 and which == "per_target" and rows[i] is rows[i - 1]:
            factors.append(factors[-1])
            continue
        table = scales.per_target[:, None] if which == "per_target" else scales.values(which, key)
        if scales.layout.kind != "atom":
            factor = table[:1].to(dtype).to(device, non_blocking=True)
        elif rows[i] is None:
            if of_kinds is None:
                of_kinds = scales.rows(atoms.kinds, conversion.unseen_types)
            table = table.index_select(0, of_kinds).to(dtype)
            factor = atoms.of_kinds(table.to(device, non_blocking=True))
        else:
            of_types = scales.rows(atoms.types[rows[i]], conversion.unseen_types)
            factor = table.to(device, dtype)[of_types]
        factors.append(factor)
    return factors


def _converted(
    numbers: torch.Tensor,
    factor: torch.Tensor,
    offset: torch.Tensor | None,
    conversion: Conversion,
) -> torch.Tensor:
    if offset is not None and conversion.source == "physical":
        numbers = numbers - offset
    shape = (factor.shape[0], *[1] * (numbers.dim() - 2), factor.shape[1])
    factor = factor.reshape(shape)
    numbers = numbers * factor if conversion.outwards else numbers / factor
    if offset is not None and conversion.target == "physical":
        numbers = numbers + offset
    return numbers


def _divisors(atoms: Atoms, rows: torch.Tensor | None) -> torch.Tensor:
    return atoms.divisors if rows is None else atoms.divisors[rows]


def _trailing(rows: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    return rows.to(numbers.dtype).reshape(-1, *[1] * (numbers.dim() - 1))
