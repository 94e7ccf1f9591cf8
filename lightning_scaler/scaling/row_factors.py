"""The factors of every row of a target: its scale, and the number of atoms of its system."""

from torch import Tensor

from ..batches import Atoms, IndexedTarget
from ..settings import UnseenTypes
from .target_scales import ScaleKind, TargetScales, on_device


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
