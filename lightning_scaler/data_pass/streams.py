"""Loaders as they come: streams without indices, and what can be known of a loader beforehand."""

import copy
import time
import warnings
from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader, IterableDataset

from .samplers import copy_sampler

# A loader without a length that takes longer may have no end.
SECONDS_WITHOUT_WARNING = 300.0


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
        self._name = loader_name(loader)

    def __iter__(self) -> Iterator[Any]:
        own_length = len(self.loader) if _has_length(self.loader) else None
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


def is_map_style(loader: Any) -> bool:
    """Whether a loader reads a dataset by index, so that its samples are known beforehand."""
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return False
    sampler = loader.sampler if loader.batch_sampler is None else loader.batch_sampler
    return _has_length(sampler)


def with_samplers(loader: DataLoader[Any], sampler: Any, batch_sampler: Any) -> DataLoader[Any]:
    """The same loader with other samplers, and workers that end with the pass."""
    twin = copy.copy(loader)
    # A DataLoader refuses other samplers once it has been made.
    vars(twin).update(
        sampler=sampler, batch_sampler=batch_sampler, persistent_workers=False, _iterator=None
    )
    return twin


def loader_name(loader: Any) -> str:
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


def _has_length(loader: Any) -> bool:
    try:
        len(loader)
    except (TypeError, AttributeError, NotImplementedError):
        return False
    return True
