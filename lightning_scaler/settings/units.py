"""Units of targets, as users write them."""

import re
from collections.abc import Mapping

from .chemical_symbols import Numbers

UNIT_NOTATION = {"Å": "A", "·": "*", "⁻¹": "^-1", "⁻²": "^-2", "⁻³": "^-3", "²": "^2", "³": "^3"}
UNIT_SYMBOLS = {"a0": "bohr", "Ha": "Hartree"}


def parse_units(units: Numbers | None) -> dict[str, str]:
    """Check ``units``: a string for each target, or for a gradient under ``energy/positions``.

    Raises:
        TypeError: for anything else.

    Example:
        >>> parse_units({"energy": "eV", "energy/positions": "eV/Å"})
        {'energy': 'eV', 'energy/positions': 'eV/Å'}
    """
    if units is not None and not isinstance(units, Mapping):
        raise TypeError(
            f"units: expected a mapping by target name, such as {{'energy': 'eV'}}, got {units!r}"
        )
    plain = {str(name): unit for name, unit in (units or {}).items()}
    for name, unit in plain.items():
        if not isinstance(unit, str) or not unit.strip():
            raise TypeError(
                f"units of '{name}': expected a string such as 'eV', got {unit!r}; leave it out if "
                "the unit is not known"
            )
    return plain


def join_units(ours: Mapping[str, str], theirs: Mapping[str, str]) -> dict[str, str]:
    """The units of both.

    Raises:
        ValueError: for a target with two units, however these are written.

    Example:
        >>> join_units({"energy": "eV"}, {"charges": "e"})
        {'energy': 'eV', 'charges': 'e'}
    """
    for name in ours.keys() & theirs.keys():
        if not same_unit(ours[name], theirs[name]):
            raise ValueError(
                f"target '{name}': expected one unit, got {ours[name]!r} and {theirs[name]!r}; "
                "convert the data to one of them, or correct units (or unit in the declaration)"
            )
    return {**ours, **theirs}


def same_unit(one: str, other: str) -> bool:
    """Whether two units are the same, however they are written.

    Example:
        >>> same_unit("eV/Å", "eV / A"), same_unit("eV", "meV")
        (True, False)
    """
    return plain_unit(one) == plain_unit(other)


def plain_unit(unit: str) -> str:
    """A unit as people write it in ASCII, in the notation of metatomic.

    Example:
        >>> plain_unit("eV/Å"), plain_unit("e Å"), plain_unit("a0³")
        ('eV/A', 'e*A', 'bohr^3')
        >>> plain_unit("kJ mol⁻¹"), plain_unit("Ha")
        ('kJ*mol^-1', 'Hartree')
    """
    for written, meant in UNIT_NOTATION.items():
        unit = unit.replace(written, meant)
    for symbol, meant in UNIT_SYMBOLS.items():
        unit = re.sub(rf"\b{symbol}\b", meant, unit)
    return re.sub(r"\s+", "*", re.sub(r"\s*([*/^])\s*", r"\1", unit.strip()))


def with_atoms(unit: str, per_atom: bool) -> str:
    """The unit of values, which are divided by the number of atoms if ``per_atom``.

    Example:
        >>> with_atoms("eV", True), with_atoms("", True), with_atoms("e", False)
        ('eV/atom', 'per atom', 'e')
    """
    if not per_atom or unit.endswith("atom"):
        return unit
    return f"{unit}/atom" if unit else "per atom"
