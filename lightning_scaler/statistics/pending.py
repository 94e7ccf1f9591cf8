"""Small batches wait here until there are enough of them to be worth the reading."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from metatensor.torch import TensorMap

from ..batches import Atoms
from ..tensors import TargetLayout, scripted_arithmetic

# SystemIndexing so many entries or atoms at once costs more than the calls for it.
ENTRIES_AT_ONCE = 2**14
SYSTEMS_AT_ONCE = 1024

# By target name, for every block.
Values = dict[str, list[torch.Tensor]]


@dataclass
class WaitingBatches:
    """Batches of the same targets, each with a row for every system, or every atom, in order.

    They are few: no more than :data:`ENTRIES_AT_ONCE` atoms or entries of a block, or
    :data:`SYSTEMS_AT_ONCE` systems, and the batch that was one too many.

    Attributes:
        layouts: of the targets, by name.
        types: atomic types of every batch, each ``(n_atoms,)``.
        counts: numbers of atoms of its systems, each ``(n_systems,)``.
        values: of every batch, by target name, of every block.
        n_entries: the most that one block has, or the number of atoms.
        n_systems: in all batches, an empty one counting as one.
    """

    layouts: dict[str, TargetLayout]
    types: list[torch.Tensor] = field(default_factory=list)
    counts: list[torch.Tensor] = field(default_factory=list)
    values: list[Values] = field(default_factory=list)
    n_entries: int = 0
    n_systems: int = 0

    def suits(self, layouts: Mapping[str, TargetLayout], values: Values) -> bool:
        """Whether a batch of these targets can be joined with those that wait."""
        last = self.values[-1]
        return all(
            layouts[name] is layout and values[name][0].dtype == last[name][0].dtype
            for name, layout in self.layouts.items()
        )

    def add(self, atoms: Atoms, values: Values) -> bool:
        """Take in one batch, its values being copies; whether there are enough of them now."""
        self.types.append(atoms.types)
        self.counts.append(atoms.counts)
        self.values.append(values)
        self.n_systems += max(1, len(atoms))
        sizes = (of_block.numel() for blocks in values.values() for of_block in blocks)
        self.n_entries += max(atoms.types.numel(), *sizes)
        return self.n_systems >= SYSTEMS_AT_ONCE or self.n_entries >= ENTRIES_AT_ONCE

    def joined(self) -> tuple[Atoms, Values]:
        """All of them as one batch: its atoms, and by target name the values of every block."""
        atoms = Atoms(torch.cat(self.types), torch.cat(self.counts))
        return atoms, {
            name: [
                torch.cat(blocks)
                for blocks in zip(*(values[name] for values in self.values), strict=True)
            ]
            for name in self.layouts
        }


@scripted_arithmetic
def copies_of_small(tensors: list[TensorMap], entries_at_once: int) -> list[list[torch.Tensor]]:
    """Copies of the values of every tensor, by block, that may wait.

    There are none of one with so many entries in a block, or with entries so large, or infinite,
    that the squares of all that waits might overflow: what waits can be read without an error.
    """
    copies: list[list[torch.Tensor]] = []
    for tensor in tensors:
        of_tensor: list[torch.Tensor] = []
        may_wait = True
        for block in tensor.blocks():
            may_wait = may_wait and block.values.numel() < entries_at_once
        if may_wait:
            for block in tensor.blocks():
                of_block = block.values.detach().clone()
                squares = float(of_block.to(torch.float64).square().nansum())
                may_wait = may_wait and squares < 1e290
                of_tensor.append(of_block)
        copies.append(of_tensor if may_wait else of_tensor[:0])
    return copies
