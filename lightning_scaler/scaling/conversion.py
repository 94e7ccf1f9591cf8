"""The targets of a batch converted from one space to another."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from metatensor.torch import TensorMap
from torch import Tensor

from ..baselines import (
    BlockWeights,
    Contribution,
    FrozenModule,
    align_contributions,
    baseline_of_rows,
    find_unseen_types,
    gradient_contributions,
    refuse_unseen_types,
)
from ..batches import Atoms, IndexedBatch, IndexedTarget
from ..settings import Settings
from ..tensors import Key, dtype_of, have_dtype
from .arithmetic import ConversionArgs, rescale
from .baseline_warnings import (
    warn_of_ignored_types,
    warn_of_lost_values,
    warn_of_unknown_predictions,
)
from .factors import are_moderate, check_factors, check_quotients, factors_of_rows, n_atoms_of_rows
from .target_scales import ScaleKind, TargetScales

# Distance of each space from loss space: exponents of the per-target and the per-property scale.
SCALE_EXPONENTS = {"physical": (1, 0), "loss": (0, 0), "model": (0, -1)}


@dataclass(frozen=True)
class Conversion:
    """The spaces and options of a conversion; see :meth:`Scaler.convert`.

    Attributes:
        source: space of the tensors.
        target: space of the result.
        settings: settings of the scaler.
        baseline: whether to subtract or add back the baseline.
        per_atom: whether to divide extensive values, and their gradients with respect to the whole
            structure (strain), by the number of atoms.
        dtype: dtype of the result, if it is to change.
        of_targets: whether tensors outside physical space are targets too, not predictions: their
            missing values need no baseline.
    """

    source: str
    target: str
    settings: Settings
    baseline: bool = True
    per_atom: bool = False
    dtype: torch.dtype | None = None
    of_targets: bool = False

    @cached_property
    def applies_baseline(self) -> bool:
        """Whether the baseline is subtracted or added back."""
        physical = (self.source == "physical") != (self.target == "physical")
        return self.baseline and physical

    @cached_property
    def scale_kind(self) -> ScaleKind:
        """The kind of scale between the two spaces, which must not be the same."""
        per_target, per_property = (
            a != b
            for a, b in zip(SCALE_EXPONENTS[self.source], SCALE_EXPONENTS[self.target], strict=True)
        )
        if per_target:
            return "full" if per_property else "per_target"
        return "per_property"

    @cached_property
    def multiplies(self) -> bool:
        """Whether values are multiplied by the scales (towards physical space) or divided."""
        return sum(SCALE_EXPONENTS[self.target]) > sum(SCALE_EXPONENTS[self.source])


def convert_targets(
    scales: Mapping[str, TargetScales],
    additive: FrozenModule | None,
    batch: IndexedBatch,
    conversion: Conversion,
) -> dict[str, TensorMap]:
    """Convert the targets of a batch; see :meth:`Scaler.convert`.

    Args:
        scales: scales by target name.
        additive: module whose contributions are part of the baseline, if there is one.
        batch: targets of the batch, all of which have scales.
        conversion: spaces and options.

    Raises:
        ValueError: for blocks or types without scales, or missing contributions.
    """
    contributions: Mapping[str, Sequence[Contribution | None]] = {}
    if additive is not None and conversion.applies_baseline:
        contributions = _contributions(scales, additive, batch)
    converted = {name: target.tensor for name, target in batch.targets.items()}
    changed = [
        name
        for name, target in batch.targets.items()
        if _has_known_blocks(scales[name], target)
        and _changes(scales[name], batch.atoms, conversion)
    ]
    if conversion.dtype is not None:
        others = [name for name in converted if name not in changed]
        right = have_dtype([converted[name] for name in others], conversion.dtype) if others else []
        for name in others if not all(right) else ():
            converted[name] = converted[name].to(dtype=conversion.dtype)
    args = {
        name: _conversion_args(
            scales[name], batch.targets[name], batch.atoms, conversion, contributions.get(name)
        )
        for name in changed
    }
    adds_baseline = conversion.applies_baseline and conversion.target == "physical"
    if adds_baseline and not conversion.of_targets:
        warn_of_unknown_predictions({name: scales[name] for name in args}, batch.atoms)
    if args:
        rescaled = rescale(list(args.values()), conversion.multiplies, conversion.dtype)
        converted.update(zip(args, rescaled, strict=True))
        if conversion.dtype is not None and not conversion.multiplies:
            for name in args:
                if not are_moderate(scales[name], conversion.scale_kind):
                    check_quotients(scales[name], converted[name], conversion.dtype)
    return converted


def _has_known_blocks(scales: TargetScales, target: IndexedTarget) -> bool:
    """Whether a target has blocks to scale; those of atom pairs are never scaled.

    Raises:
        ValueError: naming the first block that was not in the data of the fit.
    """
    known, layout = scales.layout, target.layout
    unknown = [] if layout is known else [key for key in layout.blocks if key not in known.blocks]
    if unknown:
        raise ValueError(
            f"target '{known.name}': no scale for the block ({known.describe(unknown[0])}), which "
            "was not in the data of the fit; known: "
            f"{[known.describe(key) for key in known.blocks]}"
        )
    return bool(layout.blocks) and layout.sample_kind != "pair"


def _changes(scales: TargetScales, atoms: Atoms, conversion: Conversion) -> bool:
    """Whether a conversion changes values, or has to refuse them for a type without scales."""
    return (
        conversion.scale_kind != "per_property"
        or not scales.has_one_scale
        or (conversion.per_atom and scales.extensive)
        or not scales.has_tables_for(atoms.set_of_types)
    )


def _contributions(
    scales: Mapping[str, TargetScales], additive: FrozenModule, batch: IndexedBatch
) -> dict[str, list[Contribution | None]]:
    names = [name for name in batch.targets if scales[name].additive]
    if not names:
        return {}
    outputs = additive(batch.atoms, names)
    missing = [name for name in names if name not in outputs and batch.atoms.n_systems]
    if missing:
        raise ValueError(
            f"additive module {additive.name}: expected contributions to the targets {missing}, "
            f"with which their scales were fitted, got {sorted(outputs)}; construct the module as "
            "in the fit"
        )
    tensors = {name: batch.targets[name].tensor for name in names}
    return align_contributions(outputs, tensors, batch.atoms, batch.indexing)


def _conversion_args(
    scales: TargetScales,
    target: IndexedTarget,
    atoms: Atoms,
    conversion: Conversion,
    contributions: Sequence[Contribution | None] | None,
) -> ConversionArgs:
    """A target with everything that its conversion needs.

    Args:
        scales: scales of the target.
        target: target in the space ``conversion.source``.
        atoms: atoms of the batch.
        conversion: spaces and options.
        contributions: contributions of an additive module to each block.
    """
    tensor = target.tensor
    factors, scale_index = factors_of_rows(
        scales, conversion.scale_kind, target, atoms, conversion.settings.unseen_types
    )
    n_atoms = n_atoms_of_rows(target, atoms) if conversion.per_atom and scales.extensive else []
    if conversion.source == "model":
        # A prediction for a system without atoms has no target, but dividing it by NaN would make
        # all gradients of the loss NaN.
        n_atoms = [n.nan_to_num(1.0) for n in n_atoms]
    baselines: list[Tensor | None] = []
    gradient_baselines: list[Tensor | None] = []
    if conversion.applies_baseline and (scales.weights or contributions is not None):
        for i, key in enumerate(target.layout.blocks):
            baseline = None
            if key in scales.weights:
                baseline = _composition_baseline(scales, target, i, key, atoms, conversion)
            contribution = contributions[i] if contributions else None
            if contribution is not None:
                added = contribution.values
                baseline = added if baseline is None else baseline + added
            baselines.append(baseline)
        if contributions is not None:
            gradient_baselines = gradient_contributions(tensor, contributions)
    if not are_moderate(scales, conversion.scale_kind):
        dtype = _factor_dtype(tensor, conversion, in_float64=bool(baselines))
        check_factors(scales, conversion.scale_kind, dtype, factors, scale_index)
    return ConversionArgs(tensor, factors, scale_index, n_atoms, baselines, gradient_baselines)


def _factor_dtype(tensor: TensorMap, conversion: Conversion, in_float64: bool) -> torch.dtype:
    """The dtype that has to hold the factors of a conversion; see :func:`arithmetic.rescale`."""
    stored = dtype_of(tensor)
    if conversion.multiplies:
        return conversion.dtype or (torch.float64 if in_float64 else stored)
    return torch.float64 if in_float64 or stored == torch.float64 else torch.float32


def _composition_baseline(
    scales: TargetScales,
    target: IndexedTarget,
    index: int,
    key: Key,
    atoms: Atoms,
    conversion: Conversion,
) -> Tensor:
    """The composition baseline of every row of a block; see :func:`baseline_of_rows`.

    Args:
        scales: scales of the target.
        target: target in the space ``conversion.source``.
        index: index of the block in the target.
        key: key of the block.
        atoms: atoms of the batch.
        conversion: spaces and options.
    """
    weights, unknown = scales.weights[key], scales.unknown.get(key)
    block = BlockWeights(
        scales.layout, key, scales.baseline_types, weights, unknown, scales.composition
    )
    rows = target.rows[index] if target.rows else None
    settings = conversion.settings
    all_known = atoms.set_of_types <= scales.set_of_baseline_types
    # Missing values of a target need no weight; predictions need all of them.
    values = None
    of_targets = conversion.source == "physical" or conversion.of_targets
    if of_targets and (not all_known or unknown is not None):
        # Reading them takes as long as the baseline.
        values = target.tensor.block_by_id(index).values
    ignored = settings.unseen_types == "identity" and "ignored type" in scales.warnings_given
    if not all_known and not settings.provisional and not ignored:
        unseen = find_unseen_types(block, atoms, rows, values)
        if unseen and settings.unseen_types != "identity":
            refuse_unseen_types(block, unseen, scales.data_of_fit)
        if unseen:
            warn_of_ignored_types(scales, unseen)
    baseline = baseline_of_rows(block, atoms, rows)
    if values is None or unknown is None or "lost value" in scales.warnings_given:
        return baseline
    if bool((baseline.isnan() & ~values.isnan()).any()):
        warn_of_lost_values(scales)
    return baseline
