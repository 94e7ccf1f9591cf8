"""Checks of single settings, and what the messages of the package have in common."""

import math
import sys
import warnings
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from importlib.util import find_spec
from numbers import Real
from typing import Any, get_args


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
    """The names as a tuple; ``TypeError`` for a string, or anything not iterable."""
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


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Suggest the most similar of the known names, if there is one, and list them all.

    Example:
        >>> did_you_mean("enrgy", ["forces", "energy"])
        "did you mean 'energy'? known: ['energy', 'forces']"
    """
    names = sorted(known)
    similar = get_close_matches(name, names, n=1)
    return (f"did you mean '{similar[0]}'? " if similar else "") + f"known: {names}"


def kind_of(value: Any) -> str:
    """What was given, briefly, for messages: the text of a module or a state dict is long.

    Example:
        >>> kind_of("model.pt"), kind_of({}), kind_of(dict)
        ("'model.pt'", 'dict', 'the class dict')
    """
    if isinstance(value, type):
        return f"the class {value.__name__}"
    return repr(value) if isinstance(value, (str, int, float)) else type(value).__name__


def list_or_count(words: Sequence[str], noun: str, most: int = 8) -> str:
    """A list of words; their number and a noun if there are too many to list.

    Example:
        >>> list_or_count(["a", "b"], "letters"), list_or_count(["a"] * 9, "letters")
        ('a; b', '9 letters')
    """
    return "; ".join(words) if len(words) <= most else f"{len(words)} {noun}"


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
    """Issue a warning; of several processes, only the first does.

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
