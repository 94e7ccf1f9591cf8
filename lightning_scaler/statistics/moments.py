r"""Arithmetic of the statistics: pure functions on float64 tensors.

NaN marks a missing entry everywhere. The scales are un-centred root mean squares without Bessel's
correction, so that equivariance is kept.
"""

from typing import NamedTuple

import torch


class Means(NamedTuple):
    """Numbers of entries, means and centred sums of squares, each ``(n_groups, n_properties)``.

    A mean is the sum of ``mean`` and a small ``rest``: differences of means of 1e5 that are told
    apart by 1e-4 would lose half of their digits otherwise.
    """

    number: torch.Tensor
    mean: torch.Tensor
    rest: torch.Tensor
    centred: torch.Tensor


class Rows(NamedTuple):
    """A least-squares problem reduced to at most ``n_columns`` rows.

    With :math:`A` the matrix and :math:`y` the values of the whole problem,
    :math:`|A w - y|^2 = |R w - z|^2 + r` for every :math:`w`.

    Attributes:
        matrix: :math:`R`, ``(n_rows, n_columns)``.
        values: :math:`z`, ``(n_rows, n_properties)``.
        rest: :math:`r`, ``(n_properties,)``.
    """

    matrix: torch.Tensor
    values: torch.Tensor
    rest: torch.Tensor


class Fitted(NamedTuple):
    """The scales of one target, one row per group; and what stands in for unseen types.

    Attributes:
        per_target: ``(n_groups,)``.
        per_property: for each block ``(n_groups, n_properties)``.
        pooled_target: over all groups, ``()``.
        pooled_property: over all groups, for each block ``(n_properties,)``.
        vanishing: for each block ``(n_groups, n_properties)`` bool, data with an RMS of zero or
            below the rounding noise of the data.
    """

    per_target: torch.Tensor
    per_property: list[torch.Tensor]
    pooled_target: torch.Tensor
    pooled_property: list[torch.Tensor]
    vanishing: list[torch.Tensor]


def pooled_means(means: Means) -> Means:
    """The means over all groups, ``(1, n_properties)``."""
    number = means.number.sum(0, keepdim=True)
    if len(means.number) == 0:
        return Means(number, number, number, number)
    mean = means.mean.gather(0, means.number.argmax(0, keepdim=True))
    difference = (means.mean - mean) + means.rest
    rest = (means.number * difference).sum(0, keepdim=True) / number.clamp(min=1.0)
    centred = means.centred + means.number * (difference - rest).square()
    return Means(number, mean, rest, centred.sum(0, keepdim=True))


def merge_means(first: Means, second: Means) -> Means:
    """Chan's parallel update (T. F. Chan et al., Technical Report STAN-CS-79-773, 1979)."""
    count = first.number + second.number
    safe = count.clamp(min=1.0)
    mean = torch.where(first.number == 0.0, second.mean, first.mean)
    of_first = torch.where(first.number == 0.0, 0.0, first.rest)
    difference = (second.mean - mean) + (second.rest - of_first)
    rest = of_first + difference * (second.number / safe)
    centred = (
        first.centred
        + second.centred
        + difference.square() * (first.number * (second.number / safe))
    )
    return Means(count, mean, rest, centred)


def squares_about(means: Means, centre: torch.Tensor) -> torch.Tensor:
    """Sum of squared differences to ``centre``, ``(n_groups, n_properties)``."""
    return means.centred + means.number * ((means.mean - centre) + means.rest).square()


def reduce_rows(matrix: torch.Tensor, values: torch.Tensor) -> Rows:
    """Reduce a least-squares problem to the size of its number of columns by QR.

    Sums of squares would cancel: totals of 1e5 with residuals of 1e-3 leave them no digit, while
    the error of the QR factors is a few roundings of the totals (G. H. Golub, C. F. Van Loan,
    Matrix Computations, section 5.3). Each property is treated by itself, so scaling one by a
    power of two scales its results exactly.

    Args:
        matrix: ``(n_rows, n_columns)`` float64.
        values: ``(n_rows, n_properties)`` float64, none missing.
    """
    n_columns = matrix.shape[1]
    # Without the orthogonal factor it takes a third of the time.
    triangular = torch.linalg.qr(torch.cat([matrix, values], 1), mode="r").R
    left = triangular[n_columns:, n_columns:].square().sum(0)
    return Rows(triangular[:n_columns, :n_columns], triangular[:n_columns, n_columns:], left)


def minimum_norm_weights(rows: Rows) -> torch.Tensor:
    """The least-squares weights of smallest norm, ``(n_columns, n_properties)``.

    Directions that the matrix does not determine get no weight, instead of an error or 1e12.
    """
    left, singular, right = torch.linalg.svd(rows.matrix, full_matrices=False)
    determined = singular > 1e-11 * singular.max() if singular.numel() else singular > 0
    left, singular, right = left[:, determined], singular[determined], right[determined]
    weights = torch.zeros((rows.matrix.shape[1], rows.values.shape[1]), dtype=rows.values.dtype)
    for _ in range(2):  # the second time on what rounding has left
        remaining = rows.values - rows.matrix @ weights
        weights = weights + right.T @ ((left.T @ remaining) / singular[:, None])
    return weights


def squares_left(rows: Rows, weights: torch.Tensor) -> torch.Tensor:
    """Sum of squared residuals of the whole problem for any weights, ``(n_properties,)``."""
    return (rows.values - rows.matrix @ weights).square().sum(0) + rows.rest


def fit_scales(
    squares: list[torch.Tensor],
    counts: list[torch.Tensor],
    noise: list[torch.Tensor],
    fixed: torch.Tensor | None = None,
    fixed_pooled: float | None = None,
    single_property: bool = False,
) -> Fitted:
    r"""Per-target and per-property scales of one target from its sums of squares.

    .. math::

        \sigma_Z = \sqrt{\sum_{\alpha p} S_{\alpha p Z} / \sum_{\alpha p} N_{\alpha p Z}}, \qquad
        \sigma_{\alpha p Z} = \sqrt{S_{\alpha p Z} / N_{\alpha p Z}} / \sigma_Z

    No data: the full scale (their product) is 1. Data that vanish: a property takes
    :math:`\sigma_{\alpha p Z} = 1`, a type the RMS over all types, a whole target 1.

    Args:
        squares: sums of squares :math:`S` of each block, ``(n_groups, n_properties)``.
        counts: numbers of entries :math:`N` of each block, likewise.
        noise: sums of squares below which the data of each block vanish, likewise.
        fixed: per-target scales that replace the fitted ones, ``(n_groups,)``; the per-property
            scales remain those against the data's own per-target RMS.
        fixed_pooled: the same for the scale over all types.
        single_property: per-property scales are exactly 1.

    Source: documentation of metatrain, "Target scaling".
    """
    vanishing = [(n > 0) & (s <= bound) for s, n, bound in zip(squares, counts, noise, strict=True)]
    squares = [torch.where(zero, 0.0, s) for s, zero in zip(squares, vanishing, strict=True)]
    total = torch.stack([s.sum(1) for s in squares]).sum(0)  # (n_groups,)
    number = torch.stack([n.sum(1) for n in counts]).sum(0)
    pooled = _root_mean(total.sum(), number.sum(), 1.0)
    data = torch.where(number > 0, _root_mean(total, number, pooled), 1.0)
    per_target = data if fixed is None else fixed
    pooled_target = pooled if fixed_pooled is None else torch.full_like(pooled, fixed_pooled)
    per_property, pooled_property = [], []
    for s, n, zero in zip(squares, counts, vanishing, strict=True):
        if single_property:
            per_property.append(torch.ones_like(s))
            pooled_property.append(torch.ones_like(s[0]) if len(s) else s.sum(0) * 0.0 + 1.0)
            continue
        relative = torch.where(zero, 1.0, _root_mean(s, n, 1.0) / data[:, None])
        per_property.append(torch.where(n > 0, relative, 1.0 / per_target[:, None]))
        over_types = _root_mean(s.sum(0), n.sum(0), 1.0) / pooled
        over_types = torch.where(s.sum(0) == 0.0, 1.0, over_types)
        pooled_property.append(torch.where(n.sum(0) > 0, over_types, 1.0 / pooled_target))
    return Fitted(per_target, per_property, pooled_target, pooled_property, vanishing)


def _root_mean(
    total: torch.Tensor, number: torch.Tensor, otherwise: float | torch.Tensor
) -> torch.Tensor:
    root = (total / number.clamp(min=1.0)).sqrt()
    return torch.where((number > 0) & (total > 0), root, otherwise)
