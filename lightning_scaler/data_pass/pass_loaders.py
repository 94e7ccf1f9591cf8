"""Loaders that read one epoch of the training data for the fit, in the form it has in training."""

import copy
import time
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from torch.utils.data import DataLoader, IterableDataset

from .processes import FitProcesses
from .samplers import (
    batches_of_process,
    copy_sampler,
    has_length,
    is_map_style,
    select_evenly,
    split_batches,
    take_shard,
    with_samplers,
)

# A loader without a length that takes longer may have no end.
SECONDS_WITHOUT_WARNING = 300.0


class Limits(NamedTuple):
    """How much of each loader is read; ``None`` means all of it.

    Attributes:
        spread: number of batches over all processes, evenly spaced.
        first: number of batches of each process, from the start.
        largest: number of batches of each process that training could use; a loader without a
            length that has more is an error.
        shard: index of the shard that is read, from 0, and the number of shards.
        random_order: whether samples are read in random order, to stop before all have been read.
    """

    spread: int | None = None
    first: int | None = None
    largest: int | None = None
    shard: tuple[int, int] = (0, 1)
    random_order: bool = False

    def of_process(self, processes: FitProcesses) -> int | None:
        """This process's part of a limit, where each process has batches of its own."""
        if self.first is not None or self.spread is None:
            return self.first
        rank, world_size = processes.rank, processes.world_size
        return self.spread // world_size + (rank < self.spread % world_size)


class Stream:
    """A loader whose batches are read as they come, up to its length if it has one.

    Args:
        loader: any iterable.
        limit: number of batches to read; ``None``: all.
        largest: number of batches that training could use of a loader without a length.

    Attributes:
        ended: whether it had batches and has been read to its end.
    """

    def __init__(self, loader: Any, limit: int | None, largest: int | None) -> None:
        self.loader = loader
        self.limit = limit
        self.largest = largest
        self.ended = False
        self._name = _loader_name(loader)

    def __iter__(self) -> Iterator[Any]:
        own_length = len(self.loader) if has_length(self.loader) else None
        last = min((n for n in (self.limit, own_length) if n is not None), default=None)
        if last == 0:
            return
        number, warn_after = 0, time.monotonic() + SECONDS_WITHOUT_WARNING
        for number, batch in enumerate(_without_shared_sampler(self.loader), 1):
            if last is None and self.largest is not None and number > self.largest:
                raise RuntimeError(
                    f"the training loader ({self._name}) has no length and continues after "
                    f"{self.largest} batches, more than training could use (max_steps, "
                    "limit_train_batches); set TargetScaler(limit_batches=...) to the number of "
                    "batches that the scales are fitted to"
                )
            yield batch
            # Not one batch more than the limit is drawn.
            if number == last:
                self.ended = number == own_length
                return
            if last is None and time.monotonic() > warn_after:
                warn_after = float("inf")
                warnings.warn(
                    f"the training loader ({self._name}) has no length, and {number} "
                    "batches have been read to fit the target scales; if it has no end, set "
                    "TargetScaler(limit_batches=...)",
                    stacklevel=2,
                )
        self.ended = number > 0

    def check_readable_again(self) -> None:
        """Check that batches are left for training.

        Raises:
            ValueError: if the loader has been read to its end and does not start again.
        """
        nothing = object()
        if self.ended and next(iter(self.loader), nothing) is nothing:
            raise ValueError(
                f"the training loader ({self._name}) can be read only once: after the fit "
                "of the target scales, nothing is left to train on; let it start again at every "
                "iter(loader), or fit the scales to its first batches, which training then does "
                "not see, with TargetScaler(limit_batches=...)"
            )


def pass_loaders(
    combined: Any, processes: FitProcesses, limits: Limits, injected: bool = False
) -> Any:
    """A combined loader that yields every sample of one epoch once, over all processes.

    Loaders keep their class, collate function and workers; those of map-style datasets get other
    samplers (see :func:`samplers.batches_of_process`), all others are read as they are. Of several
    loaders, those with fewer batches get more and smaller ones, and give ``None`` at the end.

    Args:
        combined: the ``CombinedLoader`` of training.
        processes: the processes that share the batches.
        limits: how much to read.
        injected: whether Lightning has put a distributed sampler into all loaders.

    Returns:
        The loader; its attribute ``shared`` says whether its batches are every n-th one of a list
        that n processes share, from that of their rank on.

    Raises:
        ValueError: for a shard, or a random order, of a loader whose samples are not known
            beforehand; and for a random order of loaders that end one before another.
    """
    loaders = list(combined.flattened)
    selected = [selected_batches(loader, processes, limits, injected) for loader in loaders]
    batches = [one and _batches_of_process(*one, processes, limits) for one in selected]
    longest = max((len(of_loader) for of_loader in batches if of_loader is not None), default=0)
    flattened: list[Any] = []
    for loader, of_loader in zip(loaders, batches, strict=True):
        if of_loader is None:
            name = _loader_name(loader)
            if limits.random_order:
                raise ValueError(
                    "relative_error: expected a loader of a dataset that is read by index, got a "
                    f"stream ({name}), which has no random order; leave out "
                    "relative_error to read all of it, or set limit_batches to read its beginning"
                )
            if limits.shard[1] > 1:
                raise ValueError(
                    f"shards={limits.shard[1]}: expected a loader of a dataset that is read by "
                    f"index, got a stream ({name}), which cannot be divided; let the data "
                    "of each job be its own part, without shards, and merge the files"
                )
            flattened.append(Stream(loader, limits.of_process(processes), limits.largest))
        elif loader.batch_sampler is None:
            flattened.append(with_samplers(loader, of_loader, None))
        else:
            split = split_batches(of_loader, longest) if len(loaders) > 1 else of_loader
            flattened.append(with_samplers(loader, [i for b in split for i in b], split))
    twin = _combine(combined, flattened)
    if limits.random_order and len({len(loader) for loader in flattened}) > 1:
        raise ValueError(
            "relative_error: expected loaders of which equal parts can be read, got some with "
            f"{min(map(len, flattened))} and {max(map(len, flattened))} batches that cannot be "
            "made smaller; leave out relative_error"
        )
    twin.shared = all(one is not None and one[1] for one in selected)
    return twin


def sample_loaders(combined: Any, samples: list[list[Any]]) -> Any:
    """A combined loader that yields some samples of each loader, in batches of one.

    Args:
        combined: the ``CombinedLoader`` of training, all of map-style datasets.
        samples: indices for each loader.
    """
    loaders = []
    for loader, chosen in zip(combined.flattened, samples, strict=True):
        batches = None if loader.batch_sampler is None else [[i] for i in chosen]
        loaders.append(with_samplers(loader, chosen, batches))
    return _combine(combined, loaders)


def training_batches(loaders: Any) -> Iterator[Any]:
    """The batches of :func:`pass_loaders`, without those that are ``None``.

    In the last batches of a mapping of loaders, those that have ended are left out.
    """
    for batch, *_ in loaders:
        if isinstance(batch, Mapping) and len(loaders.flattened) > 1:
            yield {name: part for name, part in batch.items() if part is not None}
        elif batch is not None:
            yield batch


def length(loaders: Any) -> int | None:
    """The number of batches; ``None`` if a loader has no length."""
    try:
        return max(len(loader) for loader in loaders.flattened)
    except TypeError:
        return None


def selected_batches(
    loader: Any, processes: FitProcesses, limits: Limits, injected: bool
) -> tuple[list[Any], bool] | None:
    """The batches of indices within the limits, of all shards; ``None`` for a stream.

    Beside them, whether they are those of all processes together, rather than of this one alone.
    """
    if not is_map_style(loader):
        return None
    batches, shared = batches_of_process(loader, processes, injected, limits.random_order)
    if limits.first is not None:
        return batches[: limits.first * (processes.world_size if shared else 1)], shared
    limit = limits.spread if shared else limits.of_process(processes)
    return list(select_evenly(batches, limit)), shared


def _batches_of_process(
    batches: list[Any], shared: bool, processes: FitProcesses, limits: Limits
) -> list[Any]:
    """The batches of indices of this process and shard."""
    own = batches[processes.rank :: processes.world_size] if shared else batches
    return take_shard(own, *limits.shard)


def _combine(combined: Any, loaders: list[Any]) -> Any:
    """A combined loader of other loaders, each of which is read once."""
    twin = copy.copy(combined)
    twin._mode, twin._iterator, twin.limits = "max_size", None, None
    twin.flattened = loaders
    return twin


def _loader_name(loader: Any) -> str:
    """The class of a loader, and that of its dataset, in words."""
    dataset = getattr(loader, "dataset", None)
    return type(loader).__name__ + (f" of {type(dataset).__name__}" if dataset is not None else "")


def _without_shared_sampler(loader: Any) -> Any:
    """A loader whose sampler has no length, if it has one, does not advance that of training."""
    if not isinstance(loader, DataLoader):
        return loader
    if isinstance(loader.dataset, IterableDataset):
        return with_samplers(loader, loader.sampler, loader.batch_sampler)
    samplers = (loader.sampler, loader.batch_sampler)
    return with_samplers(loader, *(copy_sampler(one, loader.dataset) for one in samplers))
