"""One target from one space to another."""

from collections.abc import Mapping

import torch
from metatensor.torch import Labels, TensorBlock, TensorMap

from .atoms import Atoms, Reading, find_types
from .scales import Key, TargetScales
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
    layout = TargetLayout.of(scales.layout.name, tensor)
    _check_layout(scales.layout, layout)
    if layout.kind == "pair":
        return tensor
    with_baseline = baseline and bool(scales.weights) and "physical" in (source, target)
    dtype = torch.float64 if with_baseline and target == "physical" else dtype_of(tensor)
    working = torch.float64 if with_baseline else dtype_of(tensor)
    rows_of_types = torch.zeros((), dtype=torch.int64)
    if layout.kind == "atom":
        rows_of_types = scales.rows(atoms.types, unseen_types)
    keys = list(layout.blocks)

    def convert(row: int, _: Labels, block: TensorBlock) -> TensorBlock:
        key = keys[row]
        factor = _factor(scales, key, source, target)
        if layout.kind == "atom":
            atom = reading.atom_rows(layout.name, block.samples, atoms)
            per_row = factor.to(atom.device)[rows_of_types[atom]].to(working)
        else:
            systems = reading.positions(layout.name, block.samples, atoms)
            atom = systems
            per_row = factor[:1].to(systems.device, working)
        values = block.values.to(working)
        offset = None
        if with_baseline and key in scales.weights:
            offset = _offset(scales, key, atoms, atom, values.dim())
        if offset is not None and source == "physical":
            values = values - offset
        values = _scaled(values, per_row, source, target)
        if offset is not None and target == "physical":
            values = values + offset
        gradients = {}
        for name in block.gradients_list():
            gradient = block.gradient(name)
            of_rows = per_row
            if len(per_row) != 1 or layout.kind == "atom":
                of_rows = per_row[gradient.samples.values[:, 0].long()]
            scaled = _scaled(gradient.values.to(working), of_rows, source, target)
            gradients[name] = scaled.to(dtype)
        return same_block(block, values.to(dtype), gradients)

    return map_blocks(tensor, convert)


def _factor(scales: TargetScales, key: Key, source: str, target: str) -> torch.Tensor:
    """Scale between two spaces, ``(n_types + 2, n_properties)``, to divide or multiply by."""
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
    scales: TargetScales, key: Key, atoms: Atoms, rows: torch.Tensor, n_dimensions: int
) -> torch.Tensor:
    """The baseline of every row, in the shape of the values or one that expands to it."""
    name = scales.layout.name
    types = scales.composition_types.to(rows.device)
    weights = scales.weights[key].to(rows.device)  # (n_types, n_properties)
    column, known = find_types(atoms.types, types)
    known = known & ~weights.isnan().any(1)[column] if len(types) else known
    if not bool(known.all()):
        raise ValueError(
            f"target '{name}': no baseline for the atomic types "
            f"{atoms.types[~known].unique().tolist()}, which were not in the data of the fit "
            f"(types {types.tolist()}); give them in fixed_baseline, or fit on data that have them"
        )
    if scales.layout.kind == "atom":
        offset = weights[column[rows]]
    else:
        offset = (atoms.composition(types) @ weights.nan_to_num())[rows]
    offset = offset.reshape(offset.shape[0], *[1] * (n_dimensions - 2), offset.shape[-1])
    if scales.layout.invariance(key) == "trace":
        size = len(scales.layout.blocks[key].components[0])
        offset = offset * torch.eye(size, dtype=offset.dtype, device=offset.device)[..., None]
    return offset


def _check_layout(fitted: TargetLayout, given: TargetLayout) -> None:
    united = fitted.united(given)
    unknown = [key for key in united.blocks if key not in fitted.blocks]
    if unknown:
        raise ValueError(
            f"target '{fitted.name}': no scale for the block ({fitted.describe(unknown[0])}), "
            "which was not in the data of the fit; known: "
            f"{[fitted.describe(key) for key in fitted.blocks]}"
        )
