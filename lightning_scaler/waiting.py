"""Small batches of a target wait here until there are enough of them to be worth the reading."""

import math
from dataclasses import dataclass, field

import torch
from metatensor.torch import TensorMap

from .atoms import Atoms
from .target import TargetLayout
from .torchscript import scripted

# Reading so many entries of a block, or so many systems, costs more than the calls for it.
ENTRIES_AT_ONCE = 2**14
SYSTEMS_AT_ONCE = 512


@dataclass
class WaitingBatches:
    """Batches of one target, each with a row for every system, or every atom, in order.

    Their memory is bounded: that of :data:`ENTRIES_AT_ONCE` entries of every block, and the types
    of :data:`SYSTEMS_AT_ONCE` systems.

    Attributes:
        layout: of the target.
        types: atomic types of every batch, each ``(n_atoms,)``.
        counts: numbers of atoms of its systems, each ``(n_systems,)``.
        values: of every batch, by block.
    """

    layout: TargetLayout
    types: list[torch.Tensor] = field(default_factory=list)
    counts: list[torch.Tensor] = field(default_factory=list)
    values: list[list[torch.Tensor]] = field(default_factory=list)

    def add(self, atoms: Atoms, values: list[torch.Tensor]) -> None:
        """Take in one batch; the values are kept as they are, so they must be copies."""
        self.types.append(atoms.types)
        self.counts.append(atoms.counts)
        self.values.append(values)

    def suits(self, layout: TargetLayout, values: list[torch.Tensor]) -> bool:
        """Whether a batch can be joined with those that wait."""
        return self.layout is layout and self.values[-1][0].dtype == values[0].dtype

    @property
    def enough(self) -> bool:
        """Whether it is time to read them."""
        n_systems = sum(map(len, self.counts))
        n_entries = max(sum(map(torch.numel, blocks)) for blocks in zip(*self.values, strict=True))
        return n_systems >= SYSTEMS_AT_ONCE or n_entries >= ENTRIES_AT_ONCE

    def joined(self) -> tuple[Atoms, list[torch.Tensor]]:
        """All of them as one batch: its atoms, and the values of every block."""
        atoms = Atoms(torch.cat(self.types), torch.cat(self.counts))
        return atoms, [torch.cat(blocks) for blocks in zip(*self.values, strict=True)]


@scripted
def copies_of_small(tensors: list[TensorMap], entries_at_once: int) -> list[list[torch.Tensor]]:
    """Copies of the values of every tensor, by block, that may wait.

    There are none of one with so many entries in a block, with infinite entries, or entries whose
    squares overflow.
    """
    copies: list[list[torch.Tensor]] = []
    for tensor in tensors:
        of_tensor: list[torch.Tensor] = []
        small, squares = True, 0.0
        for block in tensor.blocks():
            small = small and block.values.numel() < entries_at_once
        if small:
            for block in tensor.blocks():
                of_block = block.values.detach().clone()
                squares += float(of_block.to(torch.float64).square().nansum())
                of_tensor.append(of_block)
        copies.append(of_tensor if math.isfinite(squares) else of_tensor[:0])
    return copies
