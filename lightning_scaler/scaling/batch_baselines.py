"""The baseline of the rows of a batch: contributions of an additive module, and a composition."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..baselines import Contribution, FrozenModule, align_contributions
from ..batches import Atoms, IndexedBatch, IndexedTarget, find_types
from ..settings import Settings
from ..tensors import Key
from .baseline_warnings import refuse_unseen_types, warn_of_ignored_types, warn_of_lost_values
from .target_scales import TargetScales


def find_contributions(
    scales: Mapping[str, TargetScales], additive: FrozenModule, batch: IndexedBatch
) -> dict[str, list[Contribution | None]]:
    """What an additive module contributes to each block of the targets that have contributions.

    Args:
        scales: scales by target name.
        additive: module that contributes to some of the targets.
        batch: targets of the batch, all of which have scales.

    Raises:
        ValueError: if the module gives none for a target that was fitted with them.
    """
    names = [name for name in batch.targets if scales[name].additive]
    if not names:
        return {}
    outputs = additive(batch.atoms, names)
    missing = [name for name in names if name not in outputs and batch.atoms.n_systems]
    if missing:
        raise ValueError(
            f"additive module {additive.name}: expected contributions to the targets {missing}, "
            f"with which their scales were fitted, got {sorted(outputs)}; construct the module as "
            "in the fit"
        )
    tensors = {name: batch.targets[name].tensor for name in names}
    return align_contributions(outputs, tensors, batch.atoms, batch.indexing)


def baselines_of_blocks(
    scales: TargetScales,
    target: IndexedTarget,
    atoms: Atoms,
    settings: Settings,
    contributions: Sequence[Contribution | None] | None,
    of_targets: bool,
) -> list[Tensor | None]:
    """The contributions and the composition baseline of every row, for each block.

    Args:
        scales: scales of the target.
        target: target in the space from which it is converted.
        atoms: atoms of the batch.
        settings: settings of the scaler.
        contributions: contributions of an additive module to each block.
        of_targets: whether the tensor is a target, whose missing values need no baseline.

    Returns:
        For each block a tensor that expands to its values; ``None`` without a baseline; none at
        all if no block can have one.
    """
    baselines: list[Tensor | None] = []
    if not scales.weights and contributions is None:
        return baselines
    for i, key in enumerate(target.layout.blocks):
        baseline = None
        if key in scales.weights:
            baseline = _composition_baseline(scales, target, i, key, atoms, settings, of_targets)
        contribution = contributions[i] if contributions else None
        if contribution is not None:
            added = contribution.values
            baseline = added if baseline is None else baseline + added
        baselines.append(baseline)
    return baselines


def _composition_baseline(
    scales: TargetScales,
    target: IndexedTarget,
    index: int,
    key: Key,
    atoms: Atoms,
    settings: Settings,
    of_targets: bool,
) -> Tensor:
    """The composition baseline of every row of a block; see :func:`baselines_of_blocks`.

    Types without a weight have a baseline of 0.

    Raises:
        ValueError: for types without a weight, where the settings do not allow them.
    """
    unknown = scales.unknown.get(key)
    rows = target.rows[index] if target.rows else None
    all_known = atoms.set_of_types <= scales.set_of_baseline_types
    # Missing values of a target need no weight; predictions need all of them.
    values = None
    if of_targets and (not all_known or unknown is not None):
        # Reading them takes as long as the baseline.
        values = target.tensor.block_by_id(index).values
    ignored = settings.unseen_types == "identity" and "ignored type" in scales.warnings_given
    if not all_known and not settings.provisional and not ignored:
        unseen = _find_unseen_types(scales, atoms, rows, values)
        if unseen and settings.unseen_types != "identity":
            refuse_unseen_types(scales, key, unseen)
        if unseen:
            warn_of_ignored_types(scales, unseen)
    baseline = _weights_of_rows(scales, key, atoms, rows)
    if values is None or unknown is None or "lost value" in scales.warnings_given:
        return baseline
    if bool((baseline.isnan() & ~values.isnan()).any()):
        warn_of_lost_values(scales)
    return baseline


def _find_unseen_types(
    scales: TargetScales, atoms: Atoms, rows: Tensor | None, values: Tensor | None
) -> list[int]:
    """The types of some rows that have no weight, because they were not in the data of the fit.

    Args:
        scales: scales of the target.
        atoms: atoms of the batch.
        rows: index of every row's system, or atom; ``None`` for all of them in batch order.
        values: values of the block, where a row whose values are all missing (NaN) needs no weight;
            ``None`` for predictions, which need all weights.
    """
    unseen = ~find_types(atoms.unique_types, scales.baseline_types)[1]
    affected = _sum_over_types(scales, atoms, unseen[:, None].double())[:, 0] > 0.0
    affected = affected if rows is None else affected[rows]
    if values is not None:
        affected = affected & ~values.isnan().flatten(1).all(1)
    found = affected.nonzero()[:, 0] if rows is None else rows[affected]
    if scales.layout.sample_kind == "atom":
        types = atoms.types[found]
    else:
        types = atoms.types[torch.isin(atoms.system_of_atom, found)]
    return sorted({*types.tolist()} - scales.set_of_baseline_types)


def _weights_of_rows(scales: TargetScales, key: Key, atoms: Atoms, rows: Tensor | None) -> Tensor:
    """The sum of the weights in every row, in a shape that expands to the values of the block.

    Args:
        scales: scales of the target.
        key: key of the block.
        atoms: atoms of the batch.
        rows: index of every row's system, or atom; ``None`` for all of them in batch order.

    Returns:
        NaN where a structure has a type with an unknown weight.
    """
    weights, unknown = scales.weights[key], scales.unknown.get(key)
    # The types that occur are known on the CPU, so that nothing waits for another device.
    if not torch.equal(atoms.unique_types, scales.baseline_types):
        column, seen = find_types(atoms.unique_types, scales.baseline_types)
        weights = _select(weights, column, seen)
        unknown = None if unknown is None else _select(unknown, column, seen)
    baseline = _sum_over_types(scales, atoms, weights)
    if unknown is not None and bool(unknown.any()):
        n_unknown = _sum_over_types(scales, atoms, unknown.to(weights.dtype))
        baseline = torch.where(n_unknown > 0.0, torch.nan, baseline)
    if rows is not None:
        baseline = baseline[rows]
    components = scales.layout.blocks[key].components
    baseline = baseline.reshape(baseline.shape[0], *[1] * len(components), baseline.shape[-1])
    if len(components) == 2 and scales.layout.invariance(key) == "trace":
        diagonal = torch.eye(len(components[0]), dtype=torch.bool, device=baseline.device)
        baseline = torch.where(diagonal[..., None], baseline, 0.0)
    return baseline


def _select(by_type: Tensor, column: Tensor, seen: Tensor) -> Tensor:
    """Rows of a table by type for other types; zeros for those that were not seen."""
    selected = by_type.new_zeros((len(column), by_type.shape[1]))
    selected[seen] = by_type[column[seen]]
    return selected


def _sum_over_types(scales: TargetScales, atoms: Atoms, weights: Tensor) -> Tensor:
    """The weights of the unique types for every atom, or added up for every system.

    Args:
        scales: scales of the target.
        atoms: atoms of the batch.
        weights: ``(n_unique_types, n_properties)``, on the CPU.

    Returns:
        ``(n_atoms, n_properties)`` for per-atom targets, else ``(n_systems, n_properties)``.
    """
    weights = weights.to(atoms.types.device, non_blocking=True)
    if scales.layout.sample_kind == "atom":
        return atoms.gather_by_type(weights)
    fractions = scales.composition == "fractions"
    return (atoms.type_fractions if fractions else atoms.type_counts) @ weights
