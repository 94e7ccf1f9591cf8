"""A sample of the batches of a data pass, for pictures of the data before and after scaling."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..batches import Batch, read_atoms
from ..reports import DrawnTerm, MissingValues
from ..scaling import Scaler, index_by_position, targets_to_loss, term_name
from ..settings import label_types
from ..statistics import TargetStatistics
from ..tensors import is_tensormap

# Enough for a histogram of every target, and a few megabytes.
MAX_SYSTEMS = 1024
MAX_VALUES = 2**18


class KeptBatch(NamedTuple):
    """A batch of the sample, with the number of its systems, and of its atoms and values."""

    batch: Batch
    n_systems: int
    n_values: int


class DataSample:
    """Some batches of a data pass, and the statistics of all.

    The scales are known only after the pass, so the sample consists of batches as they are read, at
    even distances: of more than can be kept, every other one is dropped, and from then on every
    other one is kept.

    Args:
        max_systems: number of systems to keep.
        max_values: number of atoms and values to keep; one batch may have more.
        keep_systems: whether the systems are needed, with their positions and lists of neighbors,
            for an additive module; otherwise only the types of their atoms are kept.

    Attributes:
        kept: the batches of the sample, by index.
        statistics: statistics of all data by target name; empty before the pass.
    """

    def __init__(
        self,
        max_systems: int = MAX_SYSTEMS,
        max_values: int = MAX_VALUES,
        keep_systems: bool = False,
    ) -> None:
        self._keep_systems = keep_systems
        self._max_systems, self._max_values = max_systems, max_values
        self._distance = 1
        self._n_read = 0
        self.kept: dict[int, KeptBatch] = {}
        self.statistics: Mapping[str, TargetStatistics] = {}

    def update(self, batch: Batch) -> None:
        """Perhaps keep a batch."""
        n_values = 0
        for tensor in batch.targets.values():
            if is_tensormap(tensor):
                n_values += sum(block.values.numel() for block in tensor.blocks())
        if self._n_read % self._distance == 0:
            atoms = read_atoms(batch.systems)
            n_values += atoms.types.numel()
            if not self._keep_systems:
                types_only: Any = replace(atoms, systems=(), host=None, label_records=())
                batch = Batch(types_only, dict(batch.targets), batch.masks)
            self.kept[self._n_read] = KeptBatch(batch, atoms.n_systems, n_values)
        self._n_read += 1
        while len(self.kept) > 1 and self._is_too_large():
            self._distance *= 2
            self.kept = {i: one for i, one in self.kept.items() if i % self._distance == 0}

    def missing_values(self, scaler: Scaler) -> dict[str, MissingValues]:
        """The shares of missing values of each term of the loss that the data have."""
        found = {}
        for name, one in self.statistics.items():
            blocks = list(one.blocks.values())
            numbers = {
                parameter: ([sums.counts.sum(0, True)], [sums.missing.sum(0, True)])
                for parameter, sums in one.gradients.items()
            }
            if blocks:
                missing = [
                    torch.zeros_like(b.counts) if b.missing is None else b.missing for b in blocks
                ]
                numbers[""] = [b.counts.sum(0) for b in blocks], [m.sum(0) for m in missing]
            for parameter, several in numbers.items():
                n_present, n_missing = map(torch.cat, several)
                n_all = n_present + n_missing
                if n_all.any():
                    share = float(n_missing.sum() / n_all.sum())
                    by_property = (n_missing / n_all.clamp(min=1)).tolist()
                    found[term_name(name, parameter)] = MissingValues(share, by_property)
        return {term: found[term] for term in scaler.loss_terms if term in found}

    def terms(self, scaler: Scaler) -> list[DrawnTerm]:
        """The values of each target and gradient in the sample, before and after scaling.

        Args:
            scaler: scaler that was fitted to the data.
        """
        parts: dict[str, dict[int, list[Tensor]]] = {}
        for batch, _, _ in self.kept.values():
            for name, types, values in _values_of_terms(scaler, batch):
                of_term = parts.setdefault(name, {})
                for z in types.unique().tolist():
                    of_term.setdefault(z, []).append(values[:, types == z])
        terms = []
        for name in scaler.loss_terms:
            if name in parts:
                by_type = dict(sorted(parts[name].items()))
                labels = [""] if [*by_type] == [-1] else label_types([*by_type])
                joined = [torch.cat(values, dim=1).tolist() for values in by_type.values()]
                before, after = (
                    dict(zip(labels, (one[i] for one in joined), strict=True)) for i in (0, 1)
                )
                terms.append(DrawnTerm(name, before, after))
        return terms

    def _is_too_large(self) -> bool:
        n_systems = sum(one.n_systems for one in self.kept.values())
        n_values = sum(one.n_values for one in self.kept.values())
        return n_systems > self._max_systems or n_values > self._max_values


def _values_of_terms(scaler: Scaler, batch: Batch) -> Iterator[tuple[str, Tensor, Tensor]]:
    """The values of each term of a batch, without missing ones.

    Yields:
        Name of the term; atomic type of each value, ``(n_values,)``, -1 unless it is of an atom;
        and the values in the units of the data and in loss space, ``(2, n_values)``.
    """
    targets: dict[str, Any] = {
        name: tensor.to(device="cpu")
        for name, tensor in batch.targets.items()
        if name in scaler.targets and is_tensormap(tensor) and len(tensor.keys)
    }
    if not targets:
        return
    atoms = read_atoms(batch.systems).to("cpu")
    masks = {name: mask.to(device="cpu") for name, mask in batch.masks.items() if name in targets}
    before = index_by_position(scaler, atoms, targets, masks).targets
    after = targets_to_loss(scaler, atoms, targets, masks, torch.float64)
    for name, target in before.items():
        for i, block in enumerate(target.tensor.blocks()):
            in_loss = after[name].block_by_id(i)
            types = torch.full((block.values.shape[0],), -1)
            if target.layout.sample_kind == "atom":
                types = (atoms.types[target.rows[i]] if target.rows else atoms.types).long()
            yield name, *_without_missing(types, block.values, in_loss.values)
            for parameter in block.gradients_list():
                values = block.gradient(parameter).values
                types = torch.full((values.shape[0],), -1)
                scaled = in_loss.gradient(parameter).values
                yield term_name(name, parameter), *_without_missing(types, values, scaled)


def _without_missing(types: Tensor, before: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
    """The types and both values of all entries that are not missing."""
    types = types.reshape(-1, *[1] * (before.dim() - 1)).expand_as(before).flatten()
    values = torch.stack([before.detach().double().flatten(), after.detach().double().flatten()])
    known = ~values.isnan().any(0)
    return types[known], values[:, known]
