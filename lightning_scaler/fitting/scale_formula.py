"""Per-target and per-property scales from sums of squares, as a pure function."""

from collections.abc import Sequence
from typing import NamedTuple

import torch


class BlockSums(NamedTuple):
    """Sums over one block after subtracting the baseline, each ``(n_types, n_properties)``.

    There is a single row unless the target is per-atom.

    Attributes:
        sq_sum: sums of squares.
        counts: numbers of values.
        noise_sq_sum: sums of squares up to which the values are rounding noise.
    """

    sq_sum: torch.Tensor
    counts: torch.Tensor
    noise_sq_sum: torch.Tensor


class FittedScales(NamedTuple):
    """The scales of one target, and the scales over all types, for types not seen in the data.

    Attributes:
        per_target: ``(n_types,)``.
        per_property: for each block ``(n_types, n_properties)``.
        pooled_target: per-target scale over all types, ``()``.
        pooled_property: per-property scales over all types, for each block ``(n_properties,)``.
        below_noise: for each block ``(n_types, n_properties)`` bool, where there are data whose RMS
            is zero or rounding noise.
    """

    per_target: torch.Tensor
    per_property: list[torch.Tensor]
    pooled_target: torch.Tensor
    pooled_property: list[torch.Tensor]
    below_noise: list[torch.Tensor]


def compute_scales(
    blocks: Sequence[BlockSums],
    fixed: torch.Tensor | None = None,
    fixed_pooled: float | None = None,
    single_property: bool = False,
) -> FittedScales:
    r"""Per-target and per-property scales of one target.

    .. math::

        \sigma_Z = \sqrt{\sum_{\alpha p} S_{\alpha p Z} / \sum_{\alpha p} N_{\alpha p Z}}, \qquad
        \sigma_{\alpha p Z} = \sqrt{S_{\alpha p Z} / N_{\alpha p Z}} / \sigma_Z

    These are uncentred root mean squares without Bessel's correction, which preserve equivariance.

    * No data: the full scale, the product of both, is 1.
    * Data that are zero or rounding noise: a property has :math:`\sigma_{\alpha p Z} = 1`, a type
      has the RMS over all types, a whole target has 1.

    Args:
        blocks: sums of squares :math:`S` and counts :math:`N` of each block, at least one.
        fixed: per-target scales that replace the fitted ones, ``(n_types,)``, NaN for types whose
            scale is fitted. The per-property scales are still relative to the RMS of the data.
        fixed_pooled: the scale that replaces the one over all types.
        single_property: whether per-property scales are exactly 1.

    Source: documentation of metatrain, "Target scaling".
    """
    below_noise = [(block.counts > 0) & (block.sq_sum <= block.noise_sq_sum) for block in blocks]
    squares = [
        torch.where(noise, 0.0, block.sq_sum)
        for noise, block in zip(below_noise, blocks, strict=True)
    ]
    sq_sum = torch.stack([block_squares.sum(1) for block_squares in squares]).sum(0)  # (n_types,)
    count = torch.stack([block.counts.sum(1) for block in blocks]).sum(0)
    pooled = _rms(sq_sum.sum(), count.sum(), 1.0)
    rms = torch.where(count > 0, _rms(sq_sum, count, pooled), 1.0)
    per_target = rms if fixed is None else torch.where(fixed.isnan(), rms, fixed)
    pooled_target = pooled if fixed_pooled is None else torch.full_like(pooled, fixed_pooled)
    if single_property:
        per_property = [torch.ones_like(block_squares) for block_squares in squares]
        pooled_property = [scales.new_ones(scales.shape[1]) for scales in per_property]
        return FittedScales(per_target, per_property, pooled_target, pooled_property, below_noise)
    per_property, pooled_property = [], []
    for block_squares, block, noise in zip(squares, blocks, below_noise, strict=True):
        relative = _rms(block_squares, block.counts, 1.0) / rms[:, None]
        relative = torch.where(noise, 1.0, relative)
        no_data = 1.0 / per_target[:, None]
        per_property.append(torch.where(block.counts > 0, relative, no_data))
        total, n_values = block_squares.sum(0), block.counts.sum(0)  # (n_properties,)
        relative = torch.where(total == 0.0, 1.0, _rms(total, n_values, 1.0) / pooled)
        pooled_property.append(torch.where(n_values > 0, relative, 1.0 / pooled_target))
    return FittedScales(per_target, per_property, pooled_target, pooled_property, below_noise)


def _rms(
    sq_sum: torch.Tensor, count: torch.Tensor, otherwise: float | torch.Tensor
) -> torch.Tensor:
    """Root mean square, or ``otherwise`` where there are no values or all are zero."""
    root = (sq_sum / count.clamp(min=1.0)).sqrt()
    return torch.where((count > 0) & (sq_sum > 0), root, otherwise)
