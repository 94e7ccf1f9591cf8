"""The factors of every row of a target, and those that a floating-point format cannot hold."""

import torch
from metatensor.torch import TensorMap
from torch import Tensor

from ..batches import Atoms, IndexedTarget
from ..settings import UnseenTypes
from .target_scales import ScaleKind, TargetScales, on_device

# Every format holds these, so that most conversions need not ask for the dtype of a target.
ALWAYS_HELD = (float(torch.finfo(torch.float16).tiny), float(torch.finfo(torch.float16).max))


def factors_of_rows(
    scales: TargetScales,
    kind: ScaleKind,
    target: IndexedTarget,
    atoms: Atoms,
    unseen_types: UnseenTypes,
) -> tuple[list[Tensor], list[Tensor]]:
    """The scales of a target in tables, and the row in them of every sample.

    Returns:
        ``factors`` and ``scale_index`` of :class:`ConversionArgs`.
    """
    device = atoms.types.device
    # One per-target scale serves all blocks, even those without data in the fit.
    keys = list(scales.layout.blocks)[:1] if kind == "per_target" else list(target.layout.blocks)
    if scales.has_tables_for(atoms.set_of_types):
        tables = scales.tables(kind, device)
        factors = [tables[key] for key in keys]
        if target.layout.sample_kind != "atom":
            return factors, []
        scale_index = [atoms.types[rows] for rows in target.rows] or [atoms.types]
    else:
        factors = [scales.factors(kind, key) for key in keys]
        if target.rows:
            scale_index = [scales.rows(atoms.types[rows], unseen_types) for rows in target.rows]
        else:
            rows_of_types = scales.rows(atoms.unique_types, unseen_types)
            factors, scale_index = [f[rows_of_types] for f in factors], [atoms.type_index]
        factors = [on_device(factor, device) for factor in factors]
    # One table serves all blocks, but each block has rows of its own in it.
    if len(factors) < len(scale_index):
        factors = factors * len(scale_index)
    return factors, scale_index


def n_atoms_of_rows(target: IndexedTarget, atoms: Atoms) -> list[Tensor]:
    """Number of atoms of every sample's system, by block, or once for all blocks in batch order."""
    return [atoms.n_atoms_or_nan[rows] for rows in target.rows] or [atoms.n_atoms_or_nan]


def are_moderate(scales: TargetScales, kind: ScaleKind) -> bool:
    """Whether every dtype holds all scales of one kind."""
    smallest, largest = scales.factor_range(kind)
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
    smallest, largest = scales.factor_range(kind)
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
    smallest, largest = scales.factor_range("per_target")
    limits = torch.finfo(dtype)
    vanish = largest > limits.max and len(sizes) > 0 and float(sizes.max()) < limits.tiny
    if not vanish and not bool(sizes.isinf().any()):
        return
    raise ValueError(
        f"target '{scales.layout.name}': expected values within the range of {dtype} in loss "
        f"space, got {float(sizes.max()):.4g} at most, with scales from {smallest:.4g} to "
        f"{largest:.4g}; correct its fixed_scales, or convert the target to another unit"
    )
