"""Settings from Python or YAML, checked and converted to plain Python types."""

import math
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib.util import find_spec
from numbers import Real
from typing import Any, Literal, TypeAlias, get_args

UnseenTypes = Literal["error", "pooled", "identity"]
SystemLabels = Literal["auto", "position", "id"]
RefitPart = Literal["types", "baseline", "scales"]
Against = Literal["targets", "predictions"]
FixedScale: TypeAlias = float | dict[int, float]
Numbers: TypeAlias = Mapping[Any, Any]

_SYMBOLS = """
H He Li Be B C N O F Ne Na Mg Al Si P S Cl Ar K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As Se Br Kr
Rb Sr Y Zr Nb Mo Tc Ru Rh Pd Ag Cd In Sn Sb Te I Xe Cs Ba La Ce Pr Nd Pm Sm Eu Gd Tb Dy Ho Er Tm Yb
Lu Hf Ta W Re Os Ir Pt Au Hg Tl Pb Bi Po At Rn Fr Ra Ac Th Pa U Np Pu Am Cm Bk Cf Es Fm Md No Lr Rf
Db Sg Bh Hs Mt Ds Rg Cn Nh Fl Mc Lv Ts Og
"""
ATOMIC_NUMBERS = {symbol: z for z, symbol in enumerate(_SYMBOLS.split(), start=1)}
CHEMICAL_SYMBOLS = {z: symbol for symbol, z in ATOMIC_NUMBERS.items()}


@dataclass(frozen=True)
class Settings:
    """The settings of a fit that apply to all targets; see ``ScaleAccumulator``.

    ``provisional`` scales come from a few batches of a ``fast_dev_run``: the next fit replaces
    them. ``loss_weights`` and ``balance_loss`` are settings of the loss alone.
    """

    system_labels: SystemLabels = "auto"
    unseen_types: UnseenTypes = "error"
    enabled: bool = True
    baseline: Literal["composition", "none"] = "none"
    provisional: bool = False
    loss_weights: dict[str, float] = field(default_factory=dict)
    balance_loss: bool = True


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Suggest the most similar of the known names, if there is one, and list them all.

    Example:
        >>> did_you_mean("enrgy", ["forces", "energy"])
        "did you mean 'energy'? known: ['energy', 'forces']"
    """
    names = sorted(known)
    similar = get_close_matches(name, names, n=1)
    return (f"did you mean '{similar[0]}'? " if similar else "") + f"known: {names}"


def list_or_count(words: Sequence[str], noun: str, most: int = 8) -> str:
    """A list of words; their number and a noun if there are too many to list.

    Example:
        >>> list_or_count(["a", "b"], "letters"), list_or_count(["a"] * 9, "letters")
        ('a; b', '9 letters')
    """
    return "; ".join(words) if len(words) <= most else f"{len(words)} {noun}"


def check_choice(setting: str, value: Any, choices: Any) -> None:
    """Raise ``ValueError`` unless ``value`` is one of the ``choices``, a ``Literal``."""
    if value not in get_args(choices):
        raise ValueError(f"{setting}: expected one of {list(get_args(choices))}, got {value!r}")


def check_names(setting: str, names: Iterable[str], known: Iterable[str]) -> None:
    """Raise ``ValueError`` for the first name that is not a target in the data."""
    known = list(known)
    for name in names:
        if name not in known:
            raise ValueError(
                f"{setting} names the target '{name}', which the data do not have; "
                f"{did_you_mean(name, known)}"
            )


def check_installed(feature: str, extra: str, packages: Iterable[str]) -> None:
    """Raise ``ModuleNotFoundError`` if a package of an extra is not installed.

    Args:
        feature: what needs the packages, as the subject of a sentence in the plural.
        extra: name of the extra in ``pyproject.toml``.
        packages: names under which the packages are imported.
    """
    for package in packages:
        if find_spec(package) is None:
            raise ModuleNotFoundError(
                f"No module named '{package}'; {feature} need the extra '{extra}': "
                f"pip install 'lightning-scaler[{extra}]'",
                name=package,
            )


def list_of_names(setting: str, names: Iterable[str]) -> tuple[str, ...]:
    """The names as a tuple; ``TypeError`` for a string, or for no list at all."""
    if isinstance(names, str):
        raise TypeError(f"{setting}: expected a list of names, got the string {names!r}")
    if not isinstance(names, Iterable):
        raise TypeError(f"{setting}: expected a list of names, got {names!r}")
    found = tuple(names)
    for name in found:
        if not isinstance(name, str):
            raise TypeError(f"{setting}: expected a list of names, got {name!r} among them")
    return found


def number(where: str, value: Any) -> float:
    """The value as a float; ``ValueError`` unless it is a finite real number, numpy's included."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ValueError(f"{where}: expected a number, got {value!r}")
    if not math.isfinite(value):
        raise ValueError(f"{where}: expected a finite number, got {value}")
    return float(value)


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


def parse_fixed_scales(settings: Numbers | None) -> dict[str, FixedScale]:
    """Check ``fixed_scales``: a number, or a number per atomic type, for each target.

    Raises:
        ValueError: if a scale is not a finite positive number.

    Example:
        >>> parse_fixed_scales({"energy": 1, "forces": {"H": 0.2, 8: 1.1}})
        {'energy': 1.0, 'forces': {1: 0.2, 8: 1.1}}
    """
    plain: dict[str, FixedScale] = {}
    for name, value in _by_target("fixed_scales", settings).items():
        where = f"fixed_scales of target '{name}'"
        scale = (
            numbers_by_type(where, value) if isinstance(value, Mapping) else number(where, value)
        )
        for factor in scale.values() if isinstance(scale, dict) else (scale,):
            if factor <= 0:
                raise ValueError(f"{where}: expected a positive number, got {factor}")
        plain[name] = scale
    return plain


def parse_fixed_baseline(settings: Numbers | None) -> dict[str, dict[int, float]]:
    """Check ``fixed_baseline``: a number per atomic type for each target.

    Raises:
        ValueError: if a contribution is not a finite number, or not given per atomic type.

    Example:
        >>> parse_fixed_baseline({"energy": {"H": -13.6}})
        {'energy': {1: -13.6}}
    """
    plain = {}
    for name, value in _by_target("fixed_baseline", settings).items():
        where = f"fixed_baseline of target '{name}'"
        if not isinstance(value, Mapping):
            raise ValueError(
                f"{where}: expected a number per atomic type, as in {{H: -13.6}}, got {value!r}"
            )
        plain[name] = numbers_by_type(where, value)
    return plain


def parse_loss_weights(settings: Numbers | None) -> dict[str, float] | None:
    """Check ``loss_weights``: a number of at least 0 for each term of the loss.

    Raises:
        ValueError: if a weight is negative or not a finite number.

    Example:
        >>> parse_loss_weights({"energy/positions": 4})
        {'energy/positions': 4.0}
    """
    if settings is None:
        return None
    if not isinstance(settings, Mapping):
        raise ValueError(
            "loss_weights: expected a mapping by term, such as {'energy/positions': 4}, got "
            f"{settings!r}"
        )
    weights = {}
    for term, value in settings.items():
        weights[str(term)] = number(f"loss_weights of the term '{term}'", value)
        if weights[str(term)] < 0:
            raise ValueError(
                f"loss_weights of the term '{term}': expected a number of at least 0, got {value}"
            )
    return weights


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
        ValueError: for a target with two units.

    Example:
        >>> join_units({"energy": "eV"}, {"charges": "e"})
        {'energy': 'eV', 'charges': 'e'}
    """
    for name in ours.keys() & theirs.keys():
        if ours[name] != theirs[name]:
            raise ValueError(
                f"target '{name}': expected one unit, got {ours[name]!r} and {theirs[name]!r}; "
                "convert the data to one of them, or correct units (or unit in the declaration)"
            )
    return {**ours, **theirs}


def way_to_hide(opening: str) -> str:
    """The end of a warning, with the line that hides it.

    Args:
        opening: first words of the warning, which Python compares, and no other warning has.

    Example:
        >>> way_to_hide("rare types")
        ". To hide this: warnings.filterwarnings('ignore', 'rare types')"
    """
    return f". To hide this: warnings.filterwarnings('ignore', '{opening}')"


def warn_on_rank_zero(message: str, stacklevel: int = 1) -> None:
    """Give a warning, unless this is one of several processes and not the first of them.

    Args:
        message: text of the warning.
        stacklevel: as for ``warnings.warn``, from the caller on.
    """
    # Settings and reports are read without torch, which takes a second to import.
    torch: Any = sys.modules.get("torch")
    several = torch is not None and torch.distributed.is_available()
    several = several and torch.distributed.is_initialized()
    if not several or torch.distributed.get_rank() == 0:
        warnings.warn(message, stacklevel=stacklevel + 1)


def _by_target(setting: str, settings: Numbers | None) -> Numbers:
    if settings is not None and not isinstance(settings, Mapping):
        raise ValueError(
            f"{setting}: expected a mapping by target name, such as {{'energy': ...}}, got "
            f"{settings!r}"
        )
    return settings or {}
