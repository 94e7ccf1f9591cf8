"""The settings of a fit, and those that are given by target, read and checked."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from .checks import number
from .chemical_symbols import Numbers, numbers_by_type

UnseenTypes = Literal["error", "pooled", "identity"]
SystemLabels = Literal["auto", "position", "id"]
RefitPart = Literal["types", "baseline", "scales"]
Against = Literal["targets", "predictions"]
FixedScale: TypeAlias = float | dict[int, float]


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


def _by_target(setting: str, settings: Numbers | None) -> Numbers:
    if settings is not None and not isinstance(settings, Mapping):
        raise ValueError(
            f"{setting}: expected a mapping by target name, such as {{'energy': ...}}, got "
            f"{settings!r}"
        )
    return settings or {}
