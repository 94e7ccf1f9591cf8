"""The composition baseline of every row of a block."""

from typing import NamedTuple, NoReturn

import torch
from torch import Tensor

from ..batches import Atoms, find_types
from ..tensors import Key, TargetLayout
from .composition import Composition


class BlockWeights(NamedTuple):
    """The composition weights of one block.

    Attributes:
        layout: layout of the target.
        key: key of the block.
        types: sorted atomic types, ``(n_types,)``.
        weights: weight of each type, ``(n_types, n_properties)``.
        unknown: which weights are unknown, in the same shape; ``None``: none of them.
        composition: what the weights of a per-structure target are multiplied by.
    """

    layout: TargetLayout
    key: Key
    types: Tensor
    weights: Tensor
    unknown: Tensor | None = None
    composition: Composition = "counts"


def baseline_of_rows(block: BlockWeights, atoms: Atoms, rows: Tensor | None) -> Tensor:
    """The baseline of every row, in a shape that expands to the values of the block.

    Types without a weight have a baseline of 0; see :func:`find_unseen_types`.

    Args:
        block: weights of the block.
        atoms: atoms of the batch.
        rows: index of every row's system, or atom; ``None`` for all of them in batch order.

    Returns:
        NaN where a structure has a type with an unknown weight.
    """
    weights, unknown = block.weights, block.unknown
    # The types that occur are known on the CPU, so that nothing waits for another device.
    if not torch.equal(atoms.unique_types, block.types):
        column, seen = find_types(atoms.unique_types, block.types)
        weights = _select(weights, column, seen)
        unknown = None if unknown is None else _select(unknown, column, seen)
    baseline = _sum_over_types(block, atoms, weights)
    if unknown is not None and bool(unknown.any()):
        n_unknown = _sum_over_types(block, atoms, unknown.to(weights.dtype))
        baseline = torch.where(n_unknown > 0.0, torch.nan, baseline)
    if rows is not None:
        baseline = baseline[rows]
    components = block.layout.blocks[block.key].components
    baseline = baseline.reshape(baseline.shape[0], *[1] * len(components), baseline.shape[-1])
    if len(components) == 2 and block.layout.invariance(block.key) == "trace":
        diagonal = torch.eye(len(components[0]), dtype=torch.bool, device=baseline.device)
        baseline = torch.where(diagonal[..., None], baseline, 0.0)
    return baseline


def find_unseen_types(
    block: BlockWeights, atoms: Atoms, rows: Tensor | None, values: Tensor | None
) -> list[int]:
    """The types of some rows that have no weight, because they were not in the data of the fit.

    Args:
        block: weights of the block.
        atoms: atoms of the batch.
        rows: index of every row's system, or atom; ``None`` for all of them in batch order.
        values: values of the block, where a row whose values are all missing (NaN) needs no weight;
            ``None`` for predictions, which need all weights.
    """
    if torch.equal(atoms.unique_types, block.types):
        return []
    unseen = ~find_types(atoms.unique_types, block.types)[1]
    if not bool(unseen.any()):
        return []
    affected = _sum_over_types(block, atoms, unseen[:, None].double())[:, 0] > 0.0
    affected = affected if rows is None else affected[rows]
    if values is not None:
        affected = affected & ~values.isnan().flatten(1).all(1)
    found = affected.nonzero()[:, 0] if rows is None else rows[affected]
    if block.layout.sample_kind == "atom":
        types = atoms.types[found]
    else:
        types = atoms.types[torch.isin(atoms.system_of_atom, found)]
    return sorted({*types.tolist()} - {*block.types.tolist()})


def refuse_unseen_types(
    block: BlockWeights, unseen: list[int], data: str = "data of the fit"
) -> NoReturn:
    """Raise the error about types without a weight, with the ways out.

    Args:
        block: weights of the block.
        unseen: types without a weight.
        data: what the weights were fitted to, in words.
    """
    several = block.layout.blocks[block.key].n_properties > 1
    way_out = "" if several else "give them in fixed_baseline (all other types are still fitted), "
    raise ValueError(
        f"target '{block.layout.name}', block ({block.layout.describe(block.key)}): no baseline "
        f"for the atomic types {unseen}, which were not in the {data} (types "
        f"{block.types.tolist()}); {way_out}fit on data that have them "
        "(TargetScaler(refit='types') adds them to restored scales and keeps all other numbers), "
        "or set unseen_types='identity' to subtract no baseline for them"
    )


def _select(by_type: Tensor, column: Tensor, seen: Tensor) -> Tensor:
    """Rows of a table by type for other types; zeros for those that were not seen."""
    selected = by_type.new_zeros((len(column), by_type.shape[1]))
    selected[seen] = by_type[column[seen]]
    return selected


def _sum_over_types(block: BlockWeights, atoms: Atoms, weights: Tensor) -> Tensor:
    """The weights of the unique types for every atom, or added up for every system.

    Args:
        block: weights of the block.
        atoms: atoms of the batch.
        weights: ``(n_unique_types, n_properties)``, on the CPU.

    Returns:
        ``(n_atoms, n_properties)`` for per-atom targets, else ``(n_systems, n_properties)``.
    """
    weights = weights.to(atoms.types.device, non_blocking=True)
    if block.layout.sample_kind == "atom":
        return atoms.gather_by_type(weights)
    fractions = block.composition == "fractions"
    return (atoms.type_fractions if fractions else atoms.type_counts) @ weights
