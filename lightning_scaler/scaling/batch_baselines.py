"""The baseline of the rows of a batch, and warnings about atomic types without one.

Each warning is given once per target.
"""

import warnings
from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor

from ..baselines import (
    BlockWeights,
    Contribution,
    FrozenModule,
    align_contributions,
    baseline_of_rows,
    find_unseen_types,
    refuse_unseen_types,
)
from ..batches import Atoms, IndexedBatch, IndexedTarget
from ..settings import Settings, list_or_count
from ..tensors import Key
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
    """The composition baseline of every row of a block; see :func:`baselines_of_blocks`."""
    weights, unknown = scales.weights[key], scales.unknown.get(key)
    block = BlockWeights(
        scales.layout, key, scales.baseline_types, weights, unknown, scales.composition
    )
    rows = target.rows[index] if target.rows else None
    all_known = atoms.set_of_types <= scales.set_of_baseline_types
    # Missing values of a target need no weight; predictions need all of them.
    values = None
    if of_targets and (not all_known or unknown is not None):
        # Reading them takes as long as the baseline.
        values = target.tensor.block_by_id(index).values
    ignored = settings.unseen_types == "identity" and "ignored type" in scales.warnings_given
    if not all_known and not settings.provisional and not ignored:
        unseen = find_unseen_types(block, atoms, rows, values)
        if unseen and settings.unseen_types != "identity":
            refuse_unseen_types(block, unseen, scales.data_of_fit)
        if unseen:
            _warn_of_ignored_types(scales, unseen)
    baseline = baseline_of_rows(block, atoms, rows)
    if values is None or unknown is None or "lost value" in scales.warnings_given:
        return baseline
    if bool((baseline.isnan() & ~values.isnan()).any()):
        _warn_of_lost_values(scales)
    return baseline


def warn_of_unknown_predictions(scales: Mapping[str, TargetScales], atoms: Atoms) -> None:
    """Warn of predictions in physical space that are NaN, because a weight is unknown.

    Args:
        scales: scales of the targets that are converted, by name.
        atoms: atoms of the batch.
    """
    affected = {}
    for name, target in scales.items():
        if target.unknown and "unknown prediction" not in target.warnings_given:
            found = {*target.unknown_types} & {*atoms.unique_types.tolist()}
            if found:
                affected[name] = target
                target.warnings_given.add("unknown prediction")
    if affected:
        warnings.warn(
            "predictions are NaN in some properties of structures that contain certain atomic "
            "types, because the data of the fit have no value of the property for these types, so "
            f"that their baseline is unknown: {describe_unknown(affected.values())}; "
            f"{way_out_of_unknown(affected)}, and fit again",
            stacklevel=4,
        )


def _warn_of_lost_values(target: TargetScales) -> None:
    """Warn of values of a target that become NaN, because a weight is unknown."""
    if "lost value" not in target.warnings_given:
        target.warnings_given.add("lost value")
        warnings.warn(
            "values of a target count as missing where a structure contains an atomic type for "
            "which the data of the fit have no value of the property, so that its baseline is "
            f"unknown: {describe_unknown([target])}; "
            f"{way_out_of_unknown({target.layout.name: target})}, and fit again",
            stacklevel=4,
        )


def _warn_of_ignored_types(target: TargetScales, unseen: list[int]) -> None:
    """Warn of types that were not in the data of the fit, and have no baseline."""
    if "ignored type" not in target.warnings_given:
        target.warnings_given.add("ignored type")
        warnings.warn(
            f"target '{target.layout.name}': no baseline is subtracted for the atomic types "
            f"{unseen}, which were not in the data of the fit (unseen_types='identity')",
            stacklevel=4,
        )


def describe_unknown(scales: Iterable[TargetScales]) -> str:
    """The properties with unknown weights, and their types."""
    by_target = []
    for target in scales:
        layout, types, words = target.layout, target.baseline_types, []
        for key, unknown in target.unknown.items():
            for column in unknown.any(0).nonzero()[:, 0].tolist():
                of_property = types[unknown[:, column]].tolist()
                words.append(f"{layout.describe_property(key, column)}, types {of_property}")
        listed = list_or_count(words, f"properties, types {target.unknown_types}")
        by_target.append(f"target '{layout.name}', {listed}")
    return "; ".join(by_target)


def way_out_of_unknown(scales: Mapping[str, TargetScales]) -> str:
    """What a user can do about unknown weights of some targets."""
    names = sorted(scales)
    several = any(
        block.n_properties > 1
        for target in scales.values()
        for key, block in target.layout.blocks.items()
        if key in target.weights
    )
    fixed = "" if several else "give their contributions in fixed_baseline, "
    excluded = ", ".join(f"'{name}': 'none'" for name in names)
    return (
        f"label structures with these types, {fixed}or subtract no baseline from the target: "
        f"baseline={{{excluded}}}"
    )
