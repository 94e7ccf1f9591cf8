"""A sample of the batches of a data pass, for pictures of the data before and after scaling."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..batches import Batch, read_atoms
from ..reports import DrawnTerm, MissingValues
from ..scaling import Scaler, index_by_position, targets_to_loss, term_name
from ..settings import label_types
from ..tensors import Key, is_tensormap, mask_values
from .processes import FitProcesses

# Enough for a histogram of every target, and a few megabytes.
MAX_SYSTEMS = 1024
MAX_VALUES = 2**18

# Numbers of all and of missing values of each property, by term of the loss and block.
Counts = dict[str, dict[Key, tuple[Tensor, Tensor]]]


class DataSample:
    """Some batches of a data pass, and the numbers of all and of missing values.

    The scales are known only after the pass, so the sample consists of batches as they are read, at
    even distances: of more than can be kept, every other one is dropped, and from then on every
    other one is kept.

    Args:
        max_systems: number of systems to keep.
        max_values: number of atoms and values to keep; one batch may have more.
        keep_systems: whether the systems are needed, with their positions and lists of neighbors,
            for an additive module; otherwise only the types of their atoms are kept.
    """

    def __init__(
        self,
        max_systems: int = MAX_SYSTEMS,
        max_values: int = MAX_VALUES,
        keep_systems: bool = False,
    ) -> None:
        self._keep_systems = keep_systems
        self._limits = max_systems, max_values
        self._distance = 1
        self._n_read = 0
        # By index, with the number of its systems, and of its atoms and values.
        self._kept: dict[int, tuple[Batch, int, int]] = {}
        self._counts: Counts = {}

    @property
    def kept(self) -> list[int]:
        """The indices of the batches that are kept."""
        return list(self._kept)

    def update(self, batch: Batch) -> None:
        """Count the values of a batch, and perhaps keep it."""
        n_values = 0
        for name, tensor in batch.targets.items():
            if is_tensormap(tensor):
                n_values += sum(block.values.numel() for block in tensor.blocks())
                for term, counts in _count(name, batch).items():
                    _add(self._counts.setdefault(term, {}), counts)
        if self._n_read % self._distance == 0:
            atoms = read_atoms(batch.systems)
            n_values += atoms.types.numel()
            if not self._keep_systems:
                types_only: Any = replace(atoms, systems=(), host=None, moved=())
                batch = Batch(types_only, dict(batch.targets), batch.masks)
            self._kept[self._n_read] = batch, atoms.n_systems, n_values
        self._n_read += 1
        while len(self._kept) > 1 and self._is_too_large():
            self._distance *= 2
            self._kept = {i: one for i, one in self._kept.items() if i % self._distance == 0}

    def gather_counts(self, processes: FitProcesses) -> None:
        """Add the numbers of values of all processes; each keeps its own batches."""
        if processes.world_size > 1:
            by_rank, self._counts = processes.gather_objects(self._counts), {}
            for counts in by_rank:
                for term, of_term in counts.items():
                    _add(self._counts.setdefault(term, {}), of_term)

    def missing_values(self, scaler: Scaler) -> dict[str, MissingValues]:
        """The shares of missing values of each term of the loss that the data have."""
        found = {}
        for name in scaler.loss_terms:
            of_term = self._counts.get(name, {})
            n_all, n_missing = (
                torch.cat([torch.empty(0, dtype=torch.int64), *counts])
                for counts in (zip(*of_term.values(), strict=True) if of_term else ((), ()))
            )
            if int(n_all.sum()):
                share = float(n_missing.sum() / n_all.sum())
                by_property = (n_missing / n_all.clamp(min=1)).tolist()
                found[name] = MissingValues(share, by_property)
        return found

    def terms(self, scaler: Scaler) -> list[DrawnTerm]:
        """The values of each target and gradient in the sample, before and after scaling.

        Args:
            scaler: scaler that was fitted to the data.
        """
        parts: dict[str, dict[int, list[Tensor]]] = {}
        for batch, _, _ in self._kept.values():
            for name, types, values in _values(scaler, batch):
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
        sizes = [one[1:] for one in self._kept.values()]
        totals = (sum(size) for size in zip(*sizes, strict=True))
        return any(total > limit for total, limit in zip(totals, self._limits, strict=True))


def _count(name: str, batch: Batch) -> Counts:
    """The numbers of all and of missing values of each property of a target and its gradients.

    A mask is that of the values; missing gradients are NaN.
    """
    tensor, mask = batch.targets[name], batch.masks.get(name)
    masks = [] if mask is None else mask_values(name, tensor, mask.to(device=tensor.device))
    counts: Counts = {}
    for i, key in enumerate(tensor.keys.values.tolist()):
        block = tensor.block_by_id(i)
        missing = block.values.isnan()
        missing_by_term = {name: missing | ~masks[i] if masks else missing}
        for parameter in block.gradients_list():
            missing_by_term[term_name(name, parameter)] = block.gradient(parameter).values.isnan()
        for term, missing in missing_by_term.items():
            missing = missing.reshape(-1, missing.shape[-1]).cpu()
            n_all = torch.full((missing.shape[1],), missing.shape[0], dtype=torch.int64)
            counts.setdefault(term, {})[tuple(key)] = n_all, missing.sum(0)
    return counts


def _add(
    counts: dict[Key, tuple[Tensor, Tensor]], others: Mapping[Key, tuple[Tensor, Tensor]]
) -> None:
    for key, (n_all, n_missing) in others.items():
        if key in counts:
            n_all, n_missing = n_all + counts[key][0], n_missing + counts[key][1]
        counts[key] = n_all, n_missing


def _values(scaler: Scaler, batch: Batch) -> Iterator[tuple[str, Tensor, Tensor]]:
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
            yield name, *_known(types, block.values, in_loss.values)
            for parameter in block.gradients_list():
                values = block.gradient(parameter).values
                types = torch.full((values.shape[0],), -1)
                scaled = in_loss.gradient(parameter).values
                yield term_name(name, parameter), *_known(types, values, scaled)


def _known(types: Tensor, before: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
    """The types and both values of all entries that are not missing."""
    types = types.reshape(-1, *[1] * (before.dim() - 1)).expand_as(before).flatten()
    values = torch.stack([before.detach().double().flatten(), after.detach().double().flatten()])
    known = ~values.isnan().any(0)
    return types[known], values[:, known]
