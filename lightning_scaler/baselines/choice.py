"""The ``baseline`` argument of the callback, for all targets or for each of them."""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias, get_args

import torch

from ..settings import Numbers
from .composition import CompositionBaseline

Choice = Literal["composition", "none"]

_HINT = "; give the contributions of atomic types as fixed_baseline={'energy': {'H': -13.6, …}}"


class AdditiveModule(Protocol):
    """Any ``torch.nn.Module``; see :class:`FrozenModule` for what it must support.

    jsonargparse lists all subclasses of a class in its help, 400 lines for ``torch.nn.Module``, but
    not the implementations of a protocol. It compares signatures, so the method is one that modules
    do not override.
    """

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset the gradients of the parameters."""


BaselineSetting: TypeAlias = Choice | AdditiveModule | Mapping[str, Choice | AdditiveModule]


class ChosenBaseline(NamedTuple):
    """The two parts of a baseline.

    Attributes:
        composition: composition baseline, ``None`` for no target.
        additive: additive module, if there is one.
    """

    composition: CompositionBaseline | None
    additive: torch.nn.Module | None


def parse_baseline(setting: Any, fixed: Numbers | None = None) -> ChosenBaseline:
    """Check a ``baseline`` and a ``fixed_baseline``.

    Args:
        setting: ``"composition"``, ``"none"`` or an additive module; or one of them for each of
            some targets, by name, ``"composition"`` for all others.
        fixed: fixed contributions per atomic type, by target name.

    Raises:
        TypeError: for anything else, such as the class of a module.
        ValueError: for other words, several modules, and fixed contributions of a target without a
            baseline.

    Example:
        >>> parse_baseline({"gap": "none"}).composition
        CompositionBaseline(fixed={}, excluded=('gap',))
    """
    by_target = setting if isinstance(setting, Mapping) else {None: setting}
    modules: list[torch.nn.Module] = []
    for name, choice in by_target.items():
        where = "baseline" if name is None else f"baseline of target '{name}'"
        if isinstance(choice, type):
            raise TypeError(
                f"{where}: expected 'composition', 'none' or a module, got the class "
                f"{choice.__name__}; write {choice.__name__}()"
            )
        if isinstance(choice, torch.nn.Module):
            modules += [choice] if not any(choice is module for module in modules) else []
        elif choice not in get_args(Choice):
            way_out = (
                "" if isinstance(choice, str) else ", or one of these for each target by its name"
            )
            raise ValueError(
                f"{where}: expected one of {list(get_args(Choice))} or a module{way_out}, got "
                f"{choice!r}{_HINT if isinstance(choice, (Mapping, int, float)) else ''}"
            )
    if len(modules) > 1:
        raise ValueError(
            f"baseline: expected one additive module, got {len(modules)}; sum their outputs in "
            "one module"
        )
    if setting == "none" and fixed:
        raise ValueError(
            "baseline='none' and fixed_baseline contradict each other; leave out one of them"
        )
    if setting == "none":
        return ChosenBaseline(None, None)
    excluded = [str(name) for name, choice in by_target.items() if choice == "none"]
    return ChosenBaseline(
        CompositionBaseline(fixed or {}, tuple(excluded)), next(iter(modules), None)
    )
