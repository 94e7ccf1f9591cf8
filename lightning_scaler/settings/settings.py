"""The settings of a fit, and those that are given by target, read and checked."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, get_args

from .checks import check_choice, number
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


def check_arguments(
    unseen_types: Any, limit_batches: Any, relative_error: Any, balance_loss: Any, **flags: Any
) -> None:
    """Check arguments of ``TargetScaler``, which describes them; ``flags`` are booleans.

    Raises:
        TypeError: for a value of another type.
        ValueError: for an unknown value.
    """
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise TypeError(f"{name}: expected True or False, got {value!r}")
    if balance_loss is not None and not isinstance(balance_loss, bool):
        raise TypeError(f"balance_loss: expected True, False or None, got {balance_loss!r}")
    check_choice("unseen_types", unseen_types, UnseenTypes)
    if relative_error is not None:
        _check_relative_error(relative_error, limit_batches)
    if limit_batches is None:
        return
    if isinstance(limit_batches, bool) or not isinstance(limit_batches, int):
        raise TypeError(
            f"limit_batches: expected a number of batches, or None for all, got {limit_batches!r}"
        )
    if limit_batches < 1:
        raise ValueError(f"limit_batches: expected at least 1 batch, got {limit_batches}")


def check_refit(
    refit: Any, against: Any, output_layers: Any, baseline: Any, relative_error: Any
) -> None:
    """Check arguments of ``TargetScaler`` about what is fitted again; ``baseline`` has been read.

    Raises:
        ValueError: for an unknown value, or arguments that contradict each other.
    """
    parts = list(get_args(RefitPart))
    if not isinstance(refit, bool) and refit not in parts:
        raise ValueError(f"refit: expected False, True or one of {parts}, got {refit!r}")
    check_choice("against", against, Against)
    if against == "predictions" and refit != "baseline":
        raise ValueError(
            f"against='predictions' belongs to refit='baseline', got refit={refit!r}; set both, or "
            "leave out against"
        )
    if isinstance(refit, str) and relative_error is not None:
        raise ValueError(
            f"relative_error is for a fit of all scales, got refit={refit!r}; leave out "
            "relative_error"
        )
    if refit == "baseline" and baseline is None:
        raise ValueError(
            "refit='baseline' and baseline='none' contradict each other; leave out one"
        )
    if (refit == "scales") != bool(output_layers):
        raise ValueError(
            "refit='scales' and output_layers, such as {'energy': 'readouts.energy'}, need each "
            f"other, got refit={refit!r} and output_layers={output_layers!r}"
        )
    layers = output_layers or {}
    if not isinstance(layers, Mapping) or not all(isinstance(n, str) for n in layers.values()):
        raise ValueError(
            "output_layers: expected the name of a submodule for each target, such as {'energy': "
            f"'readouts.energy'}}, got {output_layers!r}"
        )


def _by_target(setting: str, settings: Numbers | None) -> Numbers:
    if settings is not None and not isinstance(settings, Mapping):
        raise ValueError(
            f"{setting}: expected a mapping by target name, such as {{'energy': ...}}, got "
            f"{settings!r}"
        )
    return settings or {}


def _check_relative_error(value: Any, limit_batches: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"relative_error: expected a number, or None for all data, got {value!r}")
    if not 0.0 < value < 1.0:
        raise ValueError(
            "relative_error: expected a number between 0 and 1, such as 0.01 for one percent, got "
            f"{value}"
        )
    if limit_batches is not None:
        raise ValueError(
            "relative_error and limit_batches both say how much is read, got relative_error="
            f"{value} and limit_batches={limit_batches}; leave out one of them"
        )
