"""The fitted baseline of every row of a block."""

import math

import torch
from metatensor.torch import TensorMap

from ..batches import Atoms, find_types
from ..tensors import Key
from .target_scales import TargetScales


def offset_of_rows(
    scales: TargetScales,
    key: Key,
    atoms: Atoms,
    rows: torch.Tensor | None,
    tensor: TensorMap,
    row: int,
    missing: bool,
) -> torch.Tensor:
    """The baseline of every row of a block, in a shape that expands to that of its values.

    Args:
        scales: of the target, with weights for this block.
        key: of the block.
        atoms: of the batch.
        rows: index of every row's atom or system; ``None`` for all of them in order.
        tensor: that the block is of.
        row: of its key among those of the tensor.
        missing: whether NaN values are missing ones, which need no weight.

    Raises:
        ValueError: for types without a weight.
    """
    offset, complete = _baseline(scales, key, atoms)
    if rows is not None:
        offset = offset[rows]
    components = scales.layout.blocks[key].components
    offset = offset.reshape(offset.shape[0], *[1] * len(components), offset.shape[-1])
    if len(components) == 2 and scales.layout.invariance(key) == "trace":
        diagonal = torch.eye(len(components[0]), dtype=torch.bool, device=offset.device)[..., None]
        offset = torch.where(diagonal, offset, 0.0)
    if not complete:
        lacking = offset.isnan()
        if missing:
            lacking = lacking & ~tensor.block_by_id(row).values.isnan()
        if bool(lacking.any()):
            found = lacking.flatten(1).any(1)
            found = found.nonzero()[:, 0] if rows is None else rows[found]
            _refuse_types_without_weight(scales, key, atoms, found)
    return offset


def _baseline(scales: TargetScales, key: Key, atoms: Atoms) -> tuple[torch.Tensor, bool]:
    """The baseline of all systems or atoms, ``(n, n_properties)``, and whether none lacks it.

    NaN where a type has no weight. The types that occur are known on the CPU, so that nothing
    waits for another device.
    """
    of_kinds = scales.weights[key]
    if not torch.equal(atoms.kinds, scales.baseline_types):
        index, known = find_types(atoms.kinds, scales.baseline_types)
        of_kinds = of_kinds.new_full((len(index), of_kinds.shape[1]), torch.nan)
        of_kinds[known] = scales.weights[key][index[known]]
    complete = math.isfinite(float(of_kinds.sum()))
    of_kinds = of_kinds.to(atoms.types.device, non_blocking=True)
    if scales.layout.kind == "atom":
        return atoms.of_kinds(of_kinds), complete
    if complete:
        return atoms.kinds_in_systems @ of_kinds, True
    lacking = atoms.kinds_in_systems @ of_kinds.isnan().to(of_kinds.dtype)
    offset = atoms.kinds_in_systems @ of_kinds.nan_to_num()
    return torch.where(lacking > 0, torch.nan, offset), False


def _refuse_types_without_weight(
    scales: TargetScales, key: Key, atoms: Atoms, rows: torch.Tensor
) -> None:
    if scales.layout.kind == "atom":
        types = atoms.types[rows]
    else:
        types = atoms.types[torch.isin(atoms.system_of_atom, rows)]
    fitted = scales.baseline_types[~scales.weights[key].isnan().any(1)].tolist()
    lacking = sorted(set(types.tolist()) - set(fitted))
    raise ValueError(
        f"target '{scales.layout.name}', block ({scales.layout.describe(key)}): no baseline for "
        f"the atomic types {lacking}, which were not in the data of the fit (types {fitted}); give "
        "them in fixed_baseline, or fit on data that have them"
    )
