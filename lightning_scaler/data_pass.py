"""The one pass over the training data inside a Trainer, on all processes together."""

from collections.abc import Iterable, Sized
from typing import Any

import torch
from lightning.pytorch import Trainer
from tqdm.auto import tqdm

from .accumulator import ScaleAccumulator
from .distributed import (
    flattened,
    gather_in_order,
    global_randomness_kept,
    randomness_kept,
    shards,
)
from .mixin import TargetScalingMixin

# A pass shorter than this shows no progress bar.
SECONDS_WITHOUT_PROGRESS = 3.0


def read_training_data(
    trainer: Trainer,
    module: TargetScalingMixin,
    accumulator: ScaleAccumulator,
    limit_batches: int | None = None,
) -> None:
    """Fill the accumulator with all training data, each sample once over all processes.

    ``limit_train_batches`` does not bound the pass; ``overfit_batches`` takes the very batches
    that are trained on, ``fast_dev_run`` so many evenly spread ones. All random states are
    afterwards what they were before.

    Args:
        trainer: in a fit.
        module: unpacks the batches.
        accumulator: empty; holds the data of all processes afterwards, the same on each.
        limit_batches: at most so many batches of each loader, counted over all processes.

    Raises:
        RuntimeError: on every process, with the message of the process that failed.
    """
    own = accumulator.fresh()
    error: Exception | None = None
    try:
        with global_randomness_kept():
            loaders = _loaders(trainer)
        overfitted = _overfitted_batches(trainer, loaders)
        limit_batches = _fast_dev_run_batches(trainer) or overfitted or limit_batches
        with randomness_kept(loaders), torch.no_grad():
            parts = shards(
                loaders,
                trainer.global_rank,
                trainer.world_size,
                trainer.strategy.broadcast,
                limit_batches,
                first_batches=overfitted is not None,
            )
            for batch in _with_progress(trainer, parts):
                own.update(*module.unpack_batch(batch))
    except Exception as exception:
        if trainer.world_size == 1:
            raise
        error = exception
    message = None if error is None else f"{type(error).__name__}: {error}"
    gathered = gather_in_order((message, own.state() if error is None else {}), trainer.world_size)
    for rank, (failure, _) in enumerate(gathered):
        if failure is not None:
            raise RuntimeError(
                f"the pass over the training data failed on rank {rank}: {failure}"
            ) from error
    for _, state in gathered:
        accumulator.merge_state(state)


def _loaders(trainer: Trainer) -> Any:
    # No public way leads to loaders given to fit() before the fit loop has set them up.
    return trainer.fit_loop._data_source.dataloader()


def _fast_dev_run_batches(trainer: Trainer) -> int | None:
    return int(trainer.fast_dev_run) or None  # type: ignore[attr-defined]


def _overfitted_batches(trainer: Trainer, loaders: Any) -> int | None:
    batches: int | float = trainer.overfit_batches  # type: ignore[attr-defined]
    if not batches:
        return None
    if isinstance(batches, int):
        return batches * trainer.world_size
    return int(batches * max(len(loader) for loader in flattened(loaders))) or None


def _with_progress(trainer: Trainer, parts: list[Iterable[Any]]) -> Iterable[Any]:
    sized = [len(part) for part in parts if isinstance(part, Sized)]
    total = sum(sized) if len(sized) == len(parts) else None
    hidden = trainer.progress_bar_callback is None or not trainer.is_global_zero
    batches = (batch for part in parts for batch in part)
    yield from tqdm(
        batches,
        "Fitting target scales",
        total,
        leave=False,
        disable=hidden,
        delay=SECONDS_WITHOUT_PROGRESS,
    )
