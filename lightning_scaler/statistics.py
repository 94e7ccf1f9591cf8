"""What is kept of one target while the data pass by: all that the fit needs, nothing per sample."""

from collections.abc import Sequence
from typing import Any

import torch
from metatensor.torch import TensorMap

from .additive import Contribution
from .atoms import Atoms
from .block_statistics import BlockStatistics, block_of_batch, block_state, merged, regrouped
from .least_squares import LeastSquares
from .moments import Means
from .system_labels import Reading
from .target import TargetLayout


class TargetStatistics:
    """Statistics of one target: made of one batch, merged exactly in any number and order.

    Args:
        layout: of the target.
        types: sorted atomic types that occur in the systems, ``(n_types,)``.
        blocks: statistics by key.
    """

    def __init__(
        self,
        layout: TargetLayout,
        types: torch.Tensor,
        blocks: dict[tuple[int, ...], BlockStatistics],
    ) -> None:
        self.layout = layout
        self.types = types
        self.blocks = blocks

    @classmethod
    def of_batch(
        cls,
        layout: TargetLayout,
        tensor: TensorMap,
        atoms: Atoms,
        reading: Reading,
        extensive: bool,
        baseline: bool,
        contributions: Sequence[Contribution | None] | None = None,
    ) -> "TargetStatistics":
        """Read one batch of a target.

        Args:
            layout: of this very tensor.
            tensor: the values, NaN where missing.
            atoms: of the batch.
            reading: of the ``system`` labels.
            extensive: per-structure values are divided by the number of atoms first.
            baseline: whether the invariant parts are to be kept apart for one.
            contributions: of an additive module to every block; they come off first.

        Raises:
            ValueError: for infinite entries, and for squares that overflow, naming the block.
        """
        types = atoms.types.unique()
        blocks = {}
        for row, key in enumerate(layout.blocks):
            if layout.kind == "pair":
                continue
            block, part = tensor.block_by_id(row), contributions and contributions[row]
            blocks[key] = block_of_batch(
                layout,
                key,
                block,
                types,
                atoms,
                reading,
                extensive,
                baseline,
                part.values if part else None,
            )
        return cls(layout, types, blocks)

    def merge(self, other: "TargetStatistics") -> None:
        """Take over the data of another, as if they had been read here."""
        self.layout = self.layout.united(other.layout)
        types = self.types
        if not torch.equal(self.types, other.types):
            types = torch.cat([self.types, other.types]).unique()
        per_atom = self.layout.kind == "atom"
        blocks = {}
        for key in self.layout.blocks:
            parts = [
                regrouped(source.blocks[key], source.types, types)
                if per_atom
                else source.blocks[key]
                for source in (self, other)
                if key in source.blocks
            ]
            if parts:
                blocks[key] = parts[0] if len(parts) == 1 else merged(parts[0], parts[1])
                for _, problem in blocks[key].totals + blocks[key].averages:
                    problem.extend(types)
        self.types, self.blocks = types, blocks

    def state(self) -> dict[str, Any]:
        """The statistics as plain Python objects and tensors."""
        return {
            "layout": self.layout.state(),
            "types": self.types,
            "blocks": [block_state(key, block) for key, block in self.blocks.items()],
        }

    @classmethod
    def from_state(cls, name: str, state: dict[str, Any]) -> "TargetStatistics":
        """The inverse of :meth:`state`."""
        blocks = {}
        for entry in state["blocks"]:
            entry = dict(entry)
            key = tuple(entry.pop("key"))
            for means in ("means", "spread"):
                entry[means] = None if entry[means] is None else Means(*entry[means])
            for rows in ("totals", "averages"):
                entry[rows] = [(list(p), LeastSquares.from_state(s)) for p, s in entry[rows]]
            blocks[key] = BlockStatistics(**entry)
        return cls(TargetLayout.from_state(name, state["layout"]), state["types"], blocks)
