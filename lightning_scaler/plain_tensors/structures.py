"""The atoms of a user's own batch: the type of each, and the structure that it belongs to."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..batches import Atoms, read_atoms, unique_types
from ..settings import warn_on_rank_zero
from .addresses import Path, describe_address, describe_holder, find, tensor_of
from .ase_atoms import SystemsOfAtoms, are_ase_atoms, is_ase_atoms

# Names in PyTorch Geometric, SchNetPack, MACE, NequIP, fairchem, TorchMD-NET and others.
TYPES = ("atomic_numbers", "z", "_atomic_numbers", "numbers", "Z", "types", "atom_types")
COUNTS = ("n_atoms", "natoms", "num_atoms", "_n_atoms", "n_nodes", "num_nodes")
OWNERS = ("batch", "idx_m", "_idx_m", "batch_idx", "batch_index", "structure", "system_index")
OFFSETS = "ptr"


def find_atoms(batch: Any, addresses: Mapping[str, Path]) -> Atoms:
    """The atoms of a batch, on the device of their types.

    These are read once, on the CPU, so that a GPU is waited for no more than twice.

    Recognised are lists of ASE ``Atoms``; lists of systems with ``types``, by themselves, under the
    name ``system`` or first in a tuple; and tensors under the usual names, in a mapping or an
    object such as a batch of PyTorch Geometric.

    Args:
        batch: batch of a loader.
        addresses: addresses of ``types``, and of ``structure`` or ``n_atoms``, where the names are
            others.

    Raises:
        TypeError: for a batch without types, or with types that are not integers.
        ValueError: for numbers of atoms that do not add up, or that could mean two things.
    """
    if not addresses and is_ase_atoms(batch):
        raise TypeError(
            "expected a batch, got one structure of ASE; a batch is a list of Atoms: "
            "ScaleAccumulator.update([atoms]), fit([frames]), DataLoader(frames, collate_fn=list)"
        )
    systems = None if addresses else _find_systems(batch)
    if systems is not None and are_ase_atoms(systems):
        numbers = [torch.as_tensor(atoms.numbers, dtype=torch.int64) for atoms in systems]
        n_atoms = torch.tensor([len(part) for part in numbers])
        atoms_of_all = Atoms.from_types(torch.cat(numbers), n_atoms)
        return replace(atoms_of_all, systems=SystemsOfAtoms(systems))
    if systems is not None:
        return read_atoms(systems)
    path, found = _find_types(batch, addresses)
    where, types = f"the types of the batch, {describe_address(path)}", found.cpu().long()
    unique = unique_types(types.reshape(-1))
    if "types" not in addresses and types.numel() and unique[1] <= 0:
        _refuse_or_warn(where, path, types)
    if types.dim() not in (1, 2):
        raise ValueError(
            f"{where}: expected the types of all atoms, (n_atoms,), got {tuple(types.shape)}"
        )
    n_atoms = _count_atoms(batch, addresses, where, types)
    return Atoms.from_types(types.reshape(-1), n_atoms, unique).to(found.device)


def _find_systems(batch: Any) -> Any:
    """The systems in a batch, or ``None``."""
    named = find(batch, ("system",))
    first = batch[0] if isinstance(batch, (list, tuple)) and batch else None
    for systems in (batch, named, first):
        if isinstance(systems, Sequence) and not isinstance(systems, (str, torch.Tensor)):
            if are_ase_atoms(systems):
                return systems
            if systems and all(hasattr(s, "types") and hasattr(s, "__len__") for s in systems):
                return systems
    return None


def _find_types(batch: Any, addresses: Mapping[str, Path]) -> tuple[Path, Tensor]:
    """The address of the types of all atoms, and the types."""
    path, value = _first(batch, addresses, "types", TYPES)
    if value is None:
        given = f"at {describe_address(addresses['types'])} " if "types" in addresses else ""
        raise TypeError(
            f"expected the atomic types of the batch {given}(a tensor of integers for all atoms), "
            f"got {describe_holder(batch)}; recognised are the names {', '.join(TYPES)}, batches "
            "of PyTorch Geometric, and lists of ASE Atoms; for others, TargetScaler(batch="
            "{'types': …, 'structure': …}) gives the addresses of the types and of the structure "
            "of each atom, such as 'species' or (0, 'z')"
        )
    where = f"the types of the batch, {describe_address(path)}"
    types = tensor_of(where, value)
    if types.is_floating_point() or types.is_complex() or types.dtype == torch.bool:
        _refuse_one_hot(where, types)
        raise TypeError(
            f"{where}: expected integers, got {str(types.dtype).removeprefix('torch.')}; convert "
            "them where batches are made"
        )
    return path, types


def _refuse_or_warn(where: str, path: Path, types: Tensor) -> None:
    """Types that are recognised by their name alone, and of which some are not positive."""
    _refuse_one_hot(where, types)
    if types.dim() == 2 or bool((types < 0).any()):
        raise ValueError(
            f"{where}: expected positive atomic numbers, got {int(types.min())}; batches with "
            "padding are not supported: give the atoms of all structures one after another, with "
            "the structure of each"
        )
    warn_on_rank_zero(
        f"{where}: some are 0, so they are indices rather than atomic numbers; scales and "
        "baselines are right for indices too, but chemical symbols in the settings mean atomic "
        "numbers; give atomic numbers, or say that they are types with "
        f"batch={{'types': {describe_address(path)}, …}}",
        stacklevel=2,
    )


def _refuse_one_hot(where: str, types: Tensor) -> None:
    if types.dim() != 2 or types.shape[1] < 2 or not types.numel():
        return
    if bool((types.count_nonzero(1) == 1).all()) and bool((types.sum(1) == 1).all()):
        raise ValueError(
            f"{where}: expected an atomic number for each atom, got the shape "
            f"{tuple(types.shape)} with one number in each row, a one-hot encoding; give atomic "
            "numbers, or indices of types with batch={'types': …}"
        )


def _count_atoms(batch: Any, addresses: Mapping[str, Path], where: str, types: Tensor) -> Tensor:
    """The number of atoms of each structure, ``(n_structures,)``."""
    n_all, is_table = types.numel(), types.dim() == 2
    named = {"structure", "n_atoms"} & addresses.keys()
    # A table has a structure in each row; a column may also be the atoms of all structures.
    may_have_owners = not is_table or types.shape[1] == 1 or bool(named)
    offsets = find(batch, (OFFSETS,)) if may_have_owners and not named else None
    if offsets is not None:
        return _checked((OFFSETS,), _integers(OFFSETS, offsets).diff(), where, n_all)
    path: Path = ()
    counts = None
    if "structure" not in addresses:
        path, counts = _first(batch, addresses, "n_atoms", COUNTS)
    if counts is not None:
        counts = _integers(describe_address(path), counts)
        if counts.dim():
            counts = _checked(path, counts.reshape(-1), where, n_all)
            if may_have_owners or bool((counts == types.shape[1]).all()):
                return counts
            raise ValueError(
                f"the numbers of atoms, {describe_address(path)}: expected {types.shape[1]} in "
                f"each of the {types.shape[0]} rows of {where}, got {counts.tolist()[:8]}"
            )
    owners = None
    if may_have_owners:
        path, owners = _first(batch, addresses, "structure", OWNERS)
    if owners is not None:
        values = _integers(describe_address(path), owners).reshape(-1)
        return _counts_from(path, values, where, n_all)
    # One structure need not say so.
    if _is_single(batch, counts, n_all):
        return torch.tensor([n_all])
    if is_table:
        return torch.full((types.shape[0],), types.shape[1])
    raise TypeError(
        f"expected the structure of each of the {n_all} atoms of the batch, or the number of "
        f"atoms of each structure, got {describe_holder(batch)}; recognised are the names "
        f"{', '.join([OFFSETS, *COUNTS, *OWNERS])}; for others, "
        "TargetScaler(batch={'structure': …}) gives the address of the tensor"
    )


def _counts_from(path: Path, values: Tensor, where: str, n_all: int) -> Tensor:
    """Counts from the index of each atom's structure, or from counts under the same name."""
    what = f"the structures of the atoms, {describe_address(path)}"
    if values.is_floating_point():
        raise TypeError(f"{what}: expected integers, got {values.dtype}")
    if not n_all and not values.numel():
        return values  # a batch without structures
    are_counts = int(values.sum()) == n_all and bool((values > 0).all())
    in_order = values.numel() == n_all and bool((values.diff() >= 0).all())
    are_owners = in_order and int(values[0]) >= 0
    if are_counts and are_owners:
        raise ValueError(
            f"{what}: {values.tolist()[:8]} may be the structure of each atom or the number of "
            f"atoms of each structure, and there are {n_all} atoms; name the numbers of atoms with "
            "batch={'n_atoms': …}"
        )
    if are_counts:
        return values
    if are_owners and int(values[0]) == 0 and bool((values.diff() <= 1).all()):
        return values.bincount()
    problem = f"got {values.numel()} values with the sum {int(values.sum())}"
    if are_owners:
        problem = (
            f"got structures with the numbers {values.unique().tolist()[:8]}; number those of a "
            "batch 0, 1, 2, …, or give the number of atoms of each with batch={'n_atoms': …}"
        )
    elif values.numel() == n_all:
        problem = "got structures whose atoms do not follow each other; sort the atoms by structure"
    raise ValueError(
        f"{what}: expected the structure of each of the {n_all} atoms of {where}, or numbers of "
        f"atoms that add up to them, {problem}"
    )


def _checked(path: Path, counts: Tensor, where: str, n_all: int) -> Tensor:
    numbers = counts.tolist()
    if counts.is_floating_point() or sum(numbers) != n_all or min(numbers, default=0) < 0:
        raise ValueError(
            f"the numbers of atoms, {describe_address(path)}: expected integers that add up to the "
            f"{n_all} atoms of {where}, got {numbers[:8]} with the sum {sum(numbers):g}"
        )
    return counts


def _is_single(batch: Any, count: Any, n_all: int) -> bool:
    """Whether a batch is a single structure: one count, or a graph that was not collated."""
    if count is not None:
        return int(count) == n_all
    return hasattr(batch, "is_directed") and getattr(batch, "num_graphs", 1) == 1


def _integers(where: str, value: Any) -> Tensor:
    """A tensor on the CPU, in int64 unless it has floating-point values, which are refused."""
    tensor = tensor_of(where, value).cpu()
    return tensor if tensor.is_floating_point() else tensor.long()


def _first(
    batch: Any, addresses: Mapping[str, Path], role: str, names: Sequence[str]
) -> tuple[Path, Any]:
    """The address of a role and what is there, or the first of some names that there is."""
    if role in addresses:
        path = addresses[role]
        value = find(batch, path)
        if value is None:
            raise TypeError(
                f"batch={{'{role}': {describe_address(path)}}}: there is no such member; the batch "
                f"is {describe_holder(batch)}"
            )
        return path, value
    for name in names:
        value = find(batch, (name,))
        if (value is not None and hasattr(value, "__len__")) or isinstance(value, int):
            return (name,), value
    return (), None
