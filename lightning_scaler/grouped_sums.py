"""Sums, means and numbers of entries by group, of several blocks at once.

Blocks stand side by side: each has its values ``(n_samples, n_entries, n_properties)``, with the
same samples, and the results have a column for every property of every block. NaN marks a missing
entry. All sums are float64.
"""

import math

import torch
from torch import Tensor

from .torchscript import scripted_arithmetic


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
        values: of every block, ``(n_samples, n_entries, n_properties)``.
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
    return _sums_and_numbers(values, groups, n_groups, keep, entries_at_once, 2)


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
    total, number = _sums_and_numbers(values, groups, n_groups, keep, entries_at_once, 1)
    safe = number.clamp(min=1.0)
    mean = total / safe
    # Numbers are known, so what is missing needs no second look.
    off = _sums(values, groups, n_groups, keep, entries_at_once, 1, mean, True)[0]
    squares = _sums(values, groups, n_groups, keep, entries_at_once, 2, mean, True)[0]
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
) -> tuple[Tensor, Tensor]:
    if keep is None:
        sums = _sums(values, groups, n_groups, keep, entries_at_once, power, None, False)[0]
        if not bool(sums.isnan().any()):
            return sums, _numbers_of_complete(values, groups, n_groups)
    both = _sums(values, groups, n_groups, keep, entries_at_once, power, None, True)
    return both[0], both[1]


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

    Entries are added up before those of a sample are: a sum over a short axis is slow.

    Args:
        values: as in :func:`square_sums`, like all up to ``entries_at_once``.
        groups: see there.
        n_groups: see there.
        keep: see there.
        entries_at_once: see there.
        power: 1 or 2.
        centre: what comes off the entries first, ``(n_groups, n_columns)``.
        missing: whether NaN entries are left out, and the numbers of the others given too; else
            they make the sum NaN, a part with some of them ending the work.
    """
    ends: list[int] = []
    width, n_samples, n_entries, largest = 0, 0, 0, 1
    for of_block in values:
        # Entries of a single property are added up first, as few columns are slow too.
        width += of_block.size(1) * of_block.size(2) if of_block.size(2) != 1 else 1
        ends.append(width)
        n_samples, largest = of_block.size(0), max(largest, of_block.numel())
        n_entries += of_block.size(1) * of_block.size(2)
    # The buffer is never larger than the largest block.
    halves = 2 if missing else 1
    n_rows = max(1, min(entries_at_once, largest // halves) // max(1, n_entries))
    buffer = torch.empty([min(n_rows, n_samples), halves * width], dtype=torch.float64)
    sums = torch.zeros([n_groups, halves * width], dtype=torch.float64)
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
            single = part.size(2) == 1
            part = part.flatten(1)
            entries = torch.empty_like(part) if single else rows[:, start : ends[i]]
            if power == 2:
                torch.mul(part, part, out=entries)
            else:
                entries.copy_(part)
            ones = part.new_ones([part.size(1), 1])
            if missing:
                present = rows[:, width + start : width + ends[i]]
                if single:
                    present.copy_(torch.eq(entries, entries).to(torch.float64) @ ones)
                else:
                    torch.eq(entries, entries, out=present)
                entries.nan_to_num_(0.0, math.inf, -math.inf)
            if single:
                rows[:, start : ends[i]] = entries @ ones
            start = ends[i]
        if of_part is None:
            sums.add_(rows.sum(0))
        elif rows.size(1) == 1:  # twice as fast in one dimension
            sums.squeeze(1).scatter_add_(0, of_part, rows.squeeze(1))
        else:
            sums.index_add_(0, of_part, rows)
        if not missing and first == 0 and bool(sums.isnan().any()):
            break
    found: list[Tensor] = []
    for half in range(halves):
        columns: list[Tensor] = []
        start = half * width
        for i, of_block in enumerate(values):
            end = half * width + ends[i]
            shape = [n_groups, (end - start) // max(1, of_block.size(2)), of_block.size(2)]
            columns.append(sums[:, start:end].reshape(shape).sum(1))
            start = end
        found.append(torch.cat(columns, 1))
    return found


def _numbers_of_complete(values: list[Tensor], groups: Tensor | None, n_groups: int) -> Tensor:
    """Numbers of entries by group, none of which is missing, ``(n_groups, n_columns)``."""
    n_entries: list[int] = []
    n_samples = 0
    for of_block in values:
        n_samples = of_block.size(0)
        for _ in range(of_block.size(2)):
            n_entries.append(of_block.size(1))
    samples = torch.full([n_groups], n_samples)
    if groups is not None:
        samples = torch.bincount(groups, minlength=n_groups)
    return samples.to(torch.float64).unsqueeze(1) * torch.tensor(n_entries, dtype=torch.float64)
