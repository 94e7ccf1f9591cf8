"""Settings as users write them, in Python or YAML, brought to one plain form."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal, TypeAlias, get_args

UnseenTypes = Literal["error", "pooled", "identity"]
SystemLabels = Literal["auto", "position", "id"]
FixedScale: TypeAlias = float | dict[int, float]
Numbers: TypeAlias = Mapping[Any, Any]


@dataclass(frozen=True)
class Settings:
    """What a Scaler was fitted with, beside its targets; see ``ScaleAccumulator``.

    ``provisional`` scales come from a few batches of a ``fast_dev_run``: the next fit replaces
    them.
    """

    system_labels: SystemLabels = "auto"
    unseen_types: UnseenTypes = "error"
    enabled: bool = True
    baseline: Literal["composition", "none"] = "none"
    provisional: bool = False


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The known names in words, the nearest one first if there is a near one."""
    names = sorted(known)
    near = get_close_matches(name, names, n=1)
    return (f"did you mean '{near[0]}'? " if near else "") + f"known: {names}"


def check_choice(setting: str, value: Any, choices: Any) -> None:
    """Raise ``ValueError`` unless ``value`` is one of the strings of a ``Literal``."""
    if value not in get_args(choices):
        raise ValueError(f"{setting}: expected one of {list(get_args(choices))}, got {value!r}")


def check_names(setting: str, names: Iterable[str], known: Iterable[str]) -> None:
    """Raise ``ValueError`` for the first of the names that is not a target of the data."""
    known = list(known)
    for name in names:
        if name not in known:
            raise ValueError(
                f"{setting} names the target '{name}', which the data do not have; "
                f"{did_you_mean(name, known)}"
            )


def list_of_names(setting: str, names: Iterable[str]) -> tuple[str, ...]:
    """The names as a tuple; a single string is refused, since it would be read as letters."""
    if isinstance(names, str):
        raise TypeError(f"{setting}: expected a list of names, got the string {names!r}")
    return tuple(names)


def number(where: str, value: Any) -> float:
    """A finite number (ints count as floats), or ``ValueError``."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{where}: expected a number, got {value!r}")
    if not math.isfinite(value):
        raise ValueError(f"{where}: expected a finite number, got {value}")
    return float(value)


def numbers_by_type(where: str, numbers: Numbers) -> dict[int, float]:
    """Numbers per atomic type with integer keys; YAML gives strings or ints, both work.

    Raises:
        ValueError: for a key that is no atomic type, the same type twice, or a value that is no
            finite number.
    """
    plain: dict[int, float] = {}
    for key, value in numbers.items():
        text = str(key).strip()
        if not text.isdecimal() or isinstance(key, bool):
            raise ValueError(f"{where}: expected an atomic type (an integer), got {key!r}")
        atomic_type = int(text)
        if atomic_type in plain:
            raise ValueError(f"{where}: type {atomic_type} is given twice; keep one of them")
        plain[atomic_type] = number(f"{where}, type {atomic_type}", value)
    return plain


def fixed_scales(settings: Numbers | None) -> dict[str, FixedScale]:
    """``fixed_scales`` in plain form: a number, or a number per type, for each target.

    Raises:
        ValueError: for anything that is not a positive finite number.

    Example:
        >>> fixed_scales({"energy": 1, "forces": {"1": 0.2, 8: 1.1}})
        {'energy': 1.0, 'forces': {1: 0.2, 8: 1.1}}
    """
    plain: dict[str, FixedScale] = {}
    for name, value in (settings or {}).items():
        where = f"fixed_scales of target '{name}'"
        scale = (
            numbers_by_type(where, value) if isinstance(value, Mapping) else number(where, value)
        )
        for one in scale.values() if isinstance(scale, dict) else (scale,):
            if one <= 0:
                raise ValueError(f"{where}: expected a positive number, got {one}")
        plain[name] = scale
    return plain


def fixed_baseline(settings: Numbers | None) -> dict[str, dict[int, float]]:
    """``fixed_baseline`` in plain form: a number per type, for each target.

    Raises:
        ValueError: for anything that is not a finite number per atomic type.

    Example:
        >>> fixed_baseline({"energy": {"1": -13.6}})
        {'energy': {1: -13.6}}
    """
    plain = {}
    for name, value in (settings or {}).items():
        where = f"fixed_baseline of target '{name}'"
        if not isinstance(value, Mapping):
            raise ValueError(
                f"{where}: expected a number per atomic type, as in {{1: -13.6}}, got {value!r}"
            )
        plain[name] = numbers_by_type(where, value)
    return plain
