"""What a fit changed in scales that a module already had, in one line."""

import math
from collections.abc import Mapping

import torch

from ..scaling import TargetScales
from ..settings import Against
from .fit_decision import FitRequest

Targets = Mapping[str, TargetScales]


def describe_changes(before: Targets, after: Targets, request: FitRequest) -> str:
    """What changed, and by how much.

    Args:
        before: scales that the module had, by target name.
        after: scales after the fit.
        request: what was fitted again.
    """
    added = _added(before, after)
    if request.refit == "types":
        words = [f"refit='types' {added or 'found no new atomic types'}"]
        words += ["all numbers that were there are kept"]
    elif request.refit == "baseline":
        words = [*_of_new_baseline(before, after, request.against), added]
    elif request.refit == "scales":
        words = [_of_new_scales(before, after, request.output_layers), added]
    else:
        words = _of_new_fit(before, after)
    return "TargetScaler: " + "; ".join(word for word in words if word)


def _of_new_baseline(before: Targets, after: Targets, against: Against) -> list[str]:
    kept = _unchanged_types(before, after)
    rms = {name: after[name].mean_squares.get("") for name in before if after[name].weights}
    known = [f"{name} {math.sqrt(m):.3g}" for name, m in rms.items() if m is not None]
    return [
        f"refit='baseline' kept the scales and fitted the contributions to the {against}",
        _changes_of_baseline(before, after),
        f"those of the types {kept} are as before" if kept else "",
        f"the RMS of the data in loss space is now {', '.join(known)}" if known else "",
    ]


def _of_new_scales(before: Targets, after: Targets, layers: Mapping[str, str]) -> str:
    absorbed = [
        f"{name} (multiplied by {_ratio(before[name], after[name])}; the parameters of {layer} "
        "divided by it)"
        for name, layer in layers.items()
        if after[name] is not before[name]
    ]
    if not absorbed:
        return "refit='scales' found the scales that the module already has"
    return f"refit='scales' replaced the scales of {', '.join(absorbed)}"


def _of_new_fit(before: Targets, after: Targets) -> list[str]:
    in_both = [name for name in before if name in after]
    ratios = {name: _ratio(before[name], after[name]) for name in in_both}
    by_target = ", ".join(f"{name} by {ratio}" for name, ratio in ratios.items() if ratio)
    multiplied = f", which multiplies what the network has learned: {by_target}"
    lost = ", ".join(sorted(before.keys() - after.keys()))
    types = sorted(set().union(*(_types(before[n]) - _types(after[n]) for n in in_both)))
    return [
        f"refit=True replaced the scales{multiplied if by_target else ''}",
        _changes_of_baseline(before, after),
        f"without scales now: {lost}" if lost else "",
        f"without scales or contributions now: the types {types}" if types else "",
        "refit='types' and refit='baseline' keep the scales",
    ]


def _added(before: Targets, after: Targets) -> str:
    """The new atomic types of each target, in words."""
    added: dict[tuple[int, ...], list[str]] = {}
    for name in (name for name in before if name in after):
        types = _types(after[name]) - _types(before[name])
        if types:
            added.setdefault(tuple(sorted(types)), []).append(name)
    words = [f"{list(types)} to {', '.join(names)}" for types, names in added.items()]
    return f"added the atomic types {' and '.join(words)}" if words else ""


def _types(scales: TargetScales) -> set[int]:
    types = {*scales.types.tolist(), *scales.fixed_only_types.tolist()} - {-1}
    return types | ({*scales.baseline_types.tolist()} if scales.weights else set())


def _changes_of_baseline(before: Targets, after: Targets) -> str:
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


def _ratio(before: TargetScales, after: TargetScales) -> str:
    """The range of new / old over all types and properties of a target, in words."""
    ratios = scale_ratios(before, after)
    if not len(ratios) or before.layout.sample_kind == "pair":
        return ""
    low, high = f"{float(ratios.min()):.3g}", f"{float(ratios.max()):.3g}"
    return low if low == high else f"{low} to {high}"


def scale_ratios(before: TargetScales, after: TargetScales) -> torch.Tensor:
    """New / old full scale of each type and property that both have, ``(n_ratios,)``."""
    ratios = [torch.empty(0, dtype=torch.float64)]
    rows = [
        [scales.types.tolist().index(z) for z in before.types.tolist() if z in after.types.tolist()]
        for scales in (before, after)
    ]
    for key in before.per_property.keys() & after.per_property.keys():
        old, new = before.values("full", key)[rows[0]], after.values("full", key)[rows[1]]
        if old.shape == new.shape:
            ratios.append((new / old)[old > 0.0])
    return torch.cat(ratios)
