"""Errors and warnings about the data of a fit, each given once for all targets."""

import warnings
from collections.abc import Mapping, Sequence

import torch

from ..scaling import TargetScales, describe_unknown, way_out_of_unknown
from ..settings import list_or_count
from ..statistics import TargetStatistics

# Rounding, and the difference between a fit to totals and the RMS per atom, stay below this.
LARGER = 1.01

# Rounding of float32 totals that is visible beside the scale.
VISIBLE = 1e-3


def check_values(
    statistics: Mapping[str, TargetStatistics], requested: Sequence[str], data: str = "the data"
) -> None:
    """Refuse requested targets without any value, and warn of others.

    Args:
        statistics: statistics by target name.
        requested: names of the targets that must be fitted.
        data: what was read, in words.

    Raises:
        ValueError: for a requested target whose values are all missing, and whose gradients are
            missing too.
    """
    with_values = {name for name, of_target in statistics.items() if of_target.n_values}
    empty = [name for name in statistics if name not in with_values]
    for name in empty:
        if name in requested and not statistics[name].n_gradient_values:
            raise ValueError(
                f"target '{name}' was requested in targets=[…], but has no value at all in "
                f"{data}: all are NaN or masked; check its key, its mask and the data, or leave it "
                "out of targets=[…] and do not predict it"
            )
    if empty:
        only_gradients = [name for name in empty if statistics[name].n_gradient_values]
        gradients = f" ({only_gradients} have gradients only)" if only_gradients else ""
        warnings.warn(
            f"the targets {empty} have no value at all in {data}{gradients}: all are NaN or "
            "masked, so that the values have a scale of 1, no baseline, and no part in the loss; "
            "check their keys, their masks and the data, or leave them out by naming the others in "
            "targets=[…], and do not predict them",
            stacklevel=4,
        )

    without = [
        f"'{parameter}' of '{name}'"
        for name, of_target in statistics.items()
        if name in with_values
        for parameter, sums in of_target.gradients.items()
        if parameter and not float(sums.counts.sum())
    ]
    if without:
        warnings.warn(
            f"these gradients have no value at all in {data}, and no part in the loss: "
            f"{', '.join(without)}; check their addresses and the data, or leave them out",
            stacklevel=4,
        )


def warn_of_fit(
    scales: Mapping[str, TargetScales],
    below_noise: Mapping[str, Sequence[str]],
    statistics: Mapping[str, TargetStatistics],
    additive: str | None,
) -> None:
    """Give the warnings of a fit.

    Args:
        scales: fitted scales by target name.
        below_noise: properties whose RMS is zero or rounding noise, by target name.
        statistics: statistics by target name.
        additive: class name of the additive module.
    """
    below = [
        f"target '{name}', {list_or_count(words, 'properties')}"
        for name, words in below_noise.items()
        if words
    ]
    if below:
        warnings.warn(
            "these data are zero, or below their rounding noise after subtracting the "
            "baseline, and take the scale of their target (a type: the RMS over all types; a "
            "whole target: 1): " + "; ".join(below),
            stacklevel=4,
        )
    rounded = [
        f"target '{name}', rounded to {error:.2g} and with a residual of {target.rms_after:.2g}"
        for name, target in scales.items()
        if not below_noise[name]
        and (error := _rounding_error(statistics[name], target)) > VISIBLE * target.rms_after > 0
    ]
    if rounded:
        warnings.warn(
            "the rounding errors of these data are large, because they are stored in single "
            "precision and their baseline is much larger than what it leaves over: "
            f"{'; '.join(rounded)} (per atom if extensive); store them in float64",
            stacklevel=4,
        )
    unknown = {n: s for n, s in scales.items() if s.unknown and statistics[n].n_values}
    if unknown:
        warnings.warn(
            "some atomic types have no data for a property, so that their baseline is unknown: "
            f"{describe_unknown(unknown.values())}; predictions for structures that contain these "
            f"types will be NaN in that property; {way_out_of_unknown(unknown)}",
            stacklevel=4,
        )
    larger = [
        _describe_larger(name, target, additive)
        for name, target in scales.items()
        if target.rms_after > LARGER * target.rms_before
    ]
    if larger:
        warnings.warn(
            "subtracting the baseline makes these targets larger: " + "; ".join(larger),
            stacklevel=4,
        )


def _rounding_error(statistics: TargetStatistics, scales: TargetScales) -> float:
    """RMS rounding error of values in single precision: machine epsilon times their RMS."""
    epsilon = max((block.epsilon for block in statistics.blocks.values()), default=0.0)
    if epsilon <= torch.finfo(torch.float64).eps or not (scales.weights or scales.additive):
        return 0.0
    return epsilon * scales.rms_before


def _describe_larger(name: str, scales: TargetScales, additive: str | None) -> str:
    unit = " per atom" if scales.extensive else ""
    numbers = (
        f"target '{name}', RMS{unit} {scales.rms_before:.4g} before and "
        f"{scales.rms_after:.4g} after"
    )
    without = f"subtract nothing from it, with baseline={{'{name}': 'none'}}"
    if scales.fixed_weights is not None:
        return (
            f"{numbers} (its fixed_baseline may belong to another code, level of theory or unit: "
            f"correct it, leave it out and have it fitted, or {without})"
        )
    if scales.additive:
        return f"{numbers} (the additive module {additive} may not suit it: leave it out)"
    return f"{numbers} ({without})"
