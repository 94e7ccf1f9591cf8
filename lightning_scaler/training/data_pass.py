"""The one pass over the training data inside a Trainer, on all processes together."""

from collections.abc import Iterable, Sized
from typing import Any

import torch
from lightning.pytorch import Trainer
from tqdm.auto import tqdm

from ..scaling import ScaleAccumulator
from ..tensors import TargetLayout, flatten_state, unflatten_state
from .mixin import TargetScalingMixin
from .processes import Ranks, RanksDisagreeError
from .samplers import flattened, global_randomness_kept, randomness_kept, shards

# A pass shorter than this shows no progress bar.
SECONDS_WITHOUT_PROGRESS = 3.0


def read_training_data(
    trainer: Trainer,
    module: TargetScalingMixin,
    accumulator: ScaleAccumulator,
    ranks: Ranks,
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
        ranks: the processes of the fit.
        limit_batches: at most so many batches of each loader, counted over all processes.

    Raises:
        RuntimeError: on every process, where another one failed, or data differ in layout.
    """
    own = accumulator.fresh()
    with global_randomness_kept():
        loaders = _loaders(trainer)
    overfitted = _overfitted_batches(trainer, loaders)
    limit_batches = _fast_dev_run_batches(trainer) or overfitted or limit_batches
    with randomness_kept(loaders), torch.no_grad():
        parts = shards(
            loaders,
            ranks.rank,
            ranks.world_size,
            ranks.from_first,
            limit_batches,
            first_batches=overfitted is not None,
        )
        for batch in _with_progress(trainer, parts):
            own.update(*module.unpack_batch(batch))
            ranks.look()
    _merge_all(own, accumulator, ranks)


def _merge_all(own: ScaleAccumulator, accumulator: ScaleAccumulator, ranks: Ranks) -> None:
    """Merge what all processes gathered into the accumulator, in rank order."""
    skeleton, numbers = flatten_state(own.state())
    of_ranks = ranks.gather_objects((skeleton, numbers.numel()))
    skeletons, lengths = [list(parts) for parts in zip(*of_ranks, strict=True)]
    _check_skeletons(skeletons)
    for theirs, of_rank in zip(skeletons, ranks.gather_numbers(numbers, lengths), strict=True):
        accumulator.merge_state(unflatten_state(theirs, of_rank))


def _check_skeletons(skeletons: list[Any]) -> None:
    """Unite the layouts of all processes, and the readings of ``system`` labels."""
    layouts: dict[str, TargetLayout] = {}
    readings: dict[str, int] = {}
    for rank, skeleton in enumerate(skeletons):
        for name, statistics in skeleton["statistics"].items():
            layout = TargetLayout.from_state(name, statistics["layout"])
            try:
                layouts[name] = layouts.get(name, layout).union(layout)
            except ValueError as error:
                raise RanksDisagreeError(
                    f"the data of rank {rank} do not go with those of the ranks before it: {error}"
                ) from error
        if skeleton["system_labels"] != "auto":
            readings.setdefault(skeleton["system_labels"], rank)
    if len(readings) > 1:
        found = " and ".join(f"'{labels}' on rank {rank}" for labels, rank in readings.items())
        raise RanksDisagreeError(
            f"the system labels of the data read as {found}; give all data the same labels, or "
            "set system_labels"
        )


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
