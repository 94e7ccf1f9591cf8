"""What differs between two scalers."""

import math
from collections.abc import Iterator
from dataclasses import asdict
from typing import NamedTuple

from ..settings import name_of_type, same_unit, with_atoms
from ..tensors import Key, describe, digest
from .scaler import Scaler
from .target_scales import TargetScales


class Value(NamedTuple):
    """A setting or a number of a scaler.

    Attributes:
        value: a number, or a setting in words.
        size: what an error of the number is compared with, besides the number itself.
        unit: unit of the number; ``""`` if it has none, or it is not known.
    """

    value: float | str
    size: float = 0.0
    unit: str = ""


class Difference(NamedTuple):
    """Something that differs between two scalers.

    Attributes:
        target: name of the target; empty for settings of all.
        what: what differs, in words.
        values: both values in words; ``"–"`` where there is none.
        relative: relative difference of two numbers; ``None`` for anything else.
        unit: unit of the numbers, if both files have the same one or only one of them says so.
    """

    target: str
    what: str
    values: tuple[str, str]
    relative: float | None
    unit: str = ""


def find_differences(one: Scaler, two: Scaler, tolerance: float = 1e-9) -> list[Difference]:
    """The settings, units, scales, baseline weights and mean squares that differ.

    Units differ where both are known.
    Numbers are compared by their relative difference, weights of a baseline by the difference
    relative to the weight or to the scale of the target, whichever is larger.

    Args:
        one: fitted scaler.
        two: fitted scaler.
        tolerance: largest relative difference that does not count.
    """
    ours, theirs = dict(_values(one)), dict(_values(two))
    found = [
        Difference(name, "unit", (one.units[name], two.units[name]), None)
        for name in one.units
        if not same_unit(one.units[name], two.units.get(name, one.units[name]))
    ]
    for key in {**ours, **theirs}:
        a, b = ours.get(key, Value("–")), theirs.get(key, Value("–"))
        relative = _relative_difference(a, b)
        if a.value != b.value if relative is None else relative > tolerance:
            different = a.unit and b.unit and not same_unit(a.unit, b.unit)
            unit = "" if different else a.unit or b.unit
            found.append(Difference(*key, (_text(a), _text(b)), relative, unit))
    return found


def _values(scaler: Scaler) -> Iterator[tuple[tuple[str, str], Value]]:
    """All settings and numbers by target and name."""
    for name, setting in asdict(scaler.settings).items():
        yield ("", name), Value(str(setting))
    if scaler.additive is not None:
        state = digest(scaler.additive.state())[:8]
        yield ("", "additive module"), Value(f"{scaler.additive.name}, weights {state}")
    for name, scales in scaler.targets.items():
        for what, value in _values_of_target(scales, scaler.units.get(name, "")):
            yield (name, what), value


def _values_of_target(scales: TargetScales, unit: str) -> Iterator[tuple[str, Value]]:
    layout, unit_of_scale = scales.layout, with_atoms(unit, scales.extensive) if unit else ""
    yield "samples", Value(layout.sample_kind + ("/atom" if scales.extensive else ""))
    yield "composition", Value(scales.composition)
    for key, block in layout.blocks.items():
        sizes = [len(component) for component in block.components]
        yield f"components of block ({layout.describe(key)})", Value(str(sizes))
    for z, row in scales.row_of_type().items():
        yield f"scale{_of_type(z)}", Value(float(scales.per_target[row]), unit=unit_of_scale)
    for key, table in scales.per_property.items() if not layout.single_property else ():
        for row, z in enumerate(scales.types.tolist()):
            for column, value in enumerate(table[row].tolist()):
                place = _place(scales, key, column)
                yield f"per-property scale{place}{_of_type(z)}", Value(value)
    # Not the scale of 1 that types without any have under unseen_types="identity".
    rows = scales.row_of_type().values()
    size = max((float(scales.per_target[row]) for row in rows), default=0.0)
    for key in scales.weights:
        weights = scales.weights_or_nan(key)
        for row, z in enumerate(scales.baseline_types.tolist()):
            for column, value in enumerate(weights[row].tolist()):
                place = _place(scales, key, column)
                found = Value("unknown") if math.isnan(value) else Value(value, size, unit)
                yield f"baseline{place}{_of_type(z)}", found
    for term, mean_square in scales.mean_squares.items():
        yield f"mean square of {term or 'the values'}", Value(mean_square)


def _of_type(atomic_type: int) -> str:
    return "" if atomic_type == -1 else f", type {name_of_type(atomic_type)}"


def _place(scales: TargetScales, key: Key, column: int) -> str:
    """The block and the property, where there are several."""
    layout = scales.layout
    words = [] if len(layout.blocks) == 1 else [f", block ({layout.describe(key)})"]
    if layout.blocks[key].n_properties > 1:
        words.append(f", property ({describe(layout.blocks[key].properties, column)})")
    return "".join(words)


def _relative_difference(a: Value, b: Value) -> float | None:
    if isinstance(a.value, str) or isinstance(b.value, str):
        return None
    if a.value == b.value or (math.isnan(a.value) and math.isnan(b.value)):
        return 0.0
    difference = abs(a.value - b.value) / max(abs(a.value), abs(b.value), a.size, b.size)
    return math.inf if math.isnan(difference) else difference


def _text(value: Value) -> str:
    return value.value if isinstance(value.value, str) else f"{value.value:.10g}"
