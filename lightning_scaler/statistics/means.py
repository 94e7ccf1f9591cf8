"""Means and squared deviations that merge exactly, as pure functions on float64 tensors."""

from typing import Annotated, NamedTuple

import torch

from ..tensors import TensorCheck


class Means(NamedTuple):
    """Counts, means and squared deviations, each ``(n_types, n_properties)`` float64.

    The mean is ``mean + mean_correction``. One float64 is not enough: means of 1e5 that differ by
    1e-4 would lose half of the digits of their difference.

    Attributes:
        counts: number of values that are not missing.
        mean: their mean, rounded to float64; 0 where there are none.
        mean_correction: the exact mean minus ``mean``; 0 where there are no values.
        sum_sq_dev: sum of the squared deviations from the mean.
    """

    counts: Annotated[torch.Tensor, TensorCheck("n_types", "n_properties")]
    mean: Annotated[torch.Tensor, TensorCheck("n_types", "n_properties")]
    mean_correction: Annotated[torch.Tensor, TensorCheck("n_types", "n_properties")]
    sum_sq_dev: Annotated[torch.Tensor, TensorCheck("n_types", "n_properties")]


def merge_means(first: Means, second: Means) -> Means:
    r"""The means of two sets of values together.

    .. math::

        \bar y = \bar y_1 + \delta \frac{n_2}{n}, \qquad
        M = M_1 + M_2 + \delta^2 \frac{n_1 n_2}{n}, \qquad \delta = \bar y_2 - \bar y_1

    with :math:`M` the sum of squared deviations.

    Source: T. F. Chan, G. H. Golub, R. J. LeVeque, Technical Report STAN-CS-79-773, 1979.
    """
    counts = first.counts + second.counts
    safe_counts = counts.clamp(min=1.0)
    mean = torch.where(first.counts == 0.0, second.mean, first.mean)
    difference = (second.mean - mean) + (second.mean_correction - first.mean_correction)
    correction = first.mean_correction + difference * (second.counts / safe_counts)
    sum_sq_dev = (
        first.sum_sq_dev
        + second.sum_sq_dev
        + difference.square() * (first.counts * (second.counts / safe_counts))
    )
    return Means(counts, mean, correction, sum_sq_dev)


def pool_means(means: Means) -> Means:
    """The means over all types, ``(1, n_properties)``."""
    counts = means.counts.sum(0, keepdim=True)
    if len(means.counts) == 0:
        return Means(counts, counts, counts, counts)
    # Differences from the mean of the most frequent type are small and exact.
    mean = means.mean.gather(0, means.counts.argmax(0, keepdim=True))
    difference = (means.mean - mean) + means.mean_correction
    correction = (means.counts * difference).sum(0, keepdim=True) / counts.clamp(min=1.0)
    sum_sq_dev = means.sum_sq_dev + means.counts * (difference - correction).square()
    return Means(counts, mean, correction, sum_sq_dev.sum(0, keepdim=True))


def sum_sq_about(means: Means, centre: torch.Tensor) -> torch.Tensor:
    """Sum of squared differences from ``centre``; both ``(n_types, n_properties)``."""
    difference = (means.mean - centre) + means.mean_correction
    return means.sum_sq_dev + means.counts * difference.square()
