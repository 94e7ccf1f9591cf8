"""Sums, means and numbers of entries by group, of several blocks at once.

Blocks stand side by side: each has its values ``(n_samples, n_entries, n_properties)``, with the
same samples, and the results have a column for every property of every block. NaN marks a missing
entry. All sums are float64.
"""

import math

import torch
from torch import Tensor

from ..tensors import scripted_arithmetic


@scripted_arithmetic
def square_sums(
    values: list[Tensor],
    groups: Tensor | None,
    n_groups: int,
    keep: list[Tensor] | None = None,
    entries_at_once: int = 2**17,
) -> tuple[Tensor, Tensor]:
    """Sums of squares and numbers of present entries, per group and property.

    Args:
        values: of every block, ``(n_samples, n_entries, n_properties)``; one at least.
        groups: the group of every sample, ``(n_samples,)``; ``None`` puts all into group 0.
        n_groups: number of groups.
        keep: for every block ``False`` where an entry is missing, as NaN ones are, in its shape.
        entries_at_once: of all blocks together; so few stay in the processor's cache.

    Returns:
        Two tensors ``(n_groups, n_columns)`` float64.

    Example:
        >>> square_sums([torch.tensor([[[3.0]], [[torch.nan]], [[4.0]]])], None, 1)
        (tensor([[25.]], dtype=torch.float64), tensor([[2.]], dtype=torch.float64))
    """
    return _sums_and_numbers(values, groups, n_groups, keep, entries_at_once, 2)[:2]


@scripted_arithmetic
def group_means(
    values: list[Tensor],
    groups: Tensor | None,
    n_groups: int,
    keep: list[Tensor] | None = None,
    entries_at_once: int = 2**17,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Numbers, means (in two parts) and centred sums of squares; see :class:`moments.Means`.

    Args:
        values: of every block, ``(n_samples, n_entries, n_properties)``, none of them infinite; the
            entries of a sample are further observations of its group.
        groups: the group of every sample, ``(n_samples,)``; ``None`` puts all into group 0.
        n_groups: number of groups.
        keep: for every block ``False`` where an entry is missing, as NaN ones are, in its shape.
        entries_at_once: of all blocks together; so few stay in the processor's cache.

    Returns:
        Four tensors ``(n_groups, n_columns)`` float64.
    """
    total, number, missing = _sums_and_numbers(values, groups, n_groups, keep, entries_at_once, 1)
    safe = number.clamp(min=1.0)
    mean = total / safe
    off = _sums(values, groups, n_groups, keep, entries_at_once, 1, mean, missing)[0]
    squares = _sums(values, groups, n_groups, keep, entries_at_once, 2, mean, missing)[0]
    # The sums so far are about the rounded mean.
    rest = off / safe
    return number, mean, rest, (squares - number * rest.square()).clamp(min=0.0)


def _sums_and_numbers(
    values: list[Tensor],
    groups: Tensor | None,
    n_groups: int,
    keep: list[Tensor] | None,
    entries_at_once: int,
    power: int,
) -> tuple[Tensor, Tensor, bool]:
    """Sums of powers of the entries, numbers of entries, and whether some are missing."""
    if keep is None:
        sums = _sums(values, groups, n_groups, keep, entries_at_once, power, None, False)[0]
        if not bool(sums.isnan().any()):
            return sums, _numbers_of_complete(values, groups, n_groups), False
    both = _sums(values, groups, n_groups, keep, entries_at_once, power, None, True)
    return both[0], both[1], True


def _sums(
    values: list[Tensor],
    groups: Tensor | None,
    n_groups: int,
    keep: list[Tensor] | None,
    entries_at_once: int,
    power: int,
    centre: Tensor | None,
    missing: bool,
) -> list[Tensor]:
    """Sums of powers of the entries by group, ``(n_groups, n_columns)``.

    The entries of some samples at a time are added up by group as they are, and those of a property
    last of all: a sum over a short axis is slow.

    Args:
        values: of every block, ``(n_samples, n_entries, n_properties)``.
        groups: the group of every sample, ``(n_samples,)``; ``None`` puts all into group 0.
        n_groups: number of groups.
        keep: for every block ``False`` where an entry is missing, in its shape.
        entries_at_once: of all blocks together.
        power: 1 or 2.
        centre: what comes off the entries first, ``(n_groups, n_columns)``.
        missing: whether NaN entries are left out, and the numbers of the others are the second
            result; else there is one result, NaN where an entry is.
    """
    ends, n_rows = _columns(values, entries_at_once, missing)
    n_samples, width = values[0].size(0), ends[-1]
    n_columns = 2 * width if missing else width
    buffer = torch.empty([min(n_rows, n_samples), n_columns], dtype=torch.float64)
    sums = torch.zeros([n_groups, n_columns], dtype=torch.float64)
    for first in range(0, n_samples, n_rows):
        rows = buffer[: min(n_rows, n_samples - first)]
        of_part = None if groups is None else groups[first : first + n_rows]
        start, column = 0, 0
        for i, of_block in enumerate(values):
            part = of_block[first : first + n_rows].to(torch.float64)
            if keep is not None:
                # Twice as fast as `where`; bytes, since bool to float64 is slow.
                kept = keep[i][first : first + n_rows].to(torch.uint8).to(torch.float64)
                part = (part * kept).div_(kept)
            if centre is not None:
                of_columns = centre[:, column : column + part.size(2)]
                of_rows = of_columns if of_part is None else of_columns.index_select(0, of_part)
                part = part - of_rows.unsqueeze(1)
            column += part.size(2)
            entries = rows[:, start : ends[i]]
            present = rows[:, width + start : width + ends[i]] if missing else None
            _write(part, power, entries, present)
            start = ends[i]
        if of_part is None:
            sums.add_(rows.sum(0))
        elif n_columns == 1:  # twice as fast in one dimension
            sums.squeeze(1).scatter_add_(0, of_part, rows.squeeze(1))
        else:
            sums.index_add_(0, of_part, rows)
        if not missing and first == 0 and bool(sums.isnan().any()):
            break
    found = [_over_entries(sums[:, :width], values, ends)]
    if missing:
        found.append(_over_entries(sums[:, width:], values, ends))
    return found


def _columns(values: list[Tensor], entries_at_once: int, missing: bool) -> tuple[list[int], int]:
    """Where the columns of each block end that its entries are added up in, and rows at a time.

    There is one for each entry of a sample; but one for all of them where there is a single
    property, as few columns are slow too.
    """
    ends: list[int] = []
    width, n_entries, largest = 0, 0, 1
    for of_block in values:
        of_sample = of_block.size(1) * of_block.size(2)
        width += of_sample if of_block.size(2) != 1 else 1
        ends.append(width)
        n_entries += of_sample
        largest = max(largest, of_block.numel())
    # Temporaries are never larger than the largest block.
    at_once = min(entries_at_once, largest // 2 if missing else largest)
    return ends, max(1, at_once // max(1, n_entries))


def _write(part: Tensor, power: int, entries: Tensor, present: Tensor | None) -> None:
    """Write powers of the entries of some samples into their columns.

    Args:
        part: ``(n_samples, n_entries, n_properties)``.
        power: 1 or 2.
        entries: written to, ``(n_samples, n_entries * n_properties)``, or ``(n_samples, 1)`` for
            the sums over the entries of a single property.
        present: likewise, 1 for each entry that is not NaN, which becomes 0, and 0 for the others;
            ``None`` leaves NaN as it is.
    """
    single = part.size(2) == 1
    part = part.flatten(1)
    written = torch.empty_like(part) if single else entries
    if power == 2:
        torch.mul(part, part, out=written)
    else:
        written.copy_(part)
    if present is not None:
        if single:
            counted = torch.eq(written, written).to(torch.float64)
            present.copy_(counted @ counted.new_ones([counted.size(1), 1]))
        else:
            torch.eq(written, written, out=present)
        written.nan_to_num_(0.0, math.inf, -math.inf)
    if single:
        # A sum over a short axis is slow.
        entries.copy_(written @ written.new_ones([written.size(1), 1]))


def _over_entries(sums: Tensor, values: list[Tensor], ends: list[int]) -> Tensor:
    """Sums of every entry of a sample added up by property, ``(n_groups, n_columns)``."""
    columns: list[Tensor] = []
    start = 0
    for i, of_block in enumerate(values):
        n_entries = (ends[i] - start) // max(1, of_block.size(2))
        of_entries = sums[:, start : ends[i]].reshape(sums.size(0), n_entries, of_block.size(2))
        columns.append(of_entries.sum(1))
        start = ends[i]
    return torch.cat(columns, 1)


def _numbers_of_complete(values: list[Tensor], groups: Tensor | None, n_groups: int) -> Tensor:
    """Numbers of entries by group, none of which is missing, ``(n_groups, n_columns)``."""
    n_entries: list[int] = []
    for of_block in values:
        for _ in range(of_block.size(2)):
            n_entries.append(of_block.size(1))
    samples = torch.full([n_groups], values[0].size(0))
    if groups is not None:
        samples = torch.bincount(groups, minlength=n_groups)
    return samples.to(torch.float64).unsqueeze(1) * torch.tensor(n_entries, dtype=torch.float64)
