"""What simulation engines give to a model, and the samples of what it returns.

TorchScript compiles all functions of this module.
"""

from typing import Optional  # Labels is a class of TorchScript and has no operator |

import torch
from metatensor.torch import Labels
from metatomic.torch import NeighborListOptions, System
from torch import Tensor


def neighbor_vectors(
    systems: list[System], positions: Tensor, options: NeighborListOptions
) -> tuple[Tensor, Tensor, Tensor]:
    """Find the pairs of a neighbor list, and their vectors from positions and cells.

    Autograd can follow the vectors to positions and cells. Those of the neighbor list itself are
    not used: they are constants unless the caller has registered them.

    Args:
        systems: systems with the neighbor list, at least one.
        positions: positions of the atoms of all systems, ``(n_atoms, 3)``.
        options: the neighbor list.

    Returns:
        First and second atom of every pair, as indices of atoms in the batch, ``(n_pairs,)``; and
        the vectors from the first to the second, ``(n_pairs, 3)``, in the unit of the positions.

    Raises:
        ValueError: if a system has no such neighbor list.
    """
    samples: list[Tensor] = []
    n_pairs: list[int] = []
    first_atoms: list[int] = []
    n_atoms = 0
    for system in systems:
        available = system.known_neighbor_lists()
        found = False
        for each in available:
            found = found or each == options
        if not found:
            kind = "full" if options.full_list else "half"
            cutoffs = [each.cutoff for each in available]
            raise ValueError(
                f"expected a {kind}, strict neighbor list with cutoff {options.cutoff} in every "
                f"system, got one with cutoffs {cutoffs}"
            )
        pairs = system.get_neighbor_list(options).samples.values
        samples.append(pairs)
        n_pairs.append(len(pairs))
        first_atoms.append(n_atoms)
        n_atoms += len(system)
    owner = torch.arange(len(systems)).repeat_interleave(torch.tensor(n_pairs))
    offset = torch.tensor(first_atoms)[owner].to(positions.device)
    joined = torch.cat(samples)
    first, second = joined[:, 0] + offset, joined[:, 1] + offset
    cells = torch.stack([system.cell for system in systems])[owner.to(positions.device)]
    shifts = joined[:, 2:].to(cells.dtype).unsqueeze(1) @ cells
    return first, second, positions[second] - positions[first] + shifts.squeeze(1)


def sample_labels(n_atoms: list[int]) -> tuple[Labels, Labels]:
    """The samples of a batch, in which ``system`` is the position in the batch.

    Args:
        n_atoms: number of atoms in each system.

    Returns:
        Samples of per-structure and of per-atom targets, on the CPU.
    """
    counts = torch.tensor(n_atoms, dtype=torch.int64)
    owner = torch.arange(len(n_atoms)).repeat_interleave(counts)
    system, atom = sample_values(counts, owner, counts.cumsum(0) - counts)
    return Labels(["system"], system, True), Labels(["system", "atom"], atom, True)


def sample_values(n_atoms: Tensor, owner: Tensor, first_atom: Tensor) -> tuple[Tensor, Tensor]:
    """The values of the samples of a batch, int32, on the device of the arguments.

    Args:
        n_atoms: number of atoms of each system, ``(n_systems,)``.
        owner: system of each atom, ``(n_atoms,)``.
        first_atom: index in the batch of the first atom of each system, ``(n_systems,)``.

    Returns:
        ``system``, ``(n_systems, 1)``; ``system`` and ``atom``, ``(n_atoms, 2)``.
    """
    device = owner.device
    system = torch.arange(n_atoms.size(0), dtype=torch.int32, device=device).unsqueeze(1)
    atom = torch.arange(owner.size(0), device=device) - first_atom.index_select(0, owner)
    return system, torch.stack([owner, atom], 1).to(torch.int32)


def selected_samples(
    n_atoms: list[int],
    selected_atoms: Optional[Labels],  # noqa: UP045
) -> tuple[Labels, Labels, Tensor, Tensor]:
    """The samples of outputs to which only selected atoms contribute.

    Args:
        n_atoms: number of atoms in each system.
        selected_atoms: the atoms, as samples ``["system", "atom"]``; ``None``: all.

    Returns:
        On the CPU: samples of per-structure outputs, without systems that have no selected atom;
        samples of per-atom outputs; the index of each selected atom in the batch and that of its
        row in the per-structure outputs, ``(n_selected,)``.
    """
    structures, atoms = sample_labels(n_atoms)
    if selected_atoms is None:
        return structures, atoms, torch.arange(len(atoms)), atoms.values[:, 0].long()
    index = atoms.select(selected_atoms.to(torch.device("cpu")))
    atoms = Labels(["system", "atom"], atoms.values[index], True)
    systems, row = torch.unique(atoms.values[:, 0], return_inverse=True)
    return Labels(["system"], systems.unsqueeze(1), True), atoms, index, row
