"""Small batches of a target wait here until there are enough of them to be worth the reading."""

import math
from dataclasses import dataclass, field

import torch
from metatensor.torch import TensorMap

from .atoms import Atoms
from .target import TargetLayout
from .torchscript import scripted_arithmetic

# Reading so many entries or atoms at once costs more than the calls for it.
ENTRIES_AT_ONCE = 2**14
SYSTEMS_AT_ONCE = 512


@dataclass
class WaitingBatches:
    """Batches of one target, each with a row for every system, or every atom, in order.

    They are few: no more than :data:`ENTRIES_AT_ONCE` atoms or entries of a block, or
    :data:`SYSTEMS_AT_ONCE` systems, and the batch that was one too many.

    Attributes:
        layout: of the target.
        types: atomic types of every batch, each ``(n_atoms,)``.
        counts: numbers of atoms of its systems, each ``(n_systems,)``.
        values: of every batch, by block.
        n_entries: the most that one block has, or the number of atoms.
        n_systems: in all batches.
    """

    layout: TargetLayout
    types: list[torch.Tensor] = field(default_factory=list)
    counts: list[torch.Tensor] = field(default_factory=list)
    values: list[list[torch.Tensor]] = field(default_factory=list)
    n_entries: int = 0
    n_systems: int = 0

    def suits(self, layout: TargetLayout, values: list[torch.Tensor]) -> bool:
        """Whether a batch can be joined with those that wait."""
        return self.layout is layout and self.values[-1][0].dtype == values[0].dtype

    def add(self, atoms: Atoms, values: list[torch.Tensor]) -> bool:
        """Take in one batch, its values being copies; whether there are enough of them now."""
        self.types.append(atoms.types)
        self.counts.append(atoms.counts)
        self.values.append(values)
        self.n_systems += len(atoms)
        self.n_entries += max(atoms.types.numel(), *map(torch.numel, values))
        return self.n_systems >= SYSTEMS_AT_ONCE or self.n_entries >= ENTRIES_AT_ONCE

    def joined(self) -> tuple[Atoms, list[torch.Tensor]]:
        """All of them as one batch: its atoms, and the values of every block."""
        atoms = Atoms(torch.cat(self.types), torch.cat(self.counts))
        return atoms, [torch.cat(blocks) for blocks in zip(*self.values, strict=True)]


@scripted_arithmetic
def copies_of_small(tensors: list[TensorMap], entries_at_once: int) -> list[list[torch.Tensor]]:
    """Copies of the values of every tensor, by block, that may wait.

    There are none of one with so many entries in a block, with infinite entries, or entries whose
    squares overflow.
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
                norm = float(torch.linalg.vector_norm(of_block, dtype=torch.float64))
                if math.isnan(norm):
                    norm = float(of_block.to(torch.float64).square().nansum())
                may_wait = may_wait and math.isfinite(norm)
                of_tensor.append(of_block)
        copies.append(of_tensor if may_wait else of_tensor[:0])
    return copies
