"""Names and units of the outputs of an exported model."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from metatomic.torch import unit_conversion_factor, unit_dimension_for_quantity

from ..scaling import TargetScales
from ..settings import did_you_mean, plain_unit

DOMAIN = "lightning_scaler"

# A unit of each dimension that metatomic knows; its parser compares dimensions.
UNITS = {
    "charge": "e",
    "energy": "eV",
    "force": "eV/A",
    "heat_flux": "eV*A/fs",
    "length": "A",
    "mass": "u",
    "momentum": "u*A/fs",
    "none": "1",
    "pressure": "eV/A^3",
    "velocity": "A/fs",
}
MANY_PROPERTIES = ("energy_ensemble", "feature")


class Output(NamedTuple):
    """One output of an exported model.

    Attributes:
        target: name of the target.
        name: name of the output in metatomic.
        unit: its unit, as an expression such as ``"kcal/mol"``; ``"1"`` if it has no dimension.
        property_name: name that metatomic wants for its only property, ``""`` if it wants none.
    """

    target: str
    name: str
    unit: str
    property_name: str


def parse_outputs(
    outputs: Mapping[str, Any] | Sequence[str],
    targets: Mapping[str, TargetScales],
    units: Mapping[str, str],
) -> dict[str, Output]:
    """Check the names and units of the targets to export.

    Args:
        outputs: unit of each target by name, or a mapping with ``unit`` and ``name``; or only the
            names of the targets.
        targets: scales by target name.
        units: units in the data by target name, where they are known.

    Returns:
        The outputs by their name in metatomic.

    Raises:
        ValueError: for unknown targets, missing or unknown units, units of the wrong dimension or
            other than in the data, names that metatomic refuses, and two targets of one name.
        TypeError: for anything but a mapping or a list of names.
    """
    names = [] if isinstance(outputs, (str, Mapping)) else outputs
    if isinstance(names, Sequence) and all(isinstance(name, str) for name in names):
        outputs = dict.fromkeys(names) or outputs
    if not isinstance(outputs, Mapping) or not outputs:
        raise TypeError(
            "outputs: expected the unit of each target to export, such as {'energy': 'eV'}, got "
            f"{outputs!r}; targets of the scaler: {sorted(targets)}"
        )
    parsed: dict[str, Output] = {}
    for target, setting in outputs.items():
        if target not in targets:
            raise ValueError(
                f"outputs names the target '{target}', which has no scales; "
                f"{did_you_mean(str(target), targets)}"
            )
        output = _parse_output(target, setting, plain_unit(units.get(target, "")))
        if output.name in parsed:
            raise ValueError(
                f"outputs: the targets '{parsed[output.name].target}' and '{target}' have the same "
                f"name '{output.name}'; give one of them another, such as '{output.name}/2'"
            )
        if output.property_name:
            _check_layout(output, targets[target])
        parsed[output.name] = output
    return parsed


def parse_length_unit(unit: str, outputs: Iterable[Output], units: Mapping[str, str]) -> str:
    """Check the unit of positions, also against the units of forces where these are known.

    Args:
        unit: unit of positions.
        outputs: outputs, as parsed.
        units: units in the data by target name, gradients included, where they are known.

    Returns:
        The unit in the notation of metatomic.

    Raises:
        ValueError: for anything but a unit of length, and for another one than in the data.
        TypeError: for anything but a string.
    """
    expected = "length_unit: expected a unit of length, such as 'angstrom' or 'bohr', got"
    if not isinstance(unit, str):
        raise TypeError(f"{expected} {unit!r}")
    given, unit = unit, plain_unit(unit)
    try:
        if not unit:
            raise ValueError("it is empty")
        unit_conversion_factor(unit, "angstrom")
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{expected} {given!r}: {str(error).splitlines()[0]}") from None
    for output in outputs:
        name = f"{output.target}/positions"
        in_data = units.get(name, "")
        factor = _factor(plain_unit(in_data), f"{output.unit}/{unit}") if in_data else None
        # The values of constants differ a little between codes.
        if factor is not None and not math.isclose(factor, 1.0, rel_tol=1e-4):
            raise ValueError(
                f"length_unit: expected the unit of the positions in the data, where '{name}' is "
                f"in '{in_data}' and '{output.target}' in '{output.unit}', got {given!r}; give "
                "that of the data, or correct units of the TargetScaler"
            )
    return unit


def _parse_output(target: str, setting: Any, in_data: str) -> Output:
    where = f"outputs, target '{target}'"
    settings = setting if isinstance(setting, Mapping) else {"unit": setting}
    unknown = sorted(set(settings) - {"name", "unit"})
    if unknown:
        raise ValueError(f"{where}: expected 'name' and 'unit', got {unknown}")
    name = str(settings.get("name") or _default_name(target))
    try:
        dimension = unit_dimension_for_quantity(name)
    except ValueError as error:
        raise ValueError(f"{where}: metatomic refuses the name '{name}': {error}") from None
    unit = settings.get("unit") or in_data
    example = UNITS.get(dimension, "eV")
    if not isinstance(unit, str) or not unit.strip():
        raise ValueError(
            f"{where}: expected a unit, such as '{example}' ('1' if it has no dimension), got "
            f"{settings.get('unit')!r}, and the scaler has none either: TargetScaler(units=...)"
        )
    unit = plain_unit(unit)
    try:
        unit_conversion_factor(unit, UNITS.get(dimension, unit))
    except (RuntimeError, ValueError) as error:
        expected = f"a unit of {dimension}" if dimension in UNITS else "a unit"
        raise ValueError(
            f"{where}: expected {expected} for the output '{name}', such as '{example}', got "
            f"'{unit}': {str(error).splitlines()[0]}"
        ) from None
    if in_data and _factor(unit, in_data) not in (None, 1.0):
        raise ValueError(
            f"{where}: expected the unit in which the data were, '{in_data}' by units of the "
            f"TargetScaler, got '{unit}'; leave it out: engines convert it"
        )
    quantity = name.split("/")[0]
    named = dimension and quantity not in MANY_PROPERTIES
    return Output(target, name, unit, quantity if named else "")


def _factor(unit: str, other: str) -> float | None:
    """How many of the other unit one is; ``None`` if metatomic does not know."""
    try:
        return float(unit_conversion_factor(unit, other))
    except (RuntimeError, ValueError):
        return None


def _default_name(target: str) -> str:
    # The plurals of standard quantities are deprecated.
    candidates = [target] if "::" in target or "/" in target else [target.removesuffix("s"), target]
    for name in candidates:
        try:
            unit_dimension_for_quantity(name)
        except ValueError:
            continue
        return name
    return f"{DOMAIN}::{target}"


def _check_layout(output: Output, scales: TargetScales) -> None:
    layout = scales.layout
    if not layout.single_property or layout.key_names != ("_",):
        raise ValueError(
            f"outputs, target '{output.target}': the output '{output.name}' of metatomic has one "
            f"block, with the key '_' and one property, got keys {list(layout.key_names)} and "
            f"{sum(block.n_properties for block in layout.blocks.values())} properties; name it "
            f"'{DOMAIN}::{output.target}'"
        )
