"""The values of a Scaler that its tables show."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from ..settings import list_or_count, name_of_type
from ..tensors import Key
from .target_scales import TargetScales

if TYPE_CHECKING:
    from ..reports import BaselineOfTarget, ScalesOfTarget


def summarize_scales(
    targets: Mapping[str, TargetScales], units: Mapping[str, str]
) -> list[ScalesOfTarget]:
    """The scales of every target, by atomic type.

    Args:
        targets: scales by target name.
        units: units by target name, where they are known.
    """
    from ..reports import ScalesOfTarget

    return [
        ScalesOfTarget(
            name,
            scales.layout.sample_kind,
            scales.rms_before,
            scales.rms_after if scales.weights or scales.additive else None,
            [
                (
                    "all" if atomic_type == -1 else name_of_type(atomic_type),
                    float(scales.per_target[row]),
                    [values[row].tolist() for values in scales.per_property.values()],
                )
                for row, atomic_type in enumerate(scales.types.tolist())
            ],
            [] if scales.relative_errors is None else scales.relative_errors.tolist(),
            scales.extensive,
            units.get(name, ""),
        )
        for name, scales in targets.items()
    ]


def summarize_baselines(
    targets: Mapping[str, TargetScales], units: Mapping[str, str], module: str | None
) -> list[BaselineOfTarget]:
    """The baseline of every target.

    Args:
        targets: scales by target name.
        units: units by target name, where they are known.
        module: class name of the additive module, if there is one.
    """
    from ..reports import BaselineOfTarget

    return [
        BaselineOfTarget(
            name,
            scales.explained_variance,
            module if scales.additive else None,
            [
                (name_of_type(z), [_known_weights(scales, key, row) for key in scales.weights])
                for row, z in enumerate(scales.baseline_types.tolist())
            ]
            if scales.weights
            else [],
            units.get(name, ""),
        )
        for name, scales in targets.items()
    ]


def summarize_zeros(targets: Mapping[str, TargetScales]) -> list[str]:
    """The properties of every target whose values are all exactly 0, or their number."""
    lines = []
    for name, scales in targets.items():
        words = scales.layout.describe_properties(scales.zeros, scales.types)
        if words:
            lines.append(f"target '{name}', {list_or_count(words, 'properties')}")
    return lines


def _known_weights(scales: TargetScales, key: Key, row: int) -> list[float]:
    """The weights of a type in a block, NaN where unknown."""
    weights, unknown = scales.weights[key][row], scales.unknown.get(key)
    weights = weights if unknown is None else torch.where(unknown[row], torch.nan, weights)
    found: list[float] = weights.tolist()
    return found


def describe_targets(targets: Mapping[str, TargetScales]) -> str:
    """The targets, and the atomic types of the per-atom ones, in words."""
    words = []
    for name, scales in targets.items():
        types = scales.types.tolist()
        suffix = f": {len(types)} types" if len(types) > 12 else f": types {types}"
        words.append(name + (suffix if scales.layout.sample_kind == "atom" else ""))
    return ", ".join(words)
