"""The embedded molecules as a dataset of metatomic systems and metatensor targets."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import torch
from metatomic.torch import System
from torch.utils.data import Dataset
from vesin.metatomic import NeighborList

from .targets import TARGETS, neighbor_list_options, tensor_maps

MOLECULES_FILE = Path(__file__).with_name("molecules.npz")

Split: TypeAlias = Literal["train", "validation", "conformers", "molecules"]
"""`conformers`: training molecules in unseen geometries; `molecules`: unseen molecules."""


class MoleculesDataset(Dataset[dict[str, Any]]):
    """Small organic molecules of H, C, N, O and F with six targets in various units and layouts.

    An item is a dict with a `system` (positions in Å, float64, no cell, a full neighbor list) and
    a float64 table for each target and for the forces, with one row per structure or per atom:

    | name | width | unit |
    | --- | --- | --- |
    | `energy` | 1 | eV |
    | `forces` | 3 | eV/Å |
    | `dipole` | 3 | e Å, x y z |
    | `polarizability` | 6 | a0³, λ=0 then λ=2 |
    | `charges` | 1 | e |
    | `populations` | 2 | electrons in s and p |
    | `atomic_dipoles` | 3 | e Å, y z x |

    All epochs share the same systems: treat them as read-only.

    Args:
        split: Name of the split.
        cutoff: Cutoff of the neighbor lists in Å; `None`: no neighbor lists.
        path: The data file.

    Attributes:
        fingerprint: A string that changes with the data file.

    Raises:
        ValueError: If `split` is not one of the four.
    """

    def __init__(
        self, split: Split, cutoff: float | None, path: str | Path = MOLECULES_FILE
    ) -> None:
        names = get_args(Split)
        if split not in names:
            raise ValueError(f"split must be one of {', '.join(names)}; got {split!r}")
        self.fingerprint = hashlib.sha256(Path(path).read_bytes()).hexdigest()
        with np.load(path) as data:
            chosen = data["split"] == names.index(split)
            atoms = np.repeat(chosen, data["n_atoms"])
            self.molecules: list[str] = data["molecule_names"][data["molecule"][chosen]].tolist()
            n_atoms: list[int] = data["n_atoms"][chosen].tolist()
            types = torch.from_numpy(data["types"][atoms].astype(np.int32)).split(n_atoms)
            positions = _table(data["positions"][atoms]).split(n_atoms)
            self._tables = {
                name: _table(data[name][chosen]).split(1)
                for name in ("energy", "dipole", "polarizability")
            } | {
                name: _table(data[name][atoms]).split(n_atoms)
                for name in ("forces", "charges", "populations", "atomic_dipoles")
            }
        self.systems = [
            System(t, r, cell=r.new_zeros(3, 3), pbc=torch.zeros(3, dtype=torch.bool))
            for t, r in zip(types, positions, strict=True)
        ]
        if cutoff is not None:
            neighbors = NeighborList(neighbor_list_options(cutoff), length_unit="angstrom")
            neighbors.add_neighbor_list(self.systems)

    def __len__(self) -> int:
        return len(self.systems)

    def __getitem__(self, index: int) -> dict[str, Any]:
        tables = {name: table[index] for name, table in self._tables.items()}
        return {"system": self.systems[index], **tables}


def collate(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Join the items of a `MoleculesDataset` into a batch.

    Returns:
        `{"system": list of System, target: TensorMap, ...}`; `energy` carries its gradient with
        respect to the positions, minus the forces.
    """
    systems = [item["system"] for item in items]
    tables = {name: torch.cat([item[name] for item in items]) for name in (*TARGETS, "forces")}
    targets = tensor_maps([len(system) for system in systems], tables, -tables["forces"])
    return {"system": systems, **targets}


def collate_systems(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Join the systems of the items and omit the targets, for prediction."""
    return {"system": [item["system"] for item in items]}


def _table(array: np.ndarray[Any, Any]) -> torch.Tensor:
    """Cast an array to a float64 table, `(n_rows, n_columns)`."""
    return torch.from_numpy(array.astype(np.float64)).reshape(len(array), -1)
