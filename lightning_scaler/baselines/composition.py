"""The composition baseline, its fit, and its correction by the errors of predictions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import torch

from ..settings import Numbers, list_of_names, parse_fixed_baseline
from ..statistics import BlockStatistics, TargetStatistics
from ..tensors import Key, TargetLayout, fields_from_state

Composition = Literal["counts", "fractions", "none"]


class CompositionWeights(NamedTuple):
    """The composition baseline of one target.

    Attributes:
        types: sorted atomic types, ``(n_types,)``.
        by_key: for each block with a baseline the weight of each type,
            ``(n_types, n_properties)`` float64, in the units of the data; 0 for types without data.
        unknown: for each block of a per-structure target in which some types have no data for a
            property, which weights these are, ``(n_types, n_properties)`` bool.
    """

    types: torch.Tensor
    by_key: dict[Key, torch.Tensor]
    unknown: dict[Key, torch.Tensor]

    def or_nan(self, key: Key, types: torch.Tensor, n_properties: int) -> torch.Tensor:
        """The weights of a block for a sorted superset of the types.

        Returns:
            ``(n_types, n_properties)``, NaN where they are unknown, for other types, and for a
            block without weights.
        """
        table = torch.full((types.numel(), n_properties), torch.nan, dtype=torch.float64)
        if key not in self.by_key:
            return table
        weights = self.by_key[key]
        if key in self.unknown:
            weights = torch.where(self.unknown[key], torch.nan, weights)
        return table.index_copy(0, torch.searchsorted(types, self.types), weights)

    def for_types(self, types: torch.Tensor) -> dict[Key, torch.Tensor]:
        """The weights of a sorted subset of the types, by key ``(n_types, n_properties)``."""
        if torch.equal(types, self.types):
            return self.by_key
        index = torch.searchsorted(self.types, types)
        return {key: weights[index] for key, weights in self.by_key.items()}


@dataclass(frozen=True)
class CompositionBaseline:
    r"""A baseline with one weight :math:`w_Z` per atomic type.

    An extensive target has the baseline :math:`\sum_Z n_Z w_Z` with :math:`n_Z` the number of
    atoms of type :math:`Z`, an intensive per-structure target :math:`\sum_Z (n_Z / N) w_Z` with
    :math:`N` the number of all atoms, which does not grow with the structure. The weights are the
    least-squares fit to the values of the structures (of smallest norm where the compositions do
    not determine it). A per-atom target has the baseline :math:`w_Z`, the mean over all atoms of
    the type. Only parts that are invariant under rotation and inversion have a baseline: scalars,
    blocks with ``o3_lambda=0`` and ``o3_sigma=1``, and the trace of rank-2 spherical blocks.

    Args:
        fixed: weights in the units of the data that replace fitted ones, for some targets and for
            all types (integers or chemical symbols) or some of them:
            ``{"energy": {"H": -13.6, 8: -2041.8}}``.
        excluded: names of the targets without a baseline.
        counted: names of intensive targets whose weights multiply counts, as in metatrain.

    Raises:
        TypeError: for ``excluded`` or ``counted`` other than a list of names.
        ValueError: for anything in ``fixed`` that is not a finite number per atomic type, and for
            a target in both.

    Example:
        >>> CompositionBaseline(fixed={"energy": {"H": -13.6}}).fixed
        {'energy': {1: -13.6}}
    """

    fixed: Numbers = field(default_factory=dict)
    excluded: tuple[str, ...] = ()
    counted: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Convert the types to integers, and the names to sorted tuples."""
        object.__setattr__(self, "fixed", parse_fixed_baseline(self.fixed))
        for setting in ("excluded", "counted"):
            names = sorted(set(list_of_names(setting, getattr(self, setting))))
            object.__setattr__(self, setting, tuple(names))
        for name in self.excluded:
            if name in self.fixed:
                raise ValueError(
                    f"target '{name}' has no baseline and a fixed_baseline, which contradict each "
                    "other; leave out one of them"
                )

    def __repr__(self) -> str:
        names = {"excluded": self.excluded, "counted": self.counted}
        given = "".join(f", {setting}={value}" for setting, value in names.items() if value)
        return f"{type(self).__name__}(fixed={self.fixed}{given})"

    @classmethod
    def from_state(cls, state: Any) -> "CompositionBaseline":
        """The inverse of ``dataclasses.asdict``.

        Raises:
            InvalidStateError: for a missing or unknown field, or a value that does not fit.
        """
        # Version 0.1.0 had no setting ``counted``.
        state = {"counted": [], **state} if isinstance(state, dict) else state
        baseline: CompositionBaseline = fields_from_state(cls, state)
        return baseline

    def composition(self, layout: TargetLayout, extensive: bool) -> Composition:
        """What the weights of a target are multiplied by: ``"counts"`` or ``"fractions"``.

        Returns:
            ``"none"`` for a target without a baseline.
        """
        if layout.name in self.excluded:
            return "none"
        on_counts = extensive or layout.sample_kind != "structure" or layout.name in self.counted
        return "counts" if on_counts else "fractions"

    def is_fixed(self, layout: TargetLayout, types: Sequence[int]) -> bool:
        """Whether a target has no weight to fit for any of these types."""
        if layout.name in self.excluded or not any(map(layout.invariance, layout.blocks)):
            return True
        return layout.name in self.fixed and {*types} <= self.fixed[layout.name].keys()

    def weights(
        self,
        statistics: TargetStatistics,
        kept: CompositionWeights | None = None,
        otherwise: CompositionWeights | None = None,
    ) -> CompositionWeights:
        """The weights of one target: fixed ones, and fitted ones for all other types.

        Args:
            statistics: statistics of the target.
            kept: earlier weights, which are used as they are; those that are unknown are fitted.
            otherwise: earlier weights, which are used only where there are no data to fit them.

        Returns:
            Weights of the types in the data, and of those with a fixed or an earlier weight.

        Raises:
            ValueError: for fixed weights if the target has no invariant part, or a block has
                several properties.
        """
        layout, types = statistics.layout, statistics.types
        if layout.name in self.excluded:
            return CompositionWeights(types, {}, {})
        fixed = self.fixed.get(layout.name, {})
        earlier = kept or otherwise or CompositionWeights(types[:0], {}, {})
        invariant = [
            key
            for key in layout.blocks
            if layout.invariance(key) and (key in statistics.blocks or key in earlier.by_key)
        ]
        types = torch.cat([types, torch.tensor(list(fixed)).long(), earlier.types]).unique()
        fixed_weights = _fixed_or_nan(fixed, types, layout, invariant)
        by_key, unknown = {}, {}
        for key in invariant:
            n_properties = layout.blocks[key].n_properties
            before = earlier.or_nan(key, types, n_properties)
            weights = fixed_weights.repeat(1, n_properties)
            if kept is not None:
                weights = torch.where(before.isnan(), weights, before)
            if key in statistics.blocks:
                in_data = torch.searchsorted(types, statistics.types)
                weights[in_data] = _fit_weights(statistics.blocks[key], weights[in_data])
            if kept is None:
                weights = torch.where(weights.isnan(), before, weights)
            by_key[key] = weights.nan_to_num()
            if layout.sample_kind == "structure" and bool(weights.isnan().any()):
                unknown[key] = weights.isnan()
        return CompositionWeights(types, by_key, unknown)


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
    types = torch.cat([before.types, torch.tensor(list(fixed)).long(), errors.types]).unique()
    n_properties = {k: layout.blocks[k].n_properties for k in layout.blocks if layout.invariance(k)}
    fixed_weights = _fixed_or_nan(fixed, types, layout, list(n_properties))
    n_properties |= {key: weights.shape[1] for key, weights in before.by_key.items()}
    old = {key: before.or_nan(key, types, n) for key, n in n_properties.items()}
    differences = {key: fixed_weights - table.nan_to_num() for key, table in old.items()}
    given = CompositionWeights(types, differences, {})
    correction = replace(baseline, fixed={}).weights(errors, kept=given)
    by_key, unknown = {}, {}
    for key, table in old.items():
        added = correction.or_nan(key, types, n_properties[key])
        weights = table.nan_to_num() + added.nan_to_num()
        by_key[key] = torch.where(fixed_weights.isnan(), weights, fixed_weights)
        without_data = table.isnan() & added.isnan()
        if layout.sample_kind == "structure" and bool(without_data.any()):
            unknown[key] = without_data
    return CompositionWeights(types, by_key, unknown)


def _fit_weights(block: BlockStatistics, fixed: torch.Tensor) -> torch.Tensor:
    """Weights of one block, ``(n_types, n_properties)``; NaN for types without data.

    Args:
        block: statistics of the block.
        fixed: weights that are not fitted, in the same shape; NaN where there is none.
    """
    if block.means is not None:
        means = block.means
        fitted = torch.where(means.counts > 0, means.mean + means.mean_correction, torch.nan)
        return torch.where(fixed.isnan(), fitted, fixed)
    weights = fixed.clone()
    for properties, problem in block.totals_fit:
        weights[:, properties] = problem.weights(fixed[:, properties])
    return weights


def _fixed_or_nan(
    fixed: Mapping[int, float], types: torch.Tensor, layout: TargetLayout, invariant: list[Key]
) -> torch.Tensor:
    """The fixed weight of each type, ``(n_types, 1)``, NaN where there is none.

    Args:
        fixed: weights by type.
        types: atomic types, ``(n_types,)``.
        layout: layout of the target.
        invariant: keys of the blocks that can have a baseline.

    Raises:
        ValueError: for fixed weights of a target without such a block, or if a block has several
            properties.
    """
    where = f"fixed_baseline of target '{layout.name}'"
    if fixed and not invariant:
        raise ValueError(
            f"{where}: expected a target with an invariant part, got blocks that all change under "
            "rotation or inversion (Cartesian blocks do); leave this target out"
        )
    for key in invariant:
        if fixed and layout.blocks[key].n_properties != 1:
            raise ValueError(
                f"{where}: expected a single property, got {layout.blocks[key].n_properties} in "
                f"block ({layout.describe(key)}); one number per type is not enough for them"
            )
    by_type = [[fixed.get(z, torch.nan)] for z in types.tolist()]
    return torch.tensor(by_type, dtype=torch.float64).reshape(-1, 1)
