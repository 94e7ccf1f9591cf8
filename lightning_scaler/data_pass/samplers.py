"""The samples of a map-style dataset that a loader stands for, and this process's part of them."""

import copy
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
)

from .processes import FitProcesses

Batches = list[Any]

# The same samples are drawn in every fit, and by every process.
SEED_OF_ORDER = 0


def is_map_style(loader: Any) -> bool:
    """Whether a loader reads a dataset by index, so that its samples are known beforehand."""
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return False
    sampler = loader.sampler if loader.batch_sampler is None else loader.batch_sampler
    return has_length(sampler)


def has_length(loader: Any) -> bool:
    """Whether a loader or sampler says how many items it yields."""
    try:
        len(loader)
    except (TypeError, AttributeError, NotImplementedError):
        return False
    return True


def batches_of_process(
    loader: DataLoader[Any],
    processes: FitProcesses,
    injected: bool,
    random_order: bool,
) -> tuple[Batches, bool]:
    """The batches of indices of one epoch, as training reads them.

    Sequential samplers, random samplers without replacement and distributed samplers stand for the
    dataset behind them; they are recognised by their exact class. Any other sampler or batch
    sampler stands for what one epoch of it yields, drawn from a copy. ``shuffle``, ``drop_last``
    and the padding of distributed samplers are ignored.

    Args:
        loader: loader of a map-style dataset, as Lightning has set it up.
        processes: processes of the fit.
        injected: whether Lightning has put a distributed sampler into all loaders.
        random_order: whether the indices are in random order, so that every batch is a random
            sample of the dataset; of a batch sampler of the user's, the batches.

    Returns:
        Batches of indices, or single indices without automatic batching; and whether they are those
        of all processes together, the same on each, rather than of this process alone.
    """
    batch_sampler, size = loader.batch_sampler, None
    inner = getattr(batch_sampler, "sampler", None)
    if batch_sampler is None:
        items, shared = _indices(loader.sampler, loader.dataset, processes)
    elif type(batch_sampler) is BatchSampler or (injected and _is_distributed(inner)):
        items, shared = _indices(inner, loader.dataset, processes)
        size = getattr(batch_sampler, "batch_size", 1)
    else:
        items = [list(batch) for batch in copy_sampler(batch_sampler, loader.dataset)]
        shared = False
    if random_order:
        items = _in_random_order(items)
    if size is not None:
        items = [items[start : start + size] for start in range(0, len(items), size)]
    return items, shared


def loses_subset(loader: Any) -> bool:
    """Whether the sampler inside a batch sampler of the user's selects or repeats samples.

    Where Lightning distributes samples, it replaces that sampler by one over the whole dataset.

    Args:
        loader: loader as the user made it.
    """
    if not isinstance(loader, DataLoader) or loader.batch_size is not None:
        return False
    inner = getattr(loader.batch_sampler, "sampler", None)
    if inner is None:
        return False
    dataset = _dataset_of(inner)
    return dataset is None or len(dataset) != len(loader.dataset)  # type: ignore[arg-type]


def select_evenly(items: Sequence[Any], limit: int | None) -> Sequence[Any]:
    """At most ``limit`` items: the middles of as many equal parts."""
    if limit is None or limit >= len(items):
        return items
    return [items[(2 * i + 1) * len(items) // (2 * limit)] for i in range(limit)]


def in_order(indices: list[Any]) -> list[Any]:
    """The indices in ascending order; as they are if they cannot be compared."""
    try:
        return sorted(indices)
    except TypeError:
        return indices


def take_shard(batches: Batches, shard: int, n_shards: int) -> Batches:
    """One of several equal parts of the indices, in batches of the same size.

    The parts are those of the ordered indices, so that neither the order nor the size of the
    batches matters. All parts together have every index once.

    Args:
        batches: batches of indices, or single indices.
        shard: index of the part, from 0.
        n_shards: number of parts.

    Example:
        >>> take_shard([[5, 0], [1, 4], [3]], 1, 2)
        [[3, 4], [5]]
    """
    if n_shards == 1:
        return batches
    grouped = all(isinstance(batch, list) for batch in batches)
    indices = in_order([index for batch in batches for index in batch] if grouped else batches)
    part = indices[shard * len(indices) // n_shards : (shard + 1) * len(indices) // n_shards]
    if not grouped:
        return part
    size = max(map(len, batches), default=1)
    return [part[i : i + size] for i in range(0, len(part), size)]


def split_batches(batches: Batches, number: int) -> Batches:
    """The same indices in more batches of nearly equal size, as far as there are indices."""
    if len(batches) >= number:
        return batches
    indices = [index for batch in batches for index in batch]
    number = min(number, len(indices))
    edges = [i * len(indices) // number for i in range(number + 1)] if number else [0]
    return [indices[start:end] for start, end in pairwise(edges)]


def copy_sampler(sampler: Any, dataset: Any) -> Any:
    """A copy whose draws do not advance the original; datasets are not copied."""
    kept, part = [dataset], sampler
    while part is not None:
        attributes = getattr(part, "__dict__", {})
        kept += [attributes.get("data_source"), attributes.get("dataset")]
        kept += [value for value in attributes.values() if isinstance(value, Dataset)]
        part = attributes.get("sampler")
    try:
        return copy.deepcopy(sampler, {id(value): value for value in kept})
    except Exception:
        # Samplers may hold files or locks.
        return copy.copy(sampler)


def with_samplers(loader: DataLoader[Any], sampler: Any, batch_sampler: Any) -> DataLoader[Any]:
    """The same loader with other samplers, and workers that end with the pass."""
    twin = copy.copy(loader)
    # A DataLoader refuses other samplers once it has been made.
    vars(twin).update(
        sampler=sampler, batch_sampler=batch_sampler, persistent_workers=False, _iterator=None
    )
    return twin


def _in_random_order(items: list[Any]) -> list[Any]:
    """The items in an order that depends on their number alone."""
    order = torch.randperm(len(items), generator=torch.Generator().manual_seed(SEED_OF_ORDER))
    return [items[i] for i in order.tolist()]


def _indices(sampler: Any, dataset: Any, processes: FitProcesses) -> tuple[list[Any], bool]:
    """The indices of one epoch, and whether they are those of all processes together."""
    if _is_wrapper(sampler):
        # It shards what another sampler draws.
        inner = sampler.dataset._sampler
        return processes.broadcast_from_rank_zero(lambda: _one_epoch(inner, dataset)), True
    return _one_epoch(sampler, dataset), type(sampler) is DistributedSampler


def _one_epoch(sampler: Any, dataset: Any) -> list[Any]:
    own = _dataset_of(sampler)
    return list(copy_sampler(sampler, dataset) if own is None else range(len(own)))


def _dataset_of(sampler: Any) -> Any:
    """The dataset that a sampler stands for, if it yields each of its indices in every epoch."""
    if type(sampler) is DistributedSampler:
        return sampler.dataset
    if type(sampler) is SequentialSampler:
        return sampler.data_source
    if type(sampler) is RandomSampler and not sampler.replacement:
        return sampler.data_source
    return None


def _is_wrapper(sampler: Any) -> bool:
    # Two distributions of Lightning have a class of this name.
    return (
        isinstance(sampler, DistributedSampler)
        and type(sampler).__name__ == "DistributedSamplerWrapper"
        and hasattr(sampler.dataset, "_sampler")
    )


def _is_distributed(sampler: Any) -> bool:
    return type(sampler) is DistributedSampler or _is_wrapper(sampler)
