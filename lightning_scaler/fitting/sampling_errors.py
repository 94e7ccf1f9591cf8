"""Standard errors of scales that were fitted to a random sample, by the jackknife."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from ..scaling import TargetScales
from ..statistics import TargetStatistics
from .accumulator import ScaleAccumulator
from .random_sample import RandomSample, percentage

# A scale counts as rare if it has less than this fraction of the values of the most frequent one.
RARE = 0.01

FittedTarget = tuple[TargetStatistics, TargetScales]


def relative_standard_error(whole: Tensor, replicates: Tensor, fraction: float) -> Tensor:
    r"""The standard error of estimates from a random sample, relative to them.

    The sample is divided at random into :math:`k` groups of equal size. With :math:`\hat\theta` the
    estimate from the whole sample and :math:`\hat\theta_{(i)}` that from all groups but one,

    .. math::

        v = (1 - f) \, \frac{k - 1}{k} \sum_{i=1}^k (\hat\theta_{(i)} - \hat\theta)^2

    is the delete-a-group jackknife estimate of the variance of :math:`\hat\theta`. It is about
    :math:`\hat\theta`, which is larger than about the mean of the :math:`\hat\theta_{(i)}`. The
    factor :math:`1 - f`, with :math:`f` the fraction of all data that were sampled, is the finite
    population correction for sampling without replacement: it is 0 when all data have been read.
    The result itself varies by about :math:`1 / \sqrt{2 (k - 1)}`, 16 % for 20 groups, and is too
    small for heavy tails, whose rare large values are in few samples.

    Source: K. M. Wolter, Introduction to Variance Estimation, 2nd edition, Springer 2007, chapter
    4, "The Jackknife Method"; P. S. Kott, Journal of Official Statistics 17 (2001) 521.

    Args:
        whole: estimates from the whole sample, ``(*shape)``.
        replicates: estimates without each of the groups, ``(n_groups, *shape)``; NaN where there
            are no data without the group.
        fraction: fraction of all data that are in the sample.

    Returns:
        Relative errors, ``(*shape)``; NaN where they cannot be estimated.

    Example:
        The mean of 1, 2, 3 and 6 is 3; their variance, 14/3, over 4 is the square of its error.

        >>> values = torch.tensor([1.0, 2.0, 3.0, 6.0]).double()
        >>> without_one = (values.sum() - values) / 3
        >>> 9 * relative_standard_error(values.mean(), without_one, fraction=0.0) ** 2 * 4
        tensor(4.6667, dtype=torch.float64)
    """
    n_groups = len(replicates)
    if n_groups < 2:
        return torch.full_like(whole, torch.nan)
    squares = (replicates - whole).square().sum(0)
    error = ((1.0 - fraction) * (n_groups - 1) / n_groups * squares).sqrt()
    return torch.where(error == 0.0, 0.0, error / whole.abs())


def estimate_sample(
    groups: Sequence[ScaleAccumulator], n_batches: int, n_all_batches: int, relative_error: float
) -> RandomSample:
    """The standard errors of the scales of a random sample.

    They are those of the per-target scale of each atomic type, of the full scale of each property
    (of several) and type, and of the RMS of each gradient in loss space, which the loss uses. A
    scale counts as too rare for the relative error that is asked for if it has less than a
    hundredth of the values of the most frequent one of its target, and all data together, by the
    fraction that has been read, have fewer than ``1 / relative_error**2`` values of it. (Half of
    these would give the error if they were normal and half of the data.)

    Args:
        groups: accumulators, each with the data of one of equal random parts of the sample.
        n_batches: number of batches in all groups.
        n_all_batches: number of batches of all data.
        relative_error: relative error that is asked for.
    """
    if n_batches >= n_all_batches:
        return RandomSample(relative_error, n_batches, n_all_batches)
    groups = [group for group in groups if not group.is_empty]
    if not groups:  # the targets may be in batches that have not been read
        return RandomSample(relative_error, n_batches, n_all_batches, torch.inf)
    whole = merged(groups).fitted_targets()
    replicates = [one.fitted_targets() for one in _without_each(groups)]
    fraction = n_batches / n_all_batches
    errors, largest, rare = {}, [0.0], []
    for name, fitted in whole.items():
        values, counts = _estimates(fitted, fitted)
        without_one = [_estimates(one.get(name), fitted)[0] for one in replicates]
        of_target = relative_standard_error(values, torch.stack(without_one), fraction)
        of_target = torch.where(counts > 0.0, of_target, 0.0)
        is_rare = _is_rare(counts, fitted[1], fraction / relative_error**2)
        is_rare &= ~(of_target <= relative_error)
        rare += _describe(fitted[1], is_rare, of_target)
        errors[name] = of_target.amax(1)
        largest.append(float(torch.where(is_rare, 0.0, of_target).nan_to_num(torch.inf).max()))
    return RandomSample(relative_error, n_batches, n_all_batches, max(largest), tuple(rare), errors)


def merged(accumulators: Iterable[ScaleAccumulator]) -> ScaleAccumulator:
    """A new accumulator with the data of all; at least one is needed."""
    first, *others = accumulators
    total = first.fresh()
    for accumulator in (first, *others):
        total.merge(accumulator)
    return total


def _without_each(groups: Sequence[ScaleAccumulator]) -> Iterable[ScaleAccumulator]:
    """All groups but one, for each of them."""
    # The groups before and after each one are merged once: 3 merges a group instead of all.
    after = [groups[-1].fresh()]
    for group in reversed(groups[1:]):
        after.append(merged([group, after[-1]]))
    before = groups[0].fresh()
    for group in groups:
        yield merged([before, after.pop()])
        before.merge(group)


def _estimates(fitted: FittedTarget | None, like: FittedTarget) -> tuple[Tensor, Tensor]:
    """What is estimated of one target, and from how many values each.

    Args:
        fitted: target of a part of the data; ``None`` if it is not in them.
        like: target of all of them.

    Returns:
        The per-target scale, the full scales of the properties of all blocks, and the RMS of each
        gradient, ``(n_types, n_columns)`` and NaN where there are no values, or no more than
        contributions of a baseline; numbers of values in the same shape.
    """
    layout, all_types, parameters = like[1].layout, like[1].types, like[0].gradients
    by_property = not layout.single_property
    n_columns = 1 + by_property * sum(block.n_properties for block in layout.blocks.values())
    values = torch.zeros(all_types.numel(), n_columns + len(parameters), dtype=torch.float64)
    counts = torch.zeros_like(values)
    if fitted is not None:
        statistics, scales = fitted
        n_types = scales.types.numel()
        rows = torch.searchsorted(all_types, scales.types)
        values[rows, 0] = scales.per_target[:n_types]
        column = 1
        for key, block in layout.blocks.items():
            if key in statistics.blocks:
                of_block = statistics.blocks[key].counts
                counts[rows, 0] += of_block.sum(1)
                if by_property:
                    of_properties = slice(column, column + block.n_properties)
                    values[rows, of_properties] = scales.values("full", key)[:n_types]
                    counts[rows, of_properties] = of_block
            column += block.n_properties
        for column, parameter in enumerate(parameters, n_columns):
            if parameter in statistics.gradients:
                counts[:, column] = float(statistics.gradients[parameter].counts.sum())
                values[:, column] = scales.mean_squares.get(parameter, torch.nan) ** 0.5
    known = counts > 0.0
    if fitted is not None and _is_interpolated(*fitted):
        known = torch.zeros_like(known)
    return torch.where(known, values, torch.nan), counts


def _is_interpolated(statistics: TargetStatistics, scales: TargetScales) -> bool:
    """Whether a baseline has as many contributions as values, so that its residual says nothing."""
    if scales.layout.sample_kind == "atom" or not scales.weights:
        return False
    fitted = {*scales.baseline_types.tolist()} - {*(scales.fixed_weights or {})}
    n_values = max(float(statistics.blocks[key].counts.max()) for key in scales.weights)
    return 0 < n_values <= len(fitted)


def _is_rare(counts: Tensor, scales: TargetScales, n_needed: float) -> Tensor:
    """Which scales have few values, bool in the shape of :func:`_estimates`."""
    is_rare = torch.zeros_like(counts, dtype=torch.bool)
    n_properties = sum(block.n_properties for block in scales.layout.blocks.values())
    for columns in (slice(0, 1), slice(1, 1 + n_properties * (not scales.layout.single_property))):
        part = counts[:, columns]
        most = float(part.max()) if part.numel() else 0.0
        is_rare[:, columns] = (part < RARE * most) & (part < n_needed)
    return is_rare


def _describe(scales: TargetScales, chosen: Tensor, errors: Tensor) -> list[str]:
    """Some scales of a target in words, with their errors."""
    words = []
    types, name = scales.types.tolist(), scales.layout.name
    by_property = [
        scales.layout.describe_property(key, index)
        for key, block in scales.layout.blocks.items()
        for index in range(block.n_properties)
    ]
    for row, column in chosen.nonzero().tolist():
        where = [] if types[row] == -1 else [f"type {types[row]}"]
        if column > 0 and bool(chosen[row, 0]):
            continue  # the whole type is rare
        if column > 0:
            where.insert(0, by_property[column - 1])
        error = percentage(float(errors[row, column]))
        words.append(f"{', '.join(where)} of '{name}' ({error})")
    return words
