"""One target from one space to another."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from metatensor.torch import Labels, TensorBlock, TensorMap

from .additive import Contribution
from .atoms import Atoms, find_types
from .scales import Key, TargetScales
from .system_labels import Reading
from .target import TargetLayout
from .tensormap import dtype_of, map_blocks, same_block

# How far each space is from loss space: powers of the per-target and the per-property scale.
POWERS = {"physical": (1, 0), "loss": (0, 0), "model": (0, -1)}


@dataclass(frozen=True)
class Conversion:
    """From which space to which, and how; see :meth:`Scaler.convert`."""

    source: str
    target: str
    baseline: bool = True
    unseen_types: str = "error"

    @property
    def through_baseline(self) -> bool:
        """Whether the baseline comes off or on."""
        physical = (self.source == "physical") != (self.target == "physical")
        return self.baseline and physical


def convert_target(
    scales: TargetScales,
    tensor: TensorMap,
    atoms: Atoms,
    reading: Reading,
    conversion: Conversion,
    contributions: Sequence[Contribution | None] | None = None,
) -> TensorMap:
    """Convert a single target; see :meth:`Scaler.convert`.

    Args:
        scales: of the target.
        tensor: its values in the space ``conversion.source``.
        atoms: of the batch, on the device of the tensor.
        reading: of the ``system`` labels.
        conversion: from which space to which.
        contributions: of an additive module to each block, in the rows of the tensor.
    """
    if len(tensor.keys) == 0:
        return tensor
    layout = TargetLayout.of(scales.layout.name, tensor)
    _check_layout(scales.layout, layout)
    if layout.kind == "pair":
        return tensor
    source, target = conversion.source, conversion.target
    has_baseline = bool(scales.weights) or contributions is not None
    with_baseline = conversion.through_baseline and has_baseline
    dtype = torch.float64 if with_baseline and target == "physical" else dtype_of(tensor)
    # A scale may underflow in half precision.
    working = torch.promote_types(dtype_of(tensor), torch.float32)
    if with_baseline:
        working = torch.float64
    keys = list(layout.blocks)

    def convert(row: int, _: Labels, block: TensorBlock) -> TensorBlock:
        key, values = keys[row], block.values.to(working)
        if layout.kind == "atom":
            rows = reading.atom_rows(layout.name, block.samples, atoms)
            of_types = scales.rows(atoms.types[rows], conversion.unseen_types)
        else:
            rows = reading.positions(layout.name, block.samples, atoms)
            of_types = torch.zeros(1, dtype=torch.int64, device=rows.device)
        factor = _factor(scales, key, source, target).to(rows.device)[of_types].to(working)
        offset = None
        if with_baseline and key in scales.weights:
            missing = values.isnan() if source == "physical" else None
            offset = _offset(scales, key, atoms, rows, values, missing)
        contribution = contributions[row] if with_baseline and contributions else None
        if contribution is not None:
            offset = contribution.values if offset is None else offset + contribution.values
        if offset is not None and source == "physical":
            values = values - offset
        values = _scaled(values, factor, source, target)
        if offset is not None and target == "physical":
            values = values + offset
        gradients = {}
        for name in block.gradients_list():
            gradient = block.gradient(name)
            of_rows = factor
            if layout.kind == "atom":
                of_rows = factor[gradient.samples.values[:, 0].long()]
            numbers, part = gradient.values.to(working), None
            if contribution is not None:
                part = contribution.gradients.get(name)
            if part is not None and source == "physical":
                numbers = numbers - part
            numbers = _scaled(numbers, of_rows, source, target)
            if part is not None and target == "physical":
                numbers = numbers + part
            gradients[name] = numbers.to(dtype)
        return same_block(block, values.to(dtype), gradients)

    return map_blocks(tensor, convert)


def _factor(scales: TargetScales, key: Key, source: str, target: str) -> torch.Tensor:
    """Scale between two spaces, ``(n_rows, n_properties)``, to divide or multiply by."""
    per_target = POWERS[target][0] != POWERS[source][0]
    per_property = POWERS[target][1] != POWERS[source][1]
    if per_target and per_property:
        return scales.values("full", key)
    return scales.values("per_target" if per_target else "per_property", key)


def _scaled(values: torch.Tensor, factor: torch.Tensor, source: str, target: str) -> torch.Tensor:
    factor = factor.reshape(factor.shape[0], *[1] * (values.dim() - 2), factor.shape[-1])
    outwards = sum(POWERS[target]) > sum(POWERS[source])  # towards physical space
    return values * factor if outwards else values / factor


def _offset(
    scales: TargetScales,
    key: Key,
    atoms: Atoms,
    rows: torch.Tensor,
    values: torch.Tensor,
    missing: torch.Tensor | None,
) -> torch.Tensor:
    """The baseline of every row, in a shape that expands to that of the values.

    Raises:
        ValueError: for types without a weight; a missing value does not need one.
    """
    offset = _baseline_of_rows(scales, key, atoms, rows)
    offset = offset.reshape(offset.shape[0], *[1] * (values.dim() - 2), offset.shape[-1])
    if scales.layout.invariance(key) == "trace":
        diagonal = torch.eye(values.shape[1], dtype=torch.bool, device=values.device)[..., None]
        offset = torch.where(diagonal, offset, 0.0)
    lacking = offset.isnan()
    if missing is not None:
        lacking = lacking & ~missing
    if bool(lacking.any()):
        _refuse_types_without_weight(scales, key, atoms, rows[lacking.flatten(1).any(1)])
    return offset


def _baseline_of_rows(
    scales: TargetScales, key: Key, atoms: Atoms, rows: torch.Tensor
) -> torch.Tensor:
    """The baseline of every row, ``(n_samples, n_properties)``; NaN where a type has no weight."""
    types = scales.composition_types.to(rows.device)
    weights = scales.weights[key].to(rows.device)  # (n_types, n_properties)
    column, known = find_types(atoms.types, types)
    if scales.layout.kind == "atom":
        return torch.where(known[rows][:, None], weights[column[rows]], torch.nan)
    composition = atoms.composition(types)
    unknown = torch.zeros(len(atoms), dtype=weights.dtype, device=rows.device)
    unknown.index_add_(0, atoms.system_of_atom, (~known).to(weights.dtype))
    lacking = composition @ weights.isnan().to(weights.dtype) + unknown[:, None]
    offset = composition @ weights.nan_to_num()
    return torch.where(lacking > 0, torch.nan, offset)[rows]


def _refuse_types_without_weight(
    scales: TargetScales, key: Key, atoms: Atoms, rows: torch.Tensor
) -> None:
    if scales.layout.kind == "atom":
        types = atoms.types[rows]
    else:
        types = atoms.types[torch.isin(atoms.system_of_atom, rows)]
    fitted = scales.composition_types[~scales.weights[key].isnan().any(1)].tolist()
    lacking = sorted(set(types.tolist()) - set(fitted))
    raise ValueError(
        f"target '{scales.layout.name}', block ({scales.layout.describe(key)}): no baseline for "
        f"the atomic types {lacking}, which were not in the data of the fit (types {fitted}); give "
        "them in fixed_baseline, or fit on data that have them"
    )


def _check_layout(fitted: TargetLayout, given: TargetLayout) -> None:
    united = fitted.united(given)
    unknown = [key for key in united.blocks if key not in fitted.blocks]
    if unknown:
        raise ValueError(
            f"target '{fitted.name}': no scale for the block ({fitted.describe(unknown[0])}), "
            "which was not in the data of the fit; known: "
            f"{[fitted.describe(key) for key in fitted.blocks]}"
        )
