"""Statistics of one target: all that its fit needs, independent of the number of samples."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch

from ..batches import Atoms
from ..tensors import (
    InvalidStateError,
    Key,
    TargetLayout,
    TensorCheck,
    check_shapes,
    fields_from_state,
    state_of,
)
from .batch_statistics import (
    BlockValues,
    SampleValues,
    per_atom_statistics,
    per_structure_statistics,
)
from .block_statistics import BlockStatistics, check_block, merge_blocks, reindex_types
from .gradient_sums import GradientSums


@dataclass(eq=False)
class TargetStatistics:
    """Statistics of one target, read batch by batch and merged exactly in any order.

    Attributes:
        layout: layout of the target.
        types: sorted atomic types of the systems, ``(n_types,)``.
        blocks: statistics by key.
        gradients: sums over the gradients of all blocks by parameter; over the values of atom
            pairs, which have no other statistics, under ``""``.
        structures: number of structures that contain each type, ``(n_types,)`` float64, for a
            per-structure target with a baseline; ``None``: not known.
    """

    layout: TargetLayout
    types: Annotated[torch.Tensor, TensorCheck("n_types", dtype=torch.int64)]
    blocks: dict[Key, BlockStatistics]
    gradients: dict[str, GradientSums] = field(default_factory=dict)
    structures: Annotated[torch.Tensor | None, TensorCheck("n_types")] = None

    @property
    def n_values(self) -> int:
        """Number of values of all blocks that are not missing."""
        values = self.gradients.get("")  # of atom pairs
        of_pairs = 0.0 if values is None else float(values.counts.sum())
        return int(of_pairs + sum(float(block.counts.sum()) for block in self.blocks.values()))

    @property
    def n_gradient_values(self) -> int:
        """Number of values of all gradients that are not missing."""
        sums = (sums for parameter, sums in self.gradients.items() if parameter)
        return int(sum(float(of_parameter.counts.sum()) for of_parameter in sums))

    @classmethod
    def from_batch(
        cls,
        layout: TargetLayout,
        blocks: Sequence[BlockValues],
        atoms: Atoms,
        types: torch.Tensor,
        *,
        extensive: bool,
        baseline: bool,
        fractions: bool = False,
    ) -> "TargetStatistics":
        """Read one batch of a target.

        Args:
            layout: layout of the target in this batch.
            blocks: values of every block of the layout, in its order.
            atoms: atoms of the batch.
            types: sorted atomic types, including all types of the batch.
            extensive: whether per-structure values are divided by the number of atoms first.
            baseline: whether a baseline will be subtracted from the invariant parts.
            fractions: whether the baseline of a per-structure target multiplies the fraction of
                each type, not its count.

        Raises:
            ValueError: for infinite values, and for squares that overflow; names the block.
        """
        if layout.sample_kind == "pair":
            return cls(layout, types, {})
        in_batch_order: dict[Key, SampleValues] = {}
        by_rows: list[tuple[torch.Tensor | None, dict[Key, SampleValues]]] = []
        for key, block in zip(layout.blocks, blocks, strict=True):
            values = SampleValues.from_block(block, layout.invariance(key) if baseline else None)
            if block.rows is None:
                in_batch_order[key] = values
            else:
                by_rows.append((block.rows, {key: values}))
        if in_batch_order:  # read together, because they have the same samples
            by_rows.append((None, in_batch_order))
        statistics: dict[Key, BlockStatistics] = {}
        for rows, part in by_rows:
            if layout.sample_kind == "atom":
                type_index = atoms.index_among(types)
                type_index = type_index if rows is None else type_index[rows]
                statistics |= per_atom_statistics(layout, part, type_index, types.numel())
            else:
                statistics |= per_structure_statistics(
                    layout, part, rows, atoms, types, extensive=extensive, fractions=fractions
                )
        structures = None
        if baseline and layout.sample_kind == "structure":
            structures = (atoms.composition(types) > 0.0).double().sum(0)
        by_key = {key: statistics[key] for key in layout.blocks}
        return cls(layout, types, by_key, structures=structures)

    def merge(self, other: "TargetStatistics") -> None:
        """Add the data of another, which remains unchanged.

        Raises:
            ValueError: if its layout contradicts this one.
        """
        if other.layout is not self.layout:
            self.layout = self.layout.union(other.layout)
        types = self.types
        if not torch.equal(types, other.types):
            types = torch.cat([types, other.types]).unique()
        ours, theirs = self._blocks_for(types), other._blocks_for(types)
        self.structures = self._all_structures(other, types)
        blocks = {}
        for key in self.layout.blocks:
            if key in ours and key in theirs:
                blocks[key] = merge_blocks(ours[key], theirs[key])
            elif key in ours or key in theirs:
                blocks[key] = ours[key] if key in ours else theirs[key]
        self.gradients, gradients = self._gradients_for(types), other._gradients_for(types)
        self.types, self.blocks = types, blocks
        self.add_gradients(gradients, types if self.layout.sample_kind == "atom" else None)

    def add_gradients(
        self, gradients: Mapping[str, GradientSums], types: torch.Tensor | None
    ) -> None:
        """Add sums over gradients.

        Args:
            gradients: sums by parameter.
            types: sorted types that the sums of a per-atom target are for, a superset of those seen
                before; ``None`` for any other.
        """
        if types is not None and not torch.equal(types, self.types):
            self.merge(TargetStatistics(self.layout, types, {}))
        # A new dict: copies of these statistics share the old one.
        self.gradients = dict(self.gradients)
        for parameter, sums in gradients.items():
            known = self.gradients.get(parameter)
            self.gradients[parameter] = sums if known is None else known.plus(sums)

    def _blocks_for(self, types: torch.Tensor) -> dict[Key, BlockStatistics]:
        """The statistics by key for a superset of the types."""
        if torch.equal(types, self.types):
            return self.blocks
        per_atom = self.layout.sample_kind == "atom"
        return {
            key: reindex_types(block, self.types, types, per_atom)
            for key, block in self.blocks.items()
        }

    def _all_structures(
        self, other: "TargetStatistics", types: torch.Tensor
    ) -> torch.Tensor | None:
        """The numbers of structures of both for a superset of the types, if both know them."""
        total = torch.zeros(types.numel(), dtype=torch.float64)
        for one in (self, other):
            if one.structures is not None:
                total = total.index_add(0, torch.searchsorted(types, one.types), one.structures)
            elif one.blocks:
                return None
        return total

    def _gradients_for(self, types: torch.Tensor) -> dict[str, GradientSums]:
        """The sums over gradients by parameter for a superset of the types."""
        if self.layout.sample_kind != "atom" or torch.equal(types, self.types):
            return dict(self.gradients)
        return {name: sums.reindex(self.types, types) for name, sums in self.gradients.items()}

    @classmethod
    def from_state(cls, name: str, state: Any) -> "TargetStatistics":
        """The inverse of :func:`to_state`.

        Raises:
            InvalidStateError: for a state that is not that of the statistics of a target.
        """
        with state_of(f"target '{name}'"):
            # Version 0.1.0 kept no sums of gradients, and counted no structures.
            if isinstance(state, dict):
                state = {"gradients": {}, "structures": None, **state}
                if "layout" in state:
                    state["layout"] = TargetLayout.from_state(name, state["layout"])
            statistics: TargetStatistics = fields_from_state(cls, state)
            statistics._check_loaded()
        return statistics

    def _check_loaded(self) -> None:
        """Check that the fields of loaded statistics agree with each other and with the layout."""
        layout, is_pair = self.layout, self.layout.sample_kind == "pair"
        expected = [] if is_pair else list(layout.blocks)
        anything_read = bool(self.blocks) or self.types.numel() > 0
        if anything_read and list(self.blocks) != expected:
            raise InvalidStateError(
                f"expected statistics of the blocks {expected}, got {list(self.blocks)}"
            )
        n_rows = self.types.numel() if layout.sample_kind == "atom" else 1
        for key, block in self.blocks.items():
            with state_of(f"block {key}"):
                n_properties = layout.blocks[key].n_properties
                sizes = {"n_types": n_rows, "n_properties": n_properties}
                check_block(block, self.types, sizes)
        parameters = {""} if is_pair else set(layout.gradients)
        for parameter, sums in self.gradients.items():
            with state_of(f"gradient '{parameter}'"):
                if parameter not in parameters:
                    raise InvalidStateError(f"expected one of {sorted(parameters)}")
                check_shapes(sums, {"n_sums": 4, "n_types": n_rows})
                if bool((sums.sums < 0).any()):
                    raise InvalidStateError("expected sums of at least 0")
        check_shapes(self, {"n_types": self.types.numel()})
