"""Warnings and errors about atomic types without a baseline; each warning once per target."""

import warnings
from collections.abc import Iterable, Mapping
from typing import NoReturn

from ..batches import Atoms
from ..settings import list_or_count
from ..tensors import Key
from .target_scales import TargetScales


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


def warn_of_lost_values(target: TargetScales) -> None:
    """Warn of values of a target that become NaN, because a weight is unknown."""
    target.warnings_given.add("lost value")
    warnings.warn(
        "values of a target count as missing where a structure contains an atomic type for which "
        "the data of the fit have no value of the property, so that its baseline is unknown: "
        f"{describe_unknown([target])}; {way_out_of_unknown({target.layout.name: target})}, and "
        "fit again",
        stacklevel=4,
    )


def warn_of_ignored_types(target: TargetScales, unseen: list[int]) -> None:
    """Warn of types that were not in the data of the fit, and have no baseline."""
    target.warnings_given.add("ignored type")
    warnings.warn(
        f"target '{target.layout.name}': no baseline is subtracted for the atomic types "
        f"{unseen}, which were not in the data of the fit (unseen_types='identity')",
        stacklevel=4,
    )


def refuse_unseen_types(target: TargetScales, key: Key, unseen: list[int]) -> NoReturn:
    """Raise the error about types without a weight in a block, with the ways out."""
    layout = target.layout
    several = layout.blocks[key].n_properties > 1
    way_out = "" if several else "give them in fixed_baseline (all other types are still fitted), "
    raise ValueError(
        f"target '{layout.name}', block ({layout.describe(key)}): no baseline for the atomic types "
        f"{unseen}, which were not in the {target.data_of_fit} (types "
        f"{target.baseline_types.tolist()}); {way_out}fit on data that have them "
        "(TargetScaler(refit='types') adds them to restored scales and keeps all other numbers), "
        "or set unseen_types='identity' to subtract no baseline for them"
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
