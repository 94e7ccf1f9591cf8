"""The composition baseline: its fit, and the baseline of every row of a block."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from metatensor.torch import TensorMap
from torch import Tensor

from ..batches import Atoms, find_types
from ..settings import Numbers, parse_fixed_baseline
from ..statistics import BlockStatistics, TargetStatistics
from ..tensors import Key, TargetLayout


class CompositionWeights(NamedTuple):
    """The composition baseline of one target.

    Attributes:
        types: sorted atomic types, ``(n_types,)``.
        by_key: for each block with a baseline the weight of each type,
            ``(n_types, n_properties)`` float64, in the units of the data; NaN where unknown.
    """

    types: torch.Tensor
    by_key: dict[Key, torch.Tensor]

    def for_types(self, types: torch.Tensor) -> dict[Key, torch.Tensor]:
        """The weights of a sorted subset of the types, by key ``(n_types, n_properties)``."""
        if torch.equal(types, self.types):
            return self.by_key
        index = torch.searchsorted(self.types, types)
        return {key: weights[index] for key, weights in self.by_key.items()}


@dataclass(frozen=True)
class CompositionBaseline:
    r"""A baseline with one weight :math:`w_Z` per atomic type.

    A per-structure target has the baseline :math:`\sum_Z n_Z w_Z` with :math:`n_Z` the number of
    atoms of type :math:`Z`; the weights are the least-squares fit to the totals (of smallest norm
    where the compositions do not determine it). A per-atom target has the baseline :math:`w_Z`, the
    mean over all atoms of the type. Only parts that are invariant under rotation and inversion have
    a baseline: scalars, blocks with ``o3_lambda=0`` and ``o3_sigma=1``, and the trace of rank-2
    spherical blocks.

    Args:
        fixed: weights in the units of the data that replace the fit for some targets:
            ``{"energy": {1: -13.6, 8: -2041.8}}``.

    Raises:
        ValueError: for anything in ``fixed`` that is not a finite number per atomic type.

    Example:
        >>> CompositionBaseline(fixed={"energy": {"1": -13.6}}).fixed
        {'energy': {1: -13.6}}
    """

    fixed: Numbers = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Convert the types to integers."""
        object.__setattr__(self, "fixed", parse_fixed_baseline(self.fixed))

    def weights(self, statistics: TargetStatistics) -> CompositionWeights:
        """Fit the weights of one target, or take the fixed ones.

        Args:
            statistics: statistics of the target.

        Returns:
            Weights of the types in the data, NaN for a type without data. Fixed weights include
            types that are not in the data.

        Raises:
            ValueError: for fixed weights if a type of the data has none, the target has no
                invariant part, or a block has several properties.
        """
        layout = statistics.layout
        fixed = self.fixed.get(layout.name)
        invariant = [key for key in statistics.blocks if layout.invariance(key)]
        if fixed is None:
            fitted = {key: _fitted_weights(statistics.blocks[key]) for key in invariant}
            return CompositionWeights(statistics.types, fitted)
        _check_fixed(layout, invariant, fixed, statistics.types.tolist())
        types = sorted(fixed)
        column = torch.tensor([fixed[z] for z in types], dtype=torch.float64)[:, None]
        return CompositionWeights(torch.tensor(types), dict.fromkeys(invariant, column))


def _fitted_weights(block: BlockStatistics) -> torch.Tensor:
    """Weights of one block, ``(n_types, n_properties)``."""
    means = block.means
    if means is not None:
        return torch.where(means.counts > 0, means.mean + means.mean_correction, torch.nan)
    n_types = block.totals_fit[0][1].types.numel()
    weights = torch.full((n_types, block.counts.shape[1]), torch.nan, dtype=torch.float64)
    for properties, problem in block.totals_fit:
        weights[:, properties] = problem.weights()
    return weights


def _check_fixed(
    layout: TargetLayout, invariant: list[Key], fixed: Mapping[int, float], types: list[int]
) -> None:
    where = f"fixed_baseline of target '{layout.name}'"
    if not invariant:
        raise ValueError(
            f"{where}: expected a target with an invariant part, got blocks that all change under "
            "rotation or inversion (Cartesian blocks do); leave this target out"
        )
    for key in invariant:
        if layout.blocks[key].n_properties != 1:
            raise ValueError(
                f"{where}: expected a single property, got {layout.blocks[key].n_properties} in "
                f"block ({layout.describe(key)}); one number per type is not enough for them"
            )
    missing = [atomic_type for atomic_type in types if atomic_type not in fixed]
    if missing:
        raise ValueError(
            f"{where}: no number for the atomic types {missing} of the data, only for "
            f"{sorted(fixed)}; add them"
        )


class BlockWeights(NamedTuple):
    """The composition weights of one block.

    Attributes:
        layout: layout of the target.
        key: key of the block.
        types: sorted atomic types, ``(n_types,)``.
        weights: contribution of each type, ``(n_types, n_properties)``; NaN for types without data.
    """

    layout: TargetLayout
    key: Key
    types: Tensor
    weights: Tensor


def baseline_of_rows(
    block: BlockWeights,
    atoms: Atoms,
    rows: Tensor | None,
    target: "TensorMap | None" = None,
    index: int = 0,
) -> Tensor:
    """The baseline of every row, in a shape that expands to the values of the block.

    Args:
        block: weights of the block.
        atoms: atoms of the batch.
        rows: index of every row's system, or atom; ``None`` for all of them in batch order.
        target: the target, whose missing values (NaN) need no weight; ``None`` for predictions,
            which need all weights.
        index: index of the block in the target.

    Raises:
        ValueError: for types without a weight.
    """
    baseline, complete = _baseline(block, atoms)
    if rows is not None:
        baseline = baseline[rows]
    components = block.layout.blocks[block.key].components
    baseline = baseline.reshape(baseline.shape[0], *[1] * len(components), baseline.shape[-1])
    if len(components) == 2 and block.layout.invariance(block.key) == "trace":
        diagonal = torch.eye(len(components[0]), dtype=torch.bool, device=baseline.device)
        baseline = torch.where(diagonal[..., None], baseline, 0.0)
    if not complete:
        without_weight = baseline.isnan()
        if target is not None:
            without_weight = without_weight & ~target.block_by_id(index).values.isnan()
        if bool(without_weight.any()):
            found = without_weight.flatten(1).any(1)
            found = found.nonzero()[:, 0] if rows is None else rows[found]
            _refuse_types_without_weight(block, atoms, found)
    return baseline


def _baseline(block: BlockWeights, atoms: Atoms) -> tuple[Tensor, bool]:
    """The baseline of all systems or atoms, ``(n, n_properties)``, and whether none is missing.

    NaN where a type has no weight. The types that occur are known on the CPU, so that nothing
    waits for another device.
    """
    weights = block.weights
    if not torch.equal(atoms.unique_types, block.types):
        index, known = find_types(atoms.unique_types, block.types)
        weights = weights.new_full((len(index), weights.shape[1]), torch.nan)
        weights[known] = block.weights[index[known]]
    complete = math.isfinite(float(weights.sum()))
    weights = weights.to(atoms.types.device, non_blocking=True)
    if block.layout.sample_kind == "atom":
        return atoms.gather_by_type(weights), complete
    if complete:
        return atoms.type_counts @ weights, True
    without_weight = atoms.type_counts @ weights.isnan().to(weights.dtype)
    baseline = atoms.type_counts @ weights.nan_to_num()
    return torch.where(without_weight > 0, torch.nan, baseline), False


def _refuse_types_without_weight(block: BlockWeights, atoms: Atoms, rows: Tensor) -> None:
    if block.layout.sample_kind == "atom":
        types = atoms.types[rows]
    else:
        types = atoms.types[torch.isin(atoms.system_of_atom, rows)]
    fitted = block.types[~block.weights.isnan().any(1)].tolist()
    missing = sorted(set(types.tolist()) - set(fitted))
    raise ValueError(
        f"target '{block.layout.name}', block ({block.layout.describe(block.key)}): no baseline "
        f"for the atomic types {missing}, which were not in the data of the fit (types {fitted}); "
        "give them in fixed_baseline, or fit on data that have them"
    )
