"""What is kept of one target while the data pass by: all that the fit needs, nothing per sample."""

from collections.abc import Sequence
from typing import Any

import torch

from ..batches import Atoms
from ..tensors import Key, TargetLayout
from .batch_statistics import Entries, statistics_of_atoms, statistics_of_structures
from .block_statistics import BlockStatistics, block_state, merged, regrouped
from .least_squares import LeastSquares
from .moments import Means


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
        values: list[torch.Tensor],
        rows: list[torch.Tensor],
        atoms: Atoms,
        types: torch.Tensor,
        extensive: bool,
        baseline: bool,
        contributions: Sequence[torch.Tensor | None] | None = None,
        keep: list[torch.Tensor] | None = None,
    ) -> "TargetStatistics":
        """Read one batch of a target.

        Args:
            layout: of the target in this batch.
            values: of every block, NaN where missing.
            rows: of :func:`system_labels.rows_of_blocks`.
            atoms: of the batch.
            types: sorted atomic types, among them all that occur.
            extensive: per-structure values are divided by the number of atoms first.
            baseline: whether the invariant parts are to be kept apart for one.
            contributions: of an additive module to every block; they come off first.
            keep: for each block ``False`` where an entry is missing, in the shape of its values.

        Raises:
            ValueError: for infinite entries, and for squares that overflow, naming the block.
        """
        if layout.kind == "pair":
            return cls(layout, types, {})
        entries = {}
        for i, key in enumerate(layout.blocks):
            entries[key] = Entries.of(
                values[i],
                None if keep is None else keep[i],
                None if contributions is None else contributions[i],
                layout.invariance(key) if baseline else None,
            )
        # Blocks with the same samples are read together.
        together: list[tuple[dict[Key, Entries], torch.Tensor | None]] = [(entries, None)]
        if rows:
            together = [({key: entries[key]}, rows[i]) for i, key in enumerate(entries)]
        blocks: dict[Key, BlockStatistics] = {}
        for chosen, of_samples in together:
            if layout.kind == "atom":
                groups = atoms.index_among(types)
                groups = groups if of_samples is None else groups[of_samples]
                blocks |= statistics_of_atoms(layout, chosen, groups, types.numel())
            else:
                blocks |= statistics_of_structures(
                    layout, chosen, of_samples, types, atoms, extensive
                )
        return cls(layout, types, blocks)

    def merge(self, other: "TargetStatistics") -> None:
        """Take over the data of another, as if they had been read here."""
        if other.layout is not self.layout:
            self.layout = self.layout.union(other.layout)
        types = self.types
        if not torch.equal(types, other.types):
            types = torch.cat([types, other.types]).unique()
            self._take_types(types)
            other._take_types(types)
        blocks = {}
        for key in self.layout.blocks:
            parts = [source.blocks[key] for source in (self, other) if key in source.blocks]
            if parts:
                blocks[key] = parts[0] if len(parts) == 1 else merged(parts[0], parts[1])
        self.blocks = blocks

    def _take_types(self, types: torch.Tensor) -> None:
        """Go over to a superset of the types."""
        if torch.equal(types, self.types):
            return
        for key, block in self.blocks.items():
            if self.layout.kind == "atom":
                self.blocks[key] = regrouped(block, self.types, types)
            for _, problem in block.totals + block.averages:
                problem.extend(types)
        self.types = types

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
