"""Sums, means and numbers of entries by group, of several blocks at once.

Blocks stand side by side: each has its values ``(n_samples, n_entries, n_properties)``, with the
same samples, and the results have a column for every property of every block. NaN marks a missing
entry. All sums are float64.
"""

import torch
from torch import Tensor

from .torchscript import scripted


@scripted
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
        entries_at_once: of a block; temporaries of a megabyte stay in the processor's cache.

    Returns:
        Two tensors ``(n_groups, n_columns)`` float64.

    Example:
        >>> square_sums([torch.tensor([[[3.0]], [[torch.nan]], [[4.0]]])], None, 1)
        (tensor([[25.]], dtype=torch.float64), tensor([[2.]], dtype=torch.float64))
    """
    sums = _zeros(values, n_groups)
    numbers = torch.zeros_like(sums)
    missing, first_missing = keep is not None, 0
    n_samples, n_rows = _parts(values, entries_at_once)
    for first in range(0, n_samples, n_rows):
        entries = [part.square() for part in _part(values, keep, first, n_rows)]
        of_part = None if groups is None else groups[first : first + n_rows]
        rows = _over_entries(entries, missing)
        if not missing and bool(rows.sum().isnan()):
            missing, first_missing = True, first
            rows = _over_entries(entries, missing)
        if missing:
            _add_rows(numbers, _present(entries), of_part)
        _add_rows(sums, rows, of_part)
    _add_complete(numbers, values, groups, first_missing if missing else n_samples)
    return sums, numbers


@scripted
def group_means(
    values: list[Tensor],
    groups: Tensor | None,
    n_groups: int,
    keep: list[Tensor] | None = None,
    entries_at_once: int = 2**17,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Numbers, means (in two parts) and centred sums of squares; see :class:`moments.Means`.

    Args:
        values: of every block, ``(n_samples, n_entries, n_properties)``; the entries of a sample
            are further observations of its group.
        groups: the group of every sample, ``(n_samples,)``; ``None`` puts all into group 0.
        n_groups: number of groups.
        keep: for every block ``False`` where an entry is missing, as NaN ones are, in its shape.
        entries_at_once: of a block; temporaries of a megabyte stay in the processor's cache.

    Returns:
        Four tensors ``(n_groups, n_columns)`` float64.
    """
    total = _zeros(values, n_groups)
    number, off, squares = total.clone(), total.clone(), total.clone()
    missing, first_missing = keep is not None, 0
    n_samples, n_rows = _parts(values, entries_at_once)
    for first in range(0, n_samples, n_rows):
        entries = _part(values, keep, first, n_rows)
        of_part = None if groups is None else groups[first : first + n_rows]
        rows = _over_entries(entries, missing)
        if not missing and bool(rows.sum().isnan()):
            missing, first_missing = True, first
            rows = _over_entries(entries, missing)
        if missing:
            _add_rows(number, _present(entries), of_part)
        _add_rows(total, rows, of_part)
    _add_complete(number, values, groups, first_missing if missing else n_samples)
    mean = total / number.clamp(min=1.0)
    for first in range(0, n_samples, n_rows):
        of_part = None if groups is None else groups[first : first + n_rows]
        of_rows = mean if of_part is None else mean.index_select(0, of_part)
        column = 0
        differences: list[Tensor] = []
        for part in _part(values, keep, first, n_rows):
            of_block = of_rows.narrow(1, column, part.size(2))
            differences.append(part - of_block.unsqueeze(1))
            column += part.size(2)
        _add_rows(off, _over_entries(differences, missing), of_part)
        entries = [difference.square() for difference in differences]
        _add_rows(squares, _over_entries(entries, missing), of_part)
    # The sums so far are about the rounded mean.
    rest = off / number.clamp(min=1.0)
    return number, mean, rest, (squares - number * rest.square()).clamp(min=0.0)


def _zeros(values: list[Tensor], n_groups: int) -> Tensor:
    n_columns = 0
    for of_block in values:
        n_columns += of_block.size(2)
    return torch.zeros([n_groups, n_columns], dtype=torch.float64)


def _parts(values: list[Tensor], entries_at_once: int) -> tuple[int, int]:
    """Number of samples, and how many of them to take at a time."""
    n_samples, largest = 0, 1
    for of_block in values:
        n_samples = of_block.size(0)
        largest = max(largest, of_block.size(1) * of_block.size(2))
    return n_samples, max(1, entries_at_once // largest)


def _part(values: list[Tensor], keep: list[Tensor] | None, first: int, n_rows: int) -> list[Tensor]:
    """Some samples of every block in float64, NaN where missing."""
    parts = [of_block[first : first + n_rows].to(torch.float64) for of_block in values]
    if keep is not None:
        for i, kept in enumerate(keep):
            parts[i] = torch.where(kept[first : first + n_rows], parts[i], torch.nan)
    return parts


def _over_entries(entries: list[Tensor], missing: bool) -> Tensor:
    """Sums over the entries of every sample, ``(n_samples, n_columns)``."""
    rows: list[Tensor] = []
    for of_block in entries:
        if missing:
            rows.append(of_block.nansum(1))
        elif of_block.size(1) == 1:
            rows.append(of_block.squeeze(1))
        elif of_block.size(2) == 1:  # the sum over a short last axis is slow
            rows.append(of_block.squeeze(2) @ of_block.new_ones([of_block.size(1), 1]))
        else:
            rows.append(of_block.sum(1))
    return rows[0] if len(rows) == 1 else torch.cat(rows, 1)


def _present(entries: list[Tensor]) -> Tensor:
    """Numbers of entries that are not NaN, ``(n_samples, n_columns)``."""
    numbers = [torch.eq(of_block, of_block).sum(1) for of_block in entries]
    return torch.cat(numbers, 1).to(torch.float64)


def _add_rows(sums: Tensor, rows: Tensor, groups: Tensor | None) -> None:
    if groups is None:
        sums.add_(rows.sum(0))
    elif rows.size(1) == 1:  # twice as fast in one dimension
        sums.squeeze(1).index_add_(0, groups, rows.squeeze(1))
    else:
        sums.index_add_(0, groups, rows)


def _add_complete(
    numbers: Tensor, values: list[Tensor], groups: Tensor | None, n_samples: int
) -> None:
    """Add the numbers of entries of the first samples, none of which is missing."""
    n_entries: list[int] = []
    for of_block in values:
        for _ in range(of_block.size(2)):
            n_entries.append(of_block.size(1))
    per_sample = torch.tensor(n_entries, dtype=torch.float64)
    if groups is None:
        numbers.add_(per_sample, alpha=n_samples)
    else:
        samples = torch.bincount(groups[:n_samples], minlength=numbers.size(0))
        numbers.add_(samples.to(torch.float64).unsqueeze(1) * per_sample)
