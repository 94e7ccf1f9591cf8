"""Checks of the arguments of TargetScaler that need no data."""

from collections.abc import Mapping
from typing import Any, get_args

from ..settings import Against, RefitPart, UnseenTypes, check_choice


def check_arguments(
    unseen_types: Any, limit_batches: Any, relative_error: Any, balance_loss: Any, **flags: Any
) -> None:
    """Check some arguments of the callback.

    Args:
        unseen_types: scale of atomic types that are not in the data.
        limit_batches: maximum number of batches.
        relative_error: relative error of the scales that is enough.
        balance_loss: whether to balance the terms of the loss; ``None``: not set.
        **flags: arguments that are ``True`` or ``False``.

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


def check_refit(
    refit: Any, against: Any, output_layers: Any, baseline: Any, relative_error: Any
) -> None:
    """Check what is to be fitted again.

    Args:
        refit: ``True``, ``False``, or a part of the scales.
        against: what a new baseline is fitted to.
        output_layers: submodules by target name; ``None``: none.
        baseline: composition baseline; ``None``: none.
        relative_error: relative error of the scales that is enough.

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
