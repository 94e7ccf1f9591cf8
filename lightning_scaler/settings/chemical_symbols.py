"""Atomic types as users write and read them: integers or chemical symbols."""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any, TypeAlias

from .checks import number

Numbers: TypeAlias = Mapping[Any, Any]

_SYMBOLS = """
H He Li Be B C N O F Ne Na Mg Al Si P S Cl Ar K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As Se Br Kr
Rb Sr Y Zr Nb Mo Tc Ru Rh Pd Ag Cd In Sn Sb Te I Xe Cs Ba La Ce Pr Nd Pm Sm Eu Gd Tb Dy Ho Er Tm Yb
Lu Hf Ta W Re Os Ir Pt Au Hg Tl Pb Bi Po At Rn Fr Ra Ac Th Pa U Np Pu Am Cm Bk Cf Es Fm Md No Lr Rf
Db Sg Bh Hs Mt Ds Rg Cn Nh Fl Mc Lv Ts Og
"""
ATOMIC_NUMBERS = {symbol: z for z, symbol in enumerate(_SYMBOLS.split(), start=1)}
CHEMICAL_SYMBOLS = {z: symbol for symbol, z in ATOMIC_NUMBERS.items()}


def atomic_type(where: str, key: Any) -> int:
    """The atomic type that a key means: an integer, its digits, or a chemical symbol.

    Raises:
        ValueError: if the key is none of these.

    Example:
        >>> atomic_type("fixed_scales", "8"), atomic_type("fixed_scales", "O")
        (8, 8)
    """
    text = str(key).strip()
    if text in ATOMIC_NUMBERS:
        return ATOMIC_NUMBERS[text]
    if text.isdecimal() and not isinstance(key, bool):
        return int(text)
    similar = get_close_matches(text.capitalize(), ATOMIC_NUMBERS, n=1)
    raise ValueError(
        f"{where}: expected an atomic type (an integer or a chemical symbol), got {key!r}"
        + (f"; did you mean '{similar[0]}'?" if similar and isinstance(key, str) else "")
    )


def label_types(types: Sequence[int]) -> list[str]:
    """The chemical symbols of types; their numbers, if one of them is not an atomic number.

    Example:
        >>> label_types([1, 8]), label_types([0, 1])
        (['H', 'O'], ['0', '1'])
    """
    if all(z in CHEMICAL_SYMBOLS for z in types):
        return [CHEMICAL_SYMBOLS[z] for z in types]
    return [str(z) for z in types]


def name_of_type(z: int) -> str:
    """An atomic type as tables and messages show it: types that are no elements keep their number.

    Example:
        >>> name_of_type(8), name_of_type(0)
        ('O (8)', '0')
    """
    return f"{CHEMICAL_SYMBOLS[z]} ({z})" if z in CHEMICAL_SYMBOLS else str(z)


def numbers_by_type(where: str, numbers: Numbers) -> dict[int, float]:
    """Numbers per atomic type, with integer keys; users also write strings and symbols.

    Raises:
        ValueError: if a key is not an atomic type, a type is given twice, or a value is not a
            finite number.

    Example:
        >>> numbers_by_type("fixed_scales", {"H": 0.2, 8: 1})
        {1: 0.2, 8: 1.0}
    """
    plain: dict[int, float] = {}
    keys: dict[int, Any] = {}
    for key, value in numbers.items():
        z = atomic_type(where, key)
        if z in plain:
            raise ValueError(
                f"{where}: type {z} is given twice, as {keys[z]!r} and {key!r}; keep one of them"
            )
        keys[z] = key
        plain[z] = number(f"{where}, type {key}", value)
    return plain
