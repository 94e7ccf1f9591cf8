"""Lines, tables and warnings about the scales when training starts: fitted, or kept."""

import copy
import math
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_info

from ..fitting import RandomSample
from ..reports import print_tables, print_text, write_tables
from ..scaling import LossSpaceSums, Scaler, TargetScales
from ..settings import Against, way_to_hide
from ..steps import ScaledModule, scaler_of
from .fit_settings import FitSettings
from .output_layers import scale_ratios
from .validation_check import describe_far_terms

# How much larger or smaller than expected the RMS of one batch may be.
LARGEST_RATIO = 10.0

Targets = Mapping[str, TargetScales]


def print_fit(
    scaler: Scaler,
    kept: set[str],
    changes: str | None,
    precision: RandomSample | None,
    folder: Path | None,
) -> None:
    """Print the tables of scales and baselines after a fit.

    Args:
        scaler: scaler of the module.
        kept: names of the targets whose scales were kept.
        changes: what changed in scales that the module already had.
        precision: what was read of the data, if a relative error was asked for.
        folder: folder in which a text file keeps the tables, if there is one.
    """
    if changes is not None:
        print_text(changes)
    fitted = ", ".join(sorted(scaler.targets.keys() - kept))
    line = f"TargetScaler: fitted to the training data: {fitted}"
    if kept:
        line += f"; kept from before: {', '.join(sorted(kept))}"
    if fitted:
        print_text(line)
    if precision is not None:
        print_text(f"TargetScaler: {precision}")
    tables = scaler.table(), scaler.baselines_table()
    print_tables(*tables)
    if folder is not None:
        write_tables(folder / "target_scales.txt", *tables)


def report_kept_scales(
    module: ScaledModule, batch: Any, kept: Collection[str], read_data: bool
) -> set[str]:
    """Say that scales were kept, and how they suit the first batch of training.

    Warns of targets whose RMS in loss space is far from 1, unless their scale is fixed.

    Args:
        module: module with scales.
        batch: first batch of training, as ``training_step`` receives it.
        kept: names of the targets whose scales were kept.
        read_data: whether the training data were read for other scales or the baseline.

    Returns:
        Names of the targets that the warning is about.
    """
    scaler = scaler_of(module)
    sums = LossSpaceSums()
    try:
        # An unpack_batch may take the members out of the batch that the step needs next.
        systems, targets, masks = module._scaling_unpack(copy.copy(batch))
        sums.add(scaler, systems, targets, masks, kept)
        rms = {n: size.rms for n, size in sums.sizes(scaler).items() if n in scaler.targets}
        values = ", ".join(f"{name} {value:.3g}" for name, value in rms.items())
        found = f". RMS of the first training batch in loss space: {values}" if values else ""
    except Exception as error:
        # A training_step of the user's need not be able to unpack or convert its batches.
        found = f". The first training batch could not be compared with them: {error}"
    fitted = scaler.targets.keys() - kept
    which = f"of {', '.join(sorted(kept))} " if fitted else ""
    rank_zero_info(
        f"TargetScaler: the scales {which}that the module already had (from a checkpoint or an "
        f"earlier fit) are kept{'' if read_data else ', without a data pass'}"
        f"{found}"
    )
    if not scaler.settings.enabled:
        return set()
    far = {
        term: words
        for term, words in describe_far_terms(scaler, sums, LARGEST_RATIO).items()
        if term in scaler.targets and scaler.targets[term].fixed is None
    }
    if far:
        warnings.warn(
            "the target scales that were kept may not suit these data: the RMS of the first "
            f"training batch in loss space is {', '.join(far.values())}, where about 1 is "
            "expected; if the level of theory has changed, fit the baseline again with "
            "TargetScaler(refit='baseline'); if units have changed, fit new scales with "
            "TargetScaler(refit=True)"
            f"{way_to_hide('the target scales that were kept may not suit these data')}",
            stacklevel=2,
        )
    return set(far)


def describe_changes(before: Targets, after: Targets, request: FitSettings) -> str:
    """What changed, and by how much.

    Args:
        before: scales that the module had, by target name.
        after: scales after the fit.
        request: what was fitted again.
    """
    added = _describe_new_types(before, after)
    if request.refit == "types":
        words = [f"refit='types' {added or 'found no new atomic types'}"]
        words += ["all numbers that were there are kept"]
    elif request.refit == "baseline":
        words = [*_describe_new_baseline(before, after, request.against), added]
    elif request.refit == "scales":
        words = [_describe_new_scales(before, after, request.output_layers), added]
    else:
        words = _describe_new_fit(before, after)
    return "TargetScaler: " + "; ".join(word for word in words if word)


def _describe_new_baseline(before: Targets, after: Targets, against: Against) -> list[str]:
    kept = _unchanged_types(before, after)
    rms = {name: after[name].mean_squares.get("") for name in before if after[name].weights}
    known = [f"{name} {math.sqrt(m):.3g}" for name, m in rms.items() if m is not None]
    return [
        f"refit='baseline' kept the scales and fitted the contributions to the {against}",
        _describe_largest_changes(before, after),
        f"those of the types {kept} are as before" if kept else "",
        f"the RMS of the data in loss space is now {', '.join(known)}" if known else "",
    ]


def _describe_new_scales(before: Targets, after: Targets, layers: Mapping[str, str]) -> str:
    absorbed = [
        f"{name} (multiplied by {_describe_ratio(before[name], after[name])}; the parameters of "
        f"{layer} divided by it)"
        for name, layer in layers.items()
        if after[name] is not before[name]
    ]
    if not absorbed:
        return "refit='scales' found the scales that the module already has"
    return f"refit='scales' replaced the scales of {', '.join(absorbed)}"


def _describe_new_fit(before: Targets, after: Targets) -> list[str]:
    in_both = [name for name in before if name in after]
    ratios = {name: _describe_ratio(before[name], after[name]) for name in in_both}
    by_target = ", ".join(f"{name} by {ratio}" for name, ratio in ratios.items() if ratio)
    multiplied = f", which multiplies what the network has learned: {by_target}"
    lost = ", ".join(sorted(before.keys() - after.keys()))
    types = sorted(set().union(*(_types_of(before[n]) - _types_of(after[n]) for n in in_both)))
    return [
        f"refit=True replaced the scales{multiplied if by_target else ''}",
        _describe_largest_changes(before, after),
        f"without scales now: {lost}" if lost else "",
        f"without scales or contributions now: the types {types}" if types else "",
        "refit='types' and refit='baseline' keep the scales",
    ]


def _describe_new_types(before: Targets, after: Targets) -> str:
    """The new atomic types of each target, in words."""
    added: dict[tuple[int, ...], list[str]] = {}
    for name in (name for name in before if name in after):
        types = _types_of(after[name]) - _types_of(before[name])
        if types:
            added.setdefault(tuple(sorted(types)), []).append(name)
    words = [f"{list(types)} to {', '.join(names)}" for types, names in added.items()]
    return f"added the atomic types {' and '.join(words)}" if words else ""


def _types_of(scales: TargetScales) -> set[int]:
    types = {*scales.row_of_type()} - {-1}
    return types | scales.set_of_baseline_types if scales.weights else types


def _describe_largest_changes(before: Targets, after: Targets) -> str:
    """The largest change of a contribution to each target, in words."""
    words = []
    for name in before:
        changes = _changes_of_types(before[name], after[name]) if name in after else {}
        largest = max(changes, key=lambda z: changes[z], default=None)
        if largest is not None and changes[largest]:
            words.append(f"{changes[largest]:.3g} for {name} (type {largest})")
    return f"contributions changed by up to {', '.join(words)}" if words else ""


def _unchanged_types(before: Targets, after: Targets) -> list[int]:
    """The types whose contributions to all targets are the same to the bit."""
    changes = [_changes_of_types(before[name], after[name]) for name in before]
    same = {z for of_target in changes for z, size in of_target.items() if size == 0.0}
    return sorted(same - {z for of_target in changes for z, size in of_target.items() if size})


def _changes_of_types(before: TargetScales, after: TargetScales) -> dict[int, float]:
    """The largest change of the contributions of each type that has some in both."""
    changes: dict[int, float] = {}
    types = [z for z in before.baseline_types.tolist() if z in after.baseline_types.tolist()]
    for key in before.weights.keys() & after.weights.keys():
        for z in types:
            old, new = (
                scales.weights[key][int((scales.baseline_types == z).nonzero())]
                for scales in (before, after)
            )
            if old.shape == new.shape and len(old):
                changes[z] = max(changes.get(z, 0.0), float((new - old).abs().max()))
    return changes


def _describe_ratio(before: TargetScales, after: TargetScales) -> str:
    """The range of new / old over all types and properties of a target, in words."""
    ratios = scale_ratios(before, after)
    if not len(ratios) or before.layout.sample_kind == "pair":
        return ""
    low, high = f"{float(ratios.min()):.3g}", f"{float(ratios.max()):.3g}"
    return low if low == high else f"{low} to {high}"
