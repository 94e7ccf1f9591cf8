"""The part of the training data that each process reads in the fit, without padding."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.fabric.utilities.seed import _collect_rng_states, _set_rng_states
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
)

Indices = list[Any]
FromFirst = Callable[[Callable[[], Indices]], Indices]


def shards(
    loaders: Any,
    rank: int,
    world_size: int,
    from_first: FromFirst,
    limit_batches: int | None = None,
    first_batches: bool = False,
) -> list[Iterable[Any]]:
    """Loaders that give this process its part of all batches of one epoch, each sample once.

    Shuffling, ``drop_last`` and the padding of distributed samplers do not count; collation,
    workers and pinning are those of the loader. Sequential, random (without replacement) and
    distributed samplers stand for the whole data set behind them; any other sampler or batch
    sampler for what one epoch of it yields, drawn on rank 0. Iterable data sets are read by each
    process as they come.

    Args:
        loaders: a loader, or any nesting of several, each of which is read once.
        rank: of this process.
        world_size: number of processes.
        from_first: gives the indices that rank 0 draws to all.
        limit_batches: at most so many batches of each loader, counted over all ranks.
        first_batches: take the first ones, instead of spreading them evenly over the data.
    """
    return [
        _shard(loader, rank, world_size, from_first, limit_batches, first_batches)
        for loader in flattened(loaders)
    ]


def flattened(loaders: Any) -> list[Any]:
    """The single loaders of any nesting of them."""
    combined = loaders if isinstance(loaders, CombinedLoader) else CombinedLoader(loaders)
    return list(combined.flattened)


@contextmanager
def randomness_kept(loaders: Any) -> Iterator[None]:
    """Restore all random states on leaving: python, numpy, torch, and generators of loaders."""
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
    with global_randomness_kept():
        try:
            yield
        finally:
            for generator, state in zip(generators, states, strict=True):
                generator.set_state(state)


@contextmanager
def global_randomness_kept() -> Iterator[None]:
    """Restore the global states of python, numpy and torch on leaving, after an error too."""
    states = _collect_rng_states()
    try:
        yield
    finally:
        _set_rng_states(states)


def _shard(
    loader: Any,
    rank: int,
    world_size: int,
    from_first: FromFirst,
    limit_batches: int | None,
    first_batches: bool,
) -> Iterable[Any]:
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return _limited(loader, rank, world_size, limit_batches)
    if loader.batch_size is None and loader.batch_sampler is None:
        indices = _epoch(loader.sampler, loader, from_first)
        chosen = _chosen(indices, limit_batches, first_batches)
        return _like(loader, sampler=chosen[rank::world_size], batch_size=None)
    batch_sampler = loader.batch_sampler
    if type(batch_sampler) is BatchSampler:
        indices, size = _epoch(batch_sampler.sampler, loader, from_first), batch_sampler.batch_size
        batches = [indices[start : start + size] for start in range(0, len(indices), size)]
    else:
        batches = from_first(lambda: [list(batch) for batch in batch_sampler or ()])
    chosen = _chosen(batches, limit_batches, first_batches)
    return _like(loader, batch_sampler=chosen[rank::world_size])


def _epoch(sampler: Iterable[Any], loader: DataLoader[Any], from_first: FromFirst) -> Indices:
    """The indices (or whatever a sampler gives) of one epoch."""
    whole = isinstance(sampler, (SequentialSampler, DistributedSampler)) or (
        isinstance(sampler, RandomSampler) and not sampler.replacement
    )
    if whole:
        return list(range(len(loader.dataset)))  # type: ignore[arg-type]
    return from_first(lambda: list(sampler))


def _chosen(items: list[Any], limit: int | None, first: bool) -> list[Any]:
    if limit is None or limit >= len(items):
        return items
    if first:
        return items[:limit]
    return [items[(2 * i + 1) * len(items) // (2 * limit)] for i in range(limit)]


def _limited(loader: Iterable[Any], rank: int, world_size: int, limit: int | None) -> Iterable[Any]:
    own = None if limit is None else limit // world_size + (rank < limit % world_size)
    for number, batch in enumerate(loader):
        if own is not None and number >= own:
            return
        yield batch


def _like(loader: DataLoader[Any], **which: Any) -> DataLoader[Any]:
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
        **which,
    )
