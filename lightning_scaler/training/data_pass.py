"""The single pass over the training data inside a Trainer, shared by all processes."""

import warnings
from collections.abc import Iterable, Sized
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info
from tqdm.auto import tqdm

from ..batches import check_unpacked
from ..scaling import ScaleAccumulator, Scaler, describe_force_targets
from ..tensors import TargetLayout, flatten_state, unflatten_state
from .fit_decision import FitDecision
from .mixin import TargetScalingMixin
from .processes import FitProcesses, ProcessesDisagreeError
from .samplers import flattened, preserve_global_rng, preserve_rng, shard_loaders

# A shorter pass shows no progress bar.
SECONDS_WITHOUT_PROGRESS = 3.0


def fit_scales(
    trainer: Trainer,
    module: TargetScalingMixin,
    decision: FitDecision,
    processes: FitProcesses,
) -> Scaler:
    """Read the training data and fit the scales that were decided on.

    Args:
        trainer: trainer that is starting a fit.
        module: module that unpacks the batches.
        decision: targets to fit, and the settings to use.
        processes: processes of the fit.

    Returns:
        A scaler with the targets of the decision alone, the same on all processes.
    """
    request, settings = decision.request, decision.request.settings
    fixed_scales = decision.fixed_scales()
    accumulator = decision.accumulator(module.scaler, module.device)
    if fixed_scales and decision.targets is not None:
        # One batch shows the layouts, and no more is needed if all scales and baselines are fixed.
        read_training_data(trainer, module, accumulator, processes, limit_batches=1)
    no_pass = accumulator.all_fixed(fixed_scales)
    if not no_pass:
        accumulator = accumulator.fresh()
        read_training_data(trainer, module, accumulator, processes, request.limit_batches)
    unseen_types = settings.unseen_types
    if is_dev_run(trainer):
        unseen_types = "pooled"
        rank_zero_info(
            "fast_dev_run: the target scales are fitted to a few batches, and atomic types that do "
            "not occur in them use the RMS over all types"
        )
    with warnings.catch_warnings():
        if not trainer.is_global_zero:
            warnings.simplefilter("ignore")
        scaler = accumulator.compute(fixed_scales, unseen_types, settings.enabled)
        about_forces = describe_force_targets(scaler.layouts)
        if about_forces is not None:
            warnings.warn(about_forces, stacklevel=2)
    scaler.settings = replace(scaler.settings, provisional=is_dev_run(trainer))
    if no_pass:  # one batch says nothing about the mean squares
        scaler.targets = {n: replace(s, mean_squares={}) for n, s in scaler.targets.items()}
    return scaler


def is_dev_run(trainer: Trainer) -> bool:
    """Whether the Trainer only tries a few batches, with ``fast_dev_run``."""
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]


def read_training_data(
    trainer: Trainer,
    module: TargetScalingMixin,
    accumulator: ScaleAccumulator,
    processes: FitProcesses,
    limit_batches: int | None = None,
) -> None:
    """Add all training data to an accumulator, each sample once over all processes.

    ``limit_train_batches`` does not limit the pass. ``overfit_batches`` restricts it to the batches
    that are trained on, ``fast_dev_run`` to the same number of evenly spaced batches. All random
    states are restored afterwards.

    Args:
        trainer: trainer that is starting a fit.
        module: module that unpacks the batches.
        accumulator: empty accumulator; afterwards it holds the data of all processes, and is the
            same on each of them.
        processes: processes of the fit.
        limit_batches: maximum number of batches of each loader, counted over all processes.

    Raises:
        RuntimeError: on every process, if one of them fails or the layouts of targets differ.
    """
    single = processes.world_size == 1
    local = accumulator if single else accumulator.fresh()
    with preserve_global_rng():
        loaders = _loaders(trainer)
    n_overfit = _overfit_batches(trainer, loaders)
    limit_batches = _fast_dev_run_batches(trainer) or n_overfit or limit_batches
    with preserve_rng(loaders), torch.no_grad():
        shards = shard_loaders(
            loaders, processes, limit_batches, first_batches=n_overfit is not None
        )
        for batch in _with_progress(trainer, shards):
            where = f"{type(module).__name__}.unpack_batch"
            local.update(*check_unpacked(where, module.unpack_batch(batch)))
            processes.check_for_failure()
    if not single:
        _merge_all(local, accumulator, processes)


def _merge_all(
    local: ScaleAccumulator, accumulator: ScaleAccumulator, processes: FitProcesses
) -> None:
    """Merge the data of all processes into the accumulator, in rank order."""
    structure, values = flatten_state(local.state())
    gathered = processes.gather_objects((structure, values.numel()))
    structures, lengths = [list(parts) for parts in zip(*gathered, strict=True)]
    _check_compatible(structures)
    values_by_rank = processes.gather_values(values, lengths)
    for structure, values in zip(structures, values_by_rank, strict=True):
        accumulator.merge_state(unflatten_state(structure, values))


def _check_compatible(structures: list[Any]) -> None:
    """Check that all processes found the same layouts and the same kind of system labels.

    Args:
        structures: state of each process's accumulator, without its float64 values.
    """
    layouts: dict[str, TargetLayout] = {}
    first_rank: dict[str, int] = {}
    for rank, structure in enumerate(structures):
        for name, statistics in structure["statistics"].items():
            layout = TargetLayout.from_state(name, statistics["layout"])
            try:
                layouts[name] = layouts.get(name, layout).union(layout)
            except ValueError as error:
                raise ProcessesDisagreeError(
                    f"the data of rank {rank} differ in layout from those of lower ranks: {error}"
                ) from error
        if structure["system_labels"] != "auto":
            first_rank.setdefault(structure["system_labels"], rank)
    if len(first_rank) > 1:
        found = " and ".join(f"'{labels}' on rank {rank}" for labels, rank in first_rank.items())
        raise ProcessesDisagreeError(
            f"expected the same kind of system labels on all processes, got {found}; use one kind "
            "in all data, or set system_labels"
        )


def _loaders(trainer: Trainer) -> Any:
    # Loaders passed to fit() are not public before the fit loop has set them up.
    return trainer.fit_loop._data_source.dataloader()


def _fast_dev_run_batches(trainer: Trainer) -> int | None:
    return int(trainer.fast_dev_run) or None  # type: ignore[attr-defined]


def _overfit_batches(trainer: Trainer, loaders: Any) -> int | None:
    """The number of batches to overfit, over all processes; ``None`` if there is no such limit."""
    batches: int | float = trainer.overfit_batches  # type: ignore[attr-defined]
    if not batches:
        return None
    if isinstance(batches, int):
        return batches * trainer.world_size
    return int(batches * max(len(loader) for loader in flattened(loaders))) or None


def _with_progress(trainer: Trainer, shards: list[Iterable[Any]]) -> Iterable[Any]:
    """All batches of some loaders, with a progress bar where the Trainer shows one."""
    sized = [len(shard) for shard in shards if isinstance(shard, Sized)]
    total = sum(sized) if len(sized) == len(shards) else None
    hidden = trainer.progress_bar_callback is None or not trainer.is_global_zero
    batches = (batch for shard in shards for batch in shard)
    yield from tqdm(
        batches,
        "Fitting target scales",
        total,
        leave=False,
        disable=hidden,
        delay=SECONDS_WITHOUT_PROGRESS,
    )
