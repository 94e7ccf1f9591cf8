"""A composition baseline corrected by the errors of predictions that contain it."""

from dataclasses import replace

import torch

from ..statistics import TargetStatistics
from .composition import CompositionBaseline, CompositionWeights, check_fixed


def correct_weights(
    before: CompositionWeights, errors: TargetStatistics, baseline: CompositionBaseline
) -> CompositionWeights:
    r"""Add to the weights of a target those that fit the errors of its predictions.

    .. math::

        w_Z \leftarrow w_Z + \delta_Z, \qquad
        \delta = \arg\min_\delta \sum_i (y_i - \hat y_i - \sum_Z n_{iZ} \delta_Z)^2

    with targets :math:`y` and predictions :math:`\hat y`. The correction of smallest norm is
    used: it is 0 for types and blocks that are not in the data.

    Args:
        before: the weights that the predictions contain.
        errors: statistics of :math:`y - \hat y`.
        baseline: the baseline, which may fix some of the new weights.

    Raises:
        ValueError: for fixed weights if a block has several properties.
    """
    layout = errors.layout
    fixed = baseline.fixed.get(layout.name, {})
    fixed_types = torch.tensor(sorted(fixed)).long()
    numbers = torch.tensor([fixed[z] for z in sorted(fixed)], dtype=torch.float64)[:, None]
    types = torch.cat([before.types, fixed_types, errors.types]).unique()
    old = {}
    invariant = [key for key in layout.blocks if layout.invariance(key)]
    for key in [*invariant, *(key for key in before.by_key if key not in layout.blocks)]:
        of_block = before.or_nan(key, types)
        if of_block is not None:
            old[key] = of_block
            continue
        shape = (types.numel(), layout.blocks[key].n_properties)
        old[key] = torch.full(shape, torch.nan).double()
    fixed_rows = torch.searchsorted(types, fixed_types)
    if fixed:
        check_fixed(layout, invariant)
    differences = {key: numbers - table[fixed_rows].nan_to_num() for key, table in old.items()}
    given = CompositionWeights(fixed_types, differences, {})
    correction = replace(baseline, fixed={}).weights(errors, kept=given)
    by_key, unknown = {}, {}
    for key, table in old.items():
        added = correction.or_nan(key, types)
        if added is None:  # a block without data
            added = torch.full_like(table, torch.nan)
        weights = table.nan_to_num() + added.nan_to_num()
        by_key[key] = weights.index_copy(0, fixed_rows, numbers.expand(-1, weights.shape[1]))
        without_data = table.isnan() & added.isnan()
        if layout.sample_kind == "structure" and bool(without_data.any()):
            unknown[key] = without_data
    return CompositionWeights(types, by_key, unknown)
