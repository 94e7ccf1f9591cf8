"""One target from one space to another."""

from collections.abc import Mapping

import torch
from metatensor.torch import Labels, TensorBlock, TensorMap

from .atoms import Atoms, find_types
from .scales import Key, TargetScales
from .system_labels import Reading
from .target import TargetLayout
from .tensormap import dtype_of, map_blocks, same_block

# How far each space is from loss space: powers of the per-target and the per-property scale.
POWERS = {"physical": (1, 0), "loss": (0, 0), "model": (0, -1)}


def convert_targets(
    targets: Mapping[str, TargetScales],
    tensors: Mapping[str, TensorMap],
    atoms: Atoms,
    reading: Reading,
    source: str,
    target: str,
    baseline: bool,
    unseen_types: str,
) -> dict[str, TensorMap]:
    """Convert those of the tensors that have scales; see :meth:`Scaler.convert`."""
    if source == target:
        return dict(tensors)
    return {
        name: convert_target(
            targets[name], tensor, atoms, reading, source, target, baseline, unseen_types
        )
        if name in targets
        else tensor
        for name, tensor in tensors.items()
    }


def convert_target(
    scales: TargetScales,
    tensor: TensorMap,
    atoms: Atoms,
    reading: Reading,
    source: str,
    target: str,
    baseline: bool,
    unseen_types: str,
) -> TensorMap:
    """Convert a single target; see :meth:`Scaler.convert`."""
    if len(tensor.keys) == 0:
        return tensor
    layout = TargetLayout.of(scales.layout.name, tensor)
    _check_layout(scales.layout, layout)
    if layout.kind == "pair":
        return tensor
    with_baseline = baseline and bool(scales.weights) and "physical" in (source, target)
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
            of_types = scales.rows(atoms.types[rows], unseen_types)
        else:
            rows = reading.positions(layout.name, block.samples, atoms)
            of_types = torch.zeros(1, dtype=torch.int64, device=rows.device)
        factor = _factor(scales, key, source, target).to(rows.device)[of_types].to(working)
        offset = None
        if with_baseline and key in scales.weights:
            missing = values.isnan() if source == "physical" else None
            offset = _offset(scales, key, atoms, rows, values, missing)
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
            scaled = _scaled(gradient.values.to(working), of_rows, source, target)
            gradients[name] = scaled.to(dtype)
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
