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
        sq_sum: sums of squares of all that is not below the noise, ``(n_types,)``.
    """

    per_target: torch.Tensor
    per_property: Sequence[torch.Tensor]
    pooled_target: torch.Tensor
    pooled_property: Sequence[torch.Tensor]
    below_noise: Sequence[torch.Tensor]
    sq_sum: torch.Tensor


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
    widths = [block.counts.shape[1] for block in blocks]
    sq_sums, counts, noise_sq_sums = (torch.cat(sums, 1) for sums in zip(*blocks, strict=True))
    below_noise = (counts > 0) & (sq_sums <= noise_sq_sums)
    sq_sums = torch.where(below_noise, 0.0, sq_sums)
    sq_sum, count = sq_sums.sum(1), counts.sum(1)  # (n_types,)
    pooled = _rms(sq_sum.sum(), count.sum(), 1.0)
    rms = torch.where(count > 0, _rms(sq_sum, count, pooled), 1.0)
    per_target = rms if fixed is None else torch.where(fixed.isnan(), rms, fixed)
    pooled_target = pooled if fixed_pooled is None else torch.full_like(pooled, fixed_pooled)
    if single_property:
        per_property, pooled_property = torch.ones_like(sq_sums), sq_sums.new_ones(1)
    else:
        relative = torch.where(below_noise, 1.0, (sq_sums / counts).sqrt() / rms[:, None])
        per_property = torch.where(counts > 0, relative, 1.0 / per_target[:, None])
        total, n_values = sq_sums.sum(0), counts.sum(0)  # (n_columns,)
        pooled_property = torch.where(
            n_values > 0, _rms(total, n_values, pooled) / pooled, 1.0 / pooled_target
        )
    return FittedScales(
        per_target,
        per_property.split(widths, 1),
        pooled_target,
        pooled_property.split(widths),
        below_noise.split(widths, 1),
        sq_sum,
    )


def _rms(
    sq_sum: torch.Tensor, count: torch.Tensor, otherwise: float | torch.Tensor
) -> torch.Tensor:
    """Root mean square, or ``otherwise`` where there are no values or all are zero."""
    return torch.where(sq_sum > 0, (sq_sum / count).sqrt(), otherwise)
