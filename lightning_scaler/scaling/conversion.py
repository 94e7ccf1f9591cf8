"""The targets of a batch converted from one space to another."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from metatensor.torch import TensorMap
from torch import Tensor

from ..baselines import Contribution, gradient_contributions
from ..batches import Atoms, IndexedBatch, IndexedTarget
from ..tensors import dtype_of, have_dtype
from .arithmetic import ConversionArgs, rescale
from .baseline_warnings import warn_of_unknown_predictions
from .batch_baselines import baselines_of_blocks, find_contributions
from .scaler_module import ScalerModule
from .target_scales import ScaleKind, TargetScales

# Distance of each space from loss space: exponents of the per-target and the per-property scale.
SCALE_EXPONENTS = {"physical": (1, 0), "loss": (0, 0), "model": (0, -1)}

# Every format holds these, so that most conversions need not ask for the dtype of a target.
ALWAYS_HELD = (float(torch.finfo(torch.float16).tiny), float(torch.finfo(torch.float16).max))


@dataclass(frozen=True)
class Conversion:
    """The spaces and options of a conversion; see :meth:`Scaler.convert`.

    Attributes:
        source: space of the tensors.
        target: space of the result.
        baseline: whether to subtract or add back the baseline.
        per_atom: whether to divide extensive values, and their gradients with respect to the whole
            structure (strain), by the number of atoms.
        dtype: dtype of the result, if it is to change.
        of_targets: whether tensors outside physical space are targets too, not predictions: their
            missing values need no baseline.
    """

    source: str
    target: str
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
    scaler: ScalerModule, batch: IndexedBatch, conversion: Conversion
) -> dict[str, TensorMap]:
    """Convert the targets of a batch; see :meth:`Scaler.convert`.

    Args:
        scaler: scaler with its settings, and the additive module if there is one.
        batch: targets of the batch, all of which have scales.
        conversion: spaces and options.

    Raises:
        ValueError: for blocks or types without scales, or missing contributions.
    """
    scales = scaler.targets
    contributions: Mapping[str, Sequence[Contribution | None]] = {}
    if scaler.additive is not None and conversion.applies_baseline:
        contributions = find_contributions(scales, scaler.additive, batch)
    converted = {name: target.tensor for name, target in batch.targets.items()}
    changed = [
        name
        for name, target in batch.targets.items()
        if _has_known_blocks(scales[name], target)
        and _changes(scales[name], batch.atoms, conversion)
    ]
    others = [name for name in converted if name not in changed]
    if conversion.dtype is not None and others:
        right = have_dtype([converted[name] for name in others], conversion.dtype)
        for name in others if not all(right) else ():
            converted[name] = converted[name].to(dtype=conversion.dtype)
    args = {
        name: _conversion_args(scaler, name, batch, conversion, contributions.get(name))
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


def _conversion_args(
    scaler: ScalerModule,
    name: str,
    batch: IndexedBatch,
    conversion: Conversion,
    contributions: Sequence[Contribution | None] | None,
) -> ConversionArgs:
    """A target of a batch with everything that its conversion needs.

    Args:
        scaler: scaler with its settings.
        name: name of the target.
        batch: targets of the batch in the space ``conversion.source``.
        conversion: spaces and options.
        contributions: contributions of an additive module to each block.
    """
    scales, settings = scaler.targets[name], scaler.settings
    target, atoms = batch.targets[name], batch.atoms
    tensor = target.tensor
    factors, scale_index = scales.factors_of_rows(
        conversion.scale_kind, target, atoms, settings.unseen_types
    )
    n_atoms = n_atoms_of_rows(target, atoms) if conversion.per_atom and scales.extensive else []
    if conversion.source == "model":
        # A prediction for a system without atoms has no target, but dividing it by NaN would make
        # all gradients of the loss NaN.
        n_atoms = [n.nan_to_num(1.0) for n in n_atoms]
    baselines: list[Tensor | None] = []
    gradient_baselines: list[Tensor | None] = []
    if conversion.applies_baseline:
        of_targets = conversion.source == "physical" or conversion.of_targets
        baselines = baselines_of_blocks(scales, target, atoms, settings, contributions, of_targets)
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


def n_atoms_of_rows(target: IndexedTarget, atoms: Atoms) -> list[Tensor]:
    """Number of atoms of every sample's system, by block, or once for all blocks in batch order."""
    return [atoms.n_atoms_or_nan[rows] for rows in target.rows] or [atoms.n_atoms_or_nan]


def are_moderate(scales: TargetScales, kind: ScaleKind) -> bool:
    """Whether every dtype holds all scales of one kind."""
    smallest, largest = scales.factor_ranges[kind]
    return ALWAYS_HELD[0] <= smallest and largest <= ALWAYS_HELD[1]


def check_factors(
    scales: TargetScales,
    kind: ScaleKind,
    dtype: torch.dtype,
    factors: list[Tensor],
    scale_index: list[Tensor],
) -> None:
    """Refuse factors that are not normal numbers in the dtype of a conversion.

    They would give 0 and infinity: 1e-50 is 0 in float32. (A scale that is exactly 0, from
    metatrain, gives the 0 that it means.)

    Args:
        scales: scales of the target.
        kind: kind of scale of the factors.
        dtype: dtype that holds the factors.
        factors: scales of every block, or of all blocks, as in ``ConversionArgs``.
        scale_index: row of the factors for each sample, as in ``ConversionArgs``.

    Raises:
        ValueError: naming the target, the first such factor and the dtype.
    """
    smallest, largest = scales.factor_ranges[kind]
    limits = torch.finfo(dtype)
    if limits.tiny <= smallest and largest <= limits.max:
        return
    for i, of_block in enumerate(factors):
        used = of_block[scale_index[min(i, len(scale_index) - 1)]] if scale_index else of_block
        outside = used[(used > limits.max) | ((used < limits.tiny) & (used > 0.0))]
        if len(outside):
            raise ValueError(
                f"target '{scales.layout.name}': expected scales within the range of {dtype} "
                f"({limits.tiny:.3g} to {limits.max:.3g}), got {float(outside[0]):.4g}, with which "
                "values would become 0 or infinite; convert the target to another unit, or use "
                "float64"
            )


def check_quotients(scales: TargetScales, converted: TensorMap, dtype: torch.dtype) -> None:
    """Refuse targets that are infinite, or nothing but 0, once they are divided and rounded.

    Args:
        scales: scales of the target.
        converted: target in loss space.
        dtype: its dtype.

    Raises:
        ValueError: naming the target, its smallest and largest scale, and the dtype.
    """
    values = torch.cat([block.values.detach().reshape(-1) for block in converted.blocks()])
    sizes = values[~values.isnan()].abs()
    smallest, largest = scales.factor_ranges["per_target"]
    limits = torch.finfo(dtype)
    vanish = largest > limits.max and len(sizes) > 0 and float(sizes.max()) < limits.tiny
    if not vanish and not bool(sizes.isinf().any()):
        return
    raise ValueError(
        f"target '{scales.layout.name}': expected values within the range of {dtype} in loss "
        f"space, got {float(sizes.max()):.4g} at most, with scales from {smallest:.4g} to "
        f"{largest:.4g}; correct its fixed_scales, or convert the target to another unit"
    )
