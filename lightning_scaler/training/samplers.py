"""The shard of the data that each process reads, and the padding that samplers add to it."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import metatensor.torch as mts
import torch
from lightning.fabric.utilities.seed import _collect_rng_states, _set_rng_states
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from metatensor.torch import Labels, TensorMap
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
)

from .processes import FitProcesses


def shard_loaders(
    loaders: Any,
    processes: FitProcesses,
    limit_batches: int | None = None,
    first_batches: bool = False,
) -> list[Iterable[Any]]:
    """Loaders that together yield, over all processes, every sample of one epoch once.

    Shuffling, ``drop_last`` and the padding of distributed samplers are ignored; collation,
    workers and pinning are those of the original loader. Sequential, random (without replacement)
    and distributed samplers are replaced by the whole dataset behind them; one epoch of any other
    sampler or batch sampler is drawn on rank 0. Each process reads iterable datasets as they are.

    Args:
        loaders: a loader or any nesting of several; each of them is read once.
        processes: the processes that share the batches.
        limit_batches: maximum number of batches per loader, counted over all processes.
        first_batches: take the first batches up to the limit instead of evenly spaced ones.
    """
    return [
        _shard_loader(loader, processes, limit_batches, first_batches)
        for loader in flattened(loaders)
    ]


def flattened(loaders: Any) -> list[Any]:
    """The single loaders in any nesting of them."""
    combined = loaders if isinstance(loaders, CombinedLoader) else CombinedLoader(loaders)
    return list(combined.flattened)


@contextmanager
def preserve_rng(loaders: Any) -> Iterator[None]:
    """Restore the global random states and those of the loaders' generators on exit."""
    generators: list[torch.Generator] = []
    for loader in flattened(loaders):
        sampler = getattr(loader, "sampler", None)
        batch_sampler = getattr(loader, "batch_sampler", None)
        inner = getattr(batch_sampler, "sampler", None)
        for owner in (loader, sampler, batch_sampler, inner):
            generator = getattr(owner, "generator", None)
            if isinstance(generator, torch.Generator):
                generators.append(generator)
    states = [generator.get_state() for generator in generators]
    with preserve_global_rng():
        try:
            yield
        finally:
            for generator, state in zip(generators, states, strict=True):
                generator.set_state(state)


@contextmanager
def preserve_global_rng() -> Iterator[None]:
    """Restore the random states of python, numpy and torch on exit, after an error too."""
    states = _collect_rng_states()
    try:
        yield
    finally:
        _set_rng_states(states)


def _shard_loader(
    loader: Any, processes: FitProcesses, limit_batches: int | None, first_batches: bool
) -> Iterable[Any]:
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return _first_batches(loader, processes, limit_batches)
    local = slice(processes.rank, None, processes.world_size)
    batch_sampler = loader.batch_sampler
    if loader.batch_size is None and batch_sampler is None:
        indices = _epoch_indices(loader.sampler, loader, processes)
        indices = _subsample(indices, limit_batches, first_batches)
        return _rebuild_loader(loader, sampler=indices[local], batch_size=None)
    if type(batch_sampler) is BatchSampler:
        indices = _epoch_indices(batch_sampler.sampler, loader, processes)
        size = batch_sampler.batch_size
        batches = [indices[start : start + size] for start in range(0, len(indices), size)]
    else:
        batches = processes.broadcast_from_rank_zero(
            lambda: [list(batch) for batch in batch_sampler or ()]
        )
    batches = _subsample(batches, limit_batches, first_batches)
    return _rebuild_loader(loader, batch_sampler=batches[local])


def _epoch_indices(
    sampler: Iterable[Any], loader: DataLoader[Any], processes: FitProcesses
) -> list[Any]:
    """The indices (or whatever else the sampler yields) of one epoch."""
    covers_dataset = isinstance(sampler, (SequentialSampler, DistributedSampler)) or (
        isinstance(sampler, RandomSampler) and not sampler.replacement
    )
    if covers_dataset:
        return list(range(len(loader.dataset)))  # type: ignore[arg-type]
    return processes.broadcast_from_rank_zero(lambda: list(sampler))


def _subsample(items: list[Any], limit: int | None, first: bool) -> list[Any]:
    """At most ``limit`` items: the first ones, or else the middles of ``limit`` equal parts."""
    if limit is None or limit >= len(items):
        return items
    if first:
        return items[:limit]
    return [items[(2 * i + 1) * len(items) // (2 * limit)] for i in range(limit)]


def _first_batches(
    loader: Iterable[Any], processes: FitProcesses, limit: int | None
) -> Iterable[Any]:
    """The batches of a stream, up to this process's part of the limit."""
    rank, world_size = processes.rank, processes.world_size
    local_limit = None if limit is None else limit // world_size + (rank < limit % world_size)
    for index, batch in enumerate(loader):
        if local_limit is not None and index >= local_limit:
            return
        yield batch


def _rebuild_loader(loader: DataLoader[Any], **sampling: Any) -> DataLoader[Any]:
    """The same loader with another sampler or batch sampler."""
    workers = {}
    if loader.num_workers > 0:
        workers = {
            "prefetch_factor": loader.prefetch_factor,
            "multiprocessing_context": loader.multiprocessing_context,
        }
    return DataLoader(
        loader.dataset,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        generator=torch.Generator(),
        **workers,
        **sampling,
    )


def padded_positions(loader: Any, batch_idx: int, n_systems: int) -> list[int]:
    r"""Positions, in a batch, of the systems that are padding and counted on another rank.

    With W processes and n samples, the k-th index of rank r is padding if
    :math:`k W + r \ge n`: a ``DistributedSampler`` fills up with the first samples.

    Args:
        loader: loader of this process.
        batch_idx: index of the batch.
        n_systems: number of systems in the batch.

    Returns:
        An empty list for other samplers and batch samplers, and where a sample of the dataset is
        not a single system. Without automatic batching a sample is a whole batch, so that either
        all its systems are padding or none.
    """
    if not isinstance(loader, DataLoader):
        return []
    unbatched = loader.batch_sampler is None
    sampler, size = loader.sampler, 1
    if not unbatched:
        if type(loader.batch_sampler) is not BatchSampler:
            return []
        sampler, size = loader.batch_sampler.sampler, loader.batch_sampler.batch_size
    if not isinstance(sampler, DistributedSampler):
        return []
    last = min(len(sampler), (batch_idx + 1) * size)
    length, step = len(sampler.dataset), sampler.num_replicas  # type: ignore[arg-type]
    samples = range(batch_idx * size, last)
    padded = [i for i, k in enumerate(samples) if k * step + sampler.rank >= length]
    if unbatched:
        return list(range(n_systems)) if padded else []
    return padded if len(samples) == n_systems else []


def drop_systems(
    predictions: Mapping[str, TensorMap],
    targets: Mapping[str, TensorMap],
    positions: Sequence[int],
    n_systems: int,
) -> tuple[Mapping[str, TensorMap], Mapping[str, TensorMap]]:
    """Predictions and targets without the samples, and the gradients, of some systems.

    Args:
        predictions: predictions by target name, with positions in the batch as ``system`` labels.
        targets: targets by name, with the same labels; those without a prediction are returned
            unchanged.
        positions: positions in the batch of the systems to drop.
        n_systems: number of systems in the batch.
    """
    if not positions:
        return predictions, targets
    kept = torch.tensor([i for i in range(n_systems) if i not in positions], dtype=torch.int64)
    selection = Labels("system", kept.reshape(-1, 1))

    def select(tensor: TensorMap) -> TensorMap:
        return mts.slice(tensor, "samples", selection.to(tensor.device))

    names = predictions.keys() & targets.keys()
    return (
        {**predictions, **{name: select(predictions[name]) for name in names}},
        {**targets, **{name: select(targets[name]) for name in names}},
    )
