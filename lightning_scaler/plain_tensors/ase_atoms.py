"""Tensors from a list of ASE ``Atoms``."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..batches import LazySystems
from .addresses import Path, describe_address, find, tensor_of


def are_ase_atoms(batch: Any) -> bool:
    """Whether a batch is a list of ASE ``Atoms``; ASE itself is not needed."""
    return isinstance(batch, (list, tuple)) and len(batch) > 0 and all(map(is_ase_atoms, batch))


def is_ase_atoms(one: Any) -> bool:
    """Whether an object is a structure of ASE, or looks like one."""
    return (
        hasattr(one, "numbers")
        and hasattr(one, "arrays")
        and isinstance(getattr(one, "info", None), dict)
    )


class SystemsOfAtoms(LazySystems):
    """ASE ``Atoms`` as systems of metatomic in float64, which additive modules need."""

    def __init__(self, batch: Sequence[Any]) -> None:
        self._batch = batch

    @cached_property
    def _systems(self) -> list[Any]:
        from metatomic.torch import System

        systems = []
        for atoms in self._batch:
            positions, cell = (torch.tensor(t).double() for t in (atoms.positions, atoms.cell[:]))
            pbc = torch.tensor(atoms.pbc)
            cell[~pbc] = 0.0
            systems.append(System(torch.tensor(atoms.numbers).int(), positions, cell, pbc))
        return systems

    def __len__(self) -> int:
        return len(self._batch)


def find_in_atoms(batch: Sequence[Any], path: Path, per_atom: bool) -> Tensor | None:
    """A tensor of all structures, NaN for those that do not have it.

    A name is looked up in ``info``, ``arrays`` and the results of the calculator; a longer address,
    such as ``("info", "energy")``, leads through attributes and keys.

    Args:
        batch: ASE ``Atoms``.
        path: address in each of them.
        per_atom: whether there is a value for each atom.

    Returns:
        ``(n_structures, ...)`` or ``(n_atoms, ...)``; ``None`` if no structure has it.

    Raises:
        ValueError: for a name that means two different values, or values of different shapes.
    """
    found = [_value(atoms, path) for atoms in batch]
    known = [value for value in found if value is not None]
    if not known:
        return None
    shape = known[0].shape[1:] if per_atom else known[0].shape
    parts = []
    for i, (atoms, value) in enumerate(zip(batch, found, strict=True)):
        wanted = (len(atoms), *shape) if per_atom else shape
        if value is None:
            value = torch.full(wanted, torch.nan, dtype=known[0].dtype)
        if value.shape != wanted:
            has_rows = not per_atom and value.shape[:1] == (len(atoms),)
            advice = "; if it has a row for each atom, declare PerAtom(...)" if has_rows else ""
            raise ValueError(
                f"{describe_address(path)} of structure {i} of the batch: expected the shape "
                f"{tuple(wanted)}, got {tuple(value.shape)}{advice}"
            )
        parts.append(value)
    return torch.cat(parts) if per_atom else torch.stack(parts)


def _value(atoms: Any, path: Path) -> Tensor | None:
    if len(path) != 1 or not isinstance(path[0], str):
        return _tensor(path, find(atoms, path))
    name = path[0]
    results = getattr(atoms.calc, "results", None) or {}
    places = {"info": atoms.info, "arrays": atoms.arrays, "calc": results}
    found = {
        place: value
        for place, of in places.items()
        if (value := _tensor(path, of.get(name))) is not None
    }
    if not found:
        return _tensor(path, atoms.cell) if name == "cell" else None
    values = list(found.values())
    if not all(_are_equal(value, values[0]) for value in values):
        addresses = [("calc", "results", name) if p == "calc" else (p, name) for p in found]
        raise ValueError(
            f"'{name}': the Atoms have different values at {' and '.join(map(repr, addresses))}; "
            "give one of these as the address"
        )
    return values[0]


def _tensor(path: Path, value: Any) -> Tensor | None:
    """A value of the Atoms; integers, as ``energy=-5`` in a file, become float64."""
    if value is None:
        return None
    tensor = tensor_of(f"{describe_address(path)} of the Atoms", value)
    return tensor.double() if tensor.dtype in (torch.int32, torch.int64) else tensor


def _are_equal(first: Tensor, second: Tensor) -> bool:
    same = first.shape == second.shape
    return same and torch.allclose(first.double(), second.double(), rtol=0, atol=0, equal_nan=True)
