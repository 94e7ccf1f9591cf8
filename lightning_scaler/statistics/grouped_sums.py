"""Sums, counts and means by atomic type, for several blocks at once.

Results are float64 with a row for every type and a column for every property of every block, one
block after another. NaN values are missing: they enter neither sums nor counts.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..tensors import scripted_arithmetic


@scripted_arithmetic
def sum_squares(
    values: list[Tensor],
    type_index: Tensor | None,
    n_types: int,
    masks: list[Tensor] | None = None,
    values_at_once: int = 2**17,
) -> tuple[Tensor, Tensor]:
    """Sums of squares, and counts of the values, each ``(n_types, n_columns)``.

    Args:
        values: for each block ``(n_samples, n_components, n_properties)``, at least one block; all
            have the same samples.
        type_index: row of the result for each sample, ``(n_samples,)``; ``None``: row 0.
        n_types: number of rows of the result.
        masks: for each block ``False`` where a value is missing, in the shape of its values.
        values_at_once: number of values to process at a time; 2**17 fit into a processor's cache.

    Example:
        >>> sum_squares([torch.tensor([[[3.0]], [[torch.nan]], [[4.0]]])], None, 1)
        (tensor([[25.]], dtype=torch.float64), tensor([[2.]], dtype=torch.float64))
    """
    samples = _Samples(values, type_index, n_types, masks, values_at_once)
    sums, counts, _ = _sum_and_count(samples, 2)
    return sums, counts


@scripted_arithmetic
def compute_means(
    values: list[Tensor],
    type_index: Tensor | None,
    n_types: int,
    masks: list[Tensor] | None = None,
    values_at_once: int = 2**17,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The four parts of :class:`means.Means`, each ``(n_types, n_columns)``.

    The components of a sample are further observations of its type. Two passes over the values:
    the second one sums differences from the mean, which do not cancel.

    Args:
        values: for each block ``(n_samples, n_components, n_properties)``, none infinite; at least
            one block; all have the same samples.
        type_index: row of the result for each sample, ``(n_samples,)``; ``None``: row 0.
        n_types: number of rows of the result.
        masks: for each block ``False`` where a value is missing, in the shape of its values.
        values_at_once: number of values to process at a time; 2**17 fit into a processor's cache.
    """
    samples = _Samples(values, type_index, n_types, masks, values_at_once)
    total, counts, some_missing = _sum_and_count(samples, 1)
    safe_counts = counts.clamp(min=1.0)
    mean = total / safe_counts
    deviation, _ = _sum_powers(samples, 1, mean, some_missing)
    squares, _ = _sum_powers(samples, 2, mean, some_missing)
    correction = deviation / safe_counts
    # The squares are about the rounded mean.
    sum_sq_dev = (squares - counts * correction.square()).clamp(min=0.0)
    return counts, mean, correction, sum_sq_dev


def check_finite(where: str, values: torch.Tensor) -> None:
    """Refuse infinite values, and values whose squares overflow.

    Args:
        where: what the values are, for the message.
        values: values of one block or gradient in a batch, NaN where missing.

    Raises:
        ValueError: naming the place, and the way out.
    """
    n_infinite = int(torch.isinf(values).sum())
    if n_infinite:
        raise ValueError(
            f"{where}: expected finite numbers, or NaN for missing ones, got {n_infinite} infinite "
            "values in a batch; remove these structures or set the values to NaN; nothing is fitted"
        )
    largest = float(torch.nan_to_num(values.double()).abs().max()) if values.numel() else 0.0
    if not math.isfinite(largest * largest * values.numel()):
        raise ValueError(
            f"{where}: the sum of squares overflows, the largest absolute value is "
            f"{largest:.3e}; convert the target to a larger unit; nothing is fitted"
        )


class _Samples(NamedTuple):
    """The arguments of :func:`sum_squares`."""

    values: list[Tensor]
    type_index: Tensor | None
    n_types: int
    masks: list[Tensor] | None
    values_at_once: int


def _sum_and_count(samples: _Samples, power: int) -> tuple[Tensor, Tensor, bool]:
    """Sums of powers and counts, ``(n_types, n_columns)``, and whether values may be missing."""
    if samples.masks is None:
        # Most data are complete, and NaN in a sum shows where they are not.
        sums, _ = _sum_powers(samples, power, None, False)
        if not bool(sums.isnan().any()):
            return sums, _count_complete(samples), False
    sums, counts = _sum_powers(samples, power, None, True)
    return sums, counts, True


def _sum_powers(
    samples: _Samples, power: int, centre: Tensor | None, skip_missing: bool
) -> tuple[Tensor, Tensor]:
    """Sums of powers of the values or of their differences from a centre.

    A number of samples at a time is added up by type with all components apart, and the components
    of a property at the very end: sums over a short axis are slow.

    Args:
        samples: values by block and their types.
        power: 1 or 2.
        centre: subtracted from the values, ``(n_types, n_columns)``.
        skip_missing: whether missing values are left out. Otherwise the first sum that is NaN ends
            the loop, and the sums are of no use.

    Returns:
        Sums and counts, each ``(n_types, n_columns)``; the counts only under ``skip_missing``.
    """
    blocks, all_types, n_types, masks, _ = samples
    ends = _column_ends(blocks)
    width = ends[-1]
    n_columns = 2 * width if skip_missing else width  # sums, and counts beside them
    n_samples, n_rows = blocks[0].size(0), _samples_at_once(samples, skip_missing)
    buffer = torch.empty([min(n_rows, n_samples), n_columns], dtype=torch.float64)
    sums = torch.zeros([n_types, n_columns], dtype=torch.float64)
    for first in range(0, n_samples, n_rows):
        rows = buffer[: min(n_rows, n_samples - first)]
        type_index = None if all_types is None else all_types[first : first + n_rows]
        start, column = 0, 0
        for i, block in enumerate(blocks):
            values = block[first : first + n_rows].to(torch.float64)
            if masks is not None:
                values = _apply_mask(values, masks[i][first : first + n_rows])
            if centre is not None:
                block_centre = centre[:, column : column + values.size(2)]
                if type_index is not None:
                    block_centre = block_centre.index_select(0, type_index)
                values = values - block_centre.unsqueeze(1)
            column += values.size(2)
            counts = rows[:, width + start : width + ends[i]] if skip_missing else None
            _write_powers(values, power, rows[:, start : ends[i]], counts)
            start = ends[i]
        _add_rows(sums, rows, type_index)
        if not skip_missing and first == 0 and bool(sums.isnan().any()):
            break
    counts = _sum_components(sums[:, width:], blocks, ends) if skip_missing else sums
    return _sum_components(sums[:, :width], blocks, ends), counts


def _column_ends(values: list[Tensor]) -> list[int]:
    """Where the columns of each block end, while its components are still apart.

    A block has a column for every component and property, but a single one if it has one property:
    few columns are slow too.
    """
    ends: list[int] = []
    end = 0
    for block in values:
        end += 1 if block.size(2) == 1 else block.size(1) * block.size(2)
        ends.append(end)
    return ends


def _samples_at_once(samples: _Samples, skip_missing: bool) -> int:
    """Number of samples to process at a time, with temporaries no larger than the largest block."""
    per_sample, largest = 0, 1
    for block in samples.values:
        per_sample += block.size(1) * block.size(2)
        largest = max(largest, block.numel())
    n_values = min(samples.values_at_once, largest // 2 if skip_missing else largest)
    return max(1, n_values // max(1, per_sample))


def _apply_mask(values: Tensor, mask: Tensor) -> Tensor:
    """NaN where the mask is ``False``."""
    # Twice as fast as `where`; through bytes, because bool to float64 is slow.
    kept = mask.to(torch.uint8).to(torch.float64)
    return (values * kept).div_(kept)


def _write_powers(values: Tensor, power: int, sums: Tensor, counts: Tensor | None) -> None:
    """Write powers of the values into the columns of their block.

    Args:
        values: ``(n_samples, n_components, n_properties)`` float64.
        power: 1 or 2.
        sums: written to, ``(n_samples, n_components * n_properties)``; for a single property
            ``(n_samples, 1)``, the sum over the components.
        counts: written to, in the same shape, 1 for each value that is not missing; missing values
            are then 0 in ``sums``. ``None`` leaves them NaN.
    """
    single_property = values.size(2) == 1
    values = values.flatten(1)
    powers = torch.empty_like(values) if single_property else sums
    if power == 2:
        torch.mul(values, values, out=powers)
    else:
        powers.copy_(values)
    if counts is not None:
        if single_property:
            present = torch.eq(powers, powers).to(torch.float64)
            counts.copy_(_sum_rows(present))
        else:
            torch.eq(powers, powers, out=counts)
        powers.nan_to_num_(0.0, math.inf, -math.inf)
    if single_property:
        sums.copy_(_sum_rows(powers))


def _sum_rows(values: Tensor) -> Tensor:
    """Sums over the second axis, ``(n_samples, 1)``; faster than ``sum`` where it is short."""
    return values @ values.new_ones([values.size(1), 1])


def _add_rows(sums: Tensor, rows: Tensor, type_index: Tensor | None) -> None:
    """Add the rows ``(n_samples, n_columns)`` to the sums ``(n_types, n_columns)`` in place."""
    if type_index is None:
        sums.add_(rows.sum(0))
    elif rows.size(1) == 1:  # twice as fast in one dimension
        sums.squeeze(1).scatter_add_(0, type_index, rows.squeeze(1))
    else:
        sums.index_add_(0, type_index, rows)


def _sum_components(sums: Tensor, values: list[Tensor], ends: list[int]) -> Tensor:
    """Add up the components of every property: a column for every property of every block."""
    columns: list[Tensor] = []
    start = 0
    for i, block in enumerate(values):
        n_components = (ends[i] - start) // max(1, block.size(2))
        shape = [sums.size(0), n_components, block.size(2)]
        columns.append(sums[:, start : ends[i]].reshape(shape).sum(1))
        start = ends[i]
    return torch.cat(columns, 1)


def _count_complete(samples: _Samples) -> Tensor:
    """Counts ``(n_types, n_columns)`` where no value is missing."""
    blocks, type_index, n_types, _, _ = samples
    n_components: list[int] = []
    for block in blocks:
        n_components += [block.size(1)] * block.size(2)
    if type_index is None:
        n_samples = torch.full([n_types], blocks[0].size(0))
    else:
        n_samples = torch.bincount(type_index, minlength=n_types)
    per_type = n_samples.to(torch.float64).unsqueeze(1)
    return per_type * torch.tensor(n_components, dtype=torch.float64)
