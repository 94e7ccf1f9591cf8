"""The values of a Scaler that its tables and its picture show."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from ..settings import label_types, list_or_count, name_of_type
from ..tensors import TargetLayout
from .target_scales import TargetScales

if TYPE_CHECKING:
    from ..reports import BaselineOfTarget, DrawnScales, ScalesOfTarget

# Shorter, and as they are written by hand.
NAMES = {"o3_lambda": "λ", "o3_sigma": "σ"}


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
                (
                    name_of_type(z),
                    [scales.weights_or_nan(key)[row].tolist() for key in scales.weights],
                )
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


def describe_targets(targets: Mapping[str, TargetScales]) -> str:
    """The targets, and the atomic types of the per-atom ones, in words."""
    words = []
    for name, scales in targets.items():
        types = scales.types.tolist()
        suffix = f": {len(types)} types" if len(types) > 12 else f": types {types}"
        words.append(name + (suffix if scales.layout.sample_kind == "atom" else ""))
    return ", ".join(words)


def scales_to_draw(targets: Mapping[str, TargetScales]) -> list[DrawnScales]:
    """The scales of each target that has any, with labels."""
    from ..reports import DrawnScales

    drawn = []
    for name, scales in targets.items():
        per_atom, labels = scales.layout.sample_kind == "atom", _label_properties(scales.layout)
        if labels and scales.layout.sample_kind != "pair":
            types = label_types(scales.types.tolist()) if per_atom else []
            drawn.append(
                DrawnScales(
                    name, types, labels, _values(scales), scales.rms_before, scales.extensive
                )
            )
    return drawn


def _label_properties(layout: TargetLayout) -> list[str]:
    """The properties of all blocks in a few words: what differs between them, and nothing else.

    Returns:
        One label for each property, in the order of the blocks: ``"λ=2, n=1"``, or ``"λ=2"`` if
        nothing else differs; ``""`` for a single property.
    """
    rows: list[dict[str, int]] = []
    for key, block in layout.blocks.items():
        of_block = dict(zip(layout.key_names, key, strict=True))
        for values in block.properties.values.tolist():
            rows.append({**of_block, **dict(zip(block.properties.names, values, strict=True))})
    names = list(dict.fromkeys(name for row in rows for name in row))
    differ = [name for name in names if len({row.get(name) for row in rows}) > 1]
    return [_label(row, differ) for row in rows]


def _label(row: Mapping[str, int], names: Iterable[str]) -> str:
    parts = [
        label_types([row[name]])[0]
        if name == "atom_type"
        else f"{NAMES.get(name, name)}={row[name]}"
        for name in names
        if name in row
    ]
    return ", ".join(parts)


def _values(scales: TargetScales) -> list[list[float]]:
    """For each property of each block, the scale of each type; NaN where the block has none."""
    types, layout = scales.types.tolist(), scales.layout
    rows = []
    for key in layout.blocks:
        values: list[list[float]] = scales.values("full", key)[: len(types)].T.tolist()
        if "atom_type" in layout.key_names and layout.sample_kind == "atom":
            own = key[layout.key_names.index("atom_type")]
            values = [_only_own_type(row, types, own) for row in values]
        rows += values
    return rows


def _only_own_type(values: Sequence[float], types: Sequence[int], own: int) -> list[float]:
    return [v if z == own else float("nan") for v, z in zip(values, types, strict=True)]
