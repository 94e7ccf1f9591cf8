"""The targets of one batch as a fit reads them: rows, layouts, masks and contributions."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from metatensor.torch import TensorMap
from torch import Tensor

from ..baselines import (
    AdditiveCoverage,
    Contribution,
    FrozenModule,
    align_contributions,
    gradient_contributions,
)
from ..batches import Atoms, HasTypes, IndexedTarget, index_targets
from ..settings import SystemLabels
from ..statistics import BlockValues, GradientSums, gradient_sums, value_sums
from ..tensors import (
    CPU,
    TargetLayout,
    find_known_layouts,
    mask_values,
    match_layouts,
    values_and_gradients,
)


class BatchTarget(NamedTuple):
    """A target of a batch, with at least one block, on the CPU.

    Attributes:
        indexed: the target with its rows and its layout.
        masks: for each block ``False`` where a value is missing, if there are masks.
        contributions: contributions of an additive module to each block, if there are any.
    """

    indexed: IndexedTarget
    masks: list[Tensor] | None
    contributions: list[Contribution | None] | None

    @property
    def has_values_alone(self) -> bool:
        """Whether the values in batch order are all that counts, apart from gradients."""
        others = self.masks is not None or self.contributions is not None
        return not (self.indexed.rows or others) and self.indexed.layout.sample_kind != "pair"

    def block_values(self) -> list[BlockValues]:
        """The values of every block, and what belongs to them."""
        rows, masks, contributions = self.indexed.rows, self.masks, self.contributions
        blocks = []
        for i, values in enumerate(values_and_gradients(self.indexed.tensor)[0]):
            contribution = contributions[i] if contributions else None
            blocks.append(
                BlockValues(
                    values,
                    rows[i] if rows else None,
                    masks[i] if masks else None,
                    contribution and contribution.values,
                )
            )
        return blocks

    def gradient_sums(
        self, atoms: Atoms, types: Tensor | None, extensive: bool
    ) -> dict[str, GradientSums]:
        """Sums over gradients by parameter; over the values of atom pairs under ``""``.

        See :func:`.statistics.gradient_sums` for the arguments.
        """
        if self.indexed.layout.sample_kind == "pair":
            return {"": value_sums(self.indexed, self.masks)}
        subtracted = gradient_contributions(self.indexed.tensor, self.contributions)
        return gradient_sums(self.indexed, atoms, types, extensive, subtracted)


class TargetsOfBatch(NamedTuple):
    """The targets of a batch.

    Attributes:
        atoms: atoms of the batch.
        targets: targets by name.
        system_labels: meaning of the ``system`` labels from now on.
        coverage: blocks that an additive module contributes to.
    """

    atoms: Atoms
    targets: dict[str, BatchTarget]
    system_labels: SystemLabels
    coverage: AdditiveCoverage | None


class BatchInputs(NamedTuple):
    """One batch as it came.

    Attributes:
        systems: systems of the batch.
        tensors: all TensorMaps by name; an additive module is asked for each, since it may know
            some that are not fitted.
        chosen: those that are fitted.
        masks: masks by target name.
    """

    systems: Sequence[HasTypes]
    tensors: Mapping[str, TensorMap]
    chosen: Mapping[str, TensorMap]
    masks: Mapping[str, TensorMap]


def read_targets(
    batch: BatchInputs,
    known: Mapping[str, TargetLayout],
    additive: FrozenModule | None,
    system_labels: SystemLabels,
    exact_labels: bool,
) -> TargetsOfBatch:
    """Read the targets of a batch.

    Args:
        batch: the batch as it came.
        known: layouts of the targets so far, by name.
        additive: module whose contributions are subtracted first; ``None``: none.
        system_labels: what the ``system`` labels mean.
        exact_labels: see :meth:`ScaleAccumulator.update`.

    Raises:
        ValueError: for a layout that differs from the known one, for masks and contributions of
            another layout, and for rows that are not in the batch.
    """
    tensors, layouts = _match_layouts(known, batch.chosen)
    masks = {
        name: mask_values(name, tensors[name], mask.to(device="cpu"))
        for name, mask in batch.masks.items()
        if name in tensors
    }
    atoms = Atoms.from_systems(batch.systems).to("cpu")
    # Contributions depend on positions, so that isomers must not be exchanged.
    exact = exact_labels or additive is not None
    _, indexing, indexed = index_targets(atoms, tensors, layouts, system_labels, exact=exact)
    contributions: dict[str, list[Contribution | None]] = {}
    coverage = None
    if additive is not None:
        with torch.no_grad():
            outputs = additive(atoms, batch.tensors)
        contributions = align_contributions(outputs, tensors, atoms, indexing)
        if atoms.n_systems:
            coverage = AdditiveCoverage.of_batch(outputs, layouts, contributions)
    targets = {
        name: BatchTarget(target, masks.get(name), contributions.get(name))
        for name, target in indexed.items()
    }
    return TargetsOfBatch(atoms, targets, indexing.labels, coverage)


def _match_layouts(
    known: Mapping[str, TargetLayout], tensors: Mapping[str, TensorMap]
) -> tuple[dict[str, TensorMap], dict[str, TargetLayout]]:
    """The tensors that have any block, on the CPU, and their layouts."""
    # A layout that is found is on the CPU. Moving takes 33 µs a tensor, even from there.
    layouts = find_known_layouts(known, tensors, CPU)
    moved = {name: t.to(device="cpu") for name, t in tensors.items() if name not in layouts}
    if moved:
        layouts |= match_layouts(known, moved, CPU)
    layouts = {name: layouts[name] for name in tensors if layouts[name].blocks}
    return {name: moved.get(name, tensors[name]) for name in layouts}, layouts
