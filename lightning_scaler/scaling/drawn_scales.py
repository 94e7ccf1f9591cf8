"""The values of a Scaler that its picture shows, with the labels of types and properties."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from ..settings import label_types
from ..tensors import TargetLayout
from .target_scales import TargetScales

if TYPE_CHECKING:
    from ..reports import DrawnScales

# Shorter, and as they are written by hand.
NAMES = {"o3_lambda": "λ", "o3_sigma": "σ"}


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
