"""The single pass over the training data inside a Trainer, shared by all processes."""

import warnings
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn
from tqdm.auto import tqdm

from ..batches import Batch
from ..data_pass import (
    DataSample,
    FitProcesses,
    Limits,
    LoaderRecord,
    ProcessesDisagreeError,
    SampledPass,
    StatisticsCache,
    Stream,
    TrainingLoader,
    identify_data,
    length,
    merge_all,
    pass_loaders,
    preserve_rng,
    training_batches,
)
from ..fitting import RandomSample, ScaleAccumulator, describe_force_targets
from ..scaling import Scaler
from .batch_hooks import BatchHooks, scaler_in_use
from .fit_decision import FitDecision
from .prediction_errors import PredictionErrors
from .scaled_module import ScaledModule, scaler_of

# A shorter pass shows no progress bar.
SECONDS_WITHOUT_PROGRESS = 3.0


def fit_scales(
    trainer: Trainer,
    module: ScaledModule,
    decision: FitDecision,
    processes: FitProcesses,
    record: LoaderRecord,
    sample: DataSample | None = None,
) -> tuple[Scaler, Batch | None, RandomSample | None]:
    """Read the training data and fit the scales that were decided on.

    Args:
        trainer: trainer that is starting a fit.
        module: module that unpacks the batches.
        decision: targets to fit, and the settings to use.
        processes: processes of the fit.
        record: record of the training loaders.
        sample: empty sample, which gets some of the data that are read.

    Returns:
        A scaler with the targets of the decision, and of a part that is kept, the same on all
        processes; the first batch of this process, if it has one; and what was read, if a
        relative error was asked for.
    """
    request, settings = decision.request, decision.request.settings
    fixed_scales = decision.fixed_scales()
    accumulator = decision.accumulator(scaler_of(module), module.device)
    loader = TrainingLoader(trainer, processes, record)
    if fixed_scales and decision.targets is not None and decision.part is None:
        # One batch shows the layouts, and no more is needed if all scales and baselines are fixed.
        first_batch = read_training_data(
            trainer, module, accumulator, processes, loader, limit_batches=1
        )
    no_pass = decision.part is None and accumulator.all_fixed(fixed_scales)
    if no_pass and request.cache is not None:
        StatisticsCache(request.cache, processes).report_unused("all scales are fixed")
    errors = None
    if not no_pass:
        accumulator = accumulator.fresh()
        if request.against == "predictions" and decision.part == "baseline":
            errors = PredictionErrors(
                trainer, module, decision.errors_accumulator(scaler_of(module))
            )
        inputs = (trainer, module, accumulator, processes, loader, decision)
        first_batch = _fill(*inputs, errors, sample)
        if sample is not None:
            sample.statistics = accumulator.statistics
    loader.restart_streams()
    unseen_types = settings.unseen_types
    # Parameters have absorbed new scales for good.
    provisional = is_dev_run(trainer) and decision.part != "scales"
    if provisional:
        unseen_types = "pooled"
        rank_zero_warn(
            "fast_dev_run: the target scales are fitted to a few batches, and atomic types that do "
            "not occur in them use the RMS over all types and no baseline"
        )
    with warnings.catch_warnings():
        # A few batches give false alarms, of targets that a baseline explains or without values.
        if is_dev_run(trainer) or not trainer.is_global_zero:
            warnings.simplefilter("ignore")
        complete = not is_dev_run(trainer)
        if decision.part is None:
            scaler = accumulator.compute(fixed_scales, unseen_types, settings.enabled, complete)
        else:
            scaler = accumulator.refit(
                scaler_of(module),
                decision.part,
                fixed_scales,
                unseen_types,
                complete,
                request.output_layers,
                errors=None if errors is None else errors.accumulator,
            )
        about_forces = describe_force_targets(scaler.layouts)
        if about_forces is not None:
            warnings.warn(about_forces, stacklevel=2)
    scaler.settings = replace(scaler.settings, provisional=provisional)
    if no_pass:  # one batch says nothing about the mean squares
        scaler.targets = {n: replace(s, mean_squares={}) for n, s in scaler.targets.items()}
    return scaler, first_batch, accumulator.sample


def is_dev_run(trainer: Trainer) -> bool:
    """Whether the Trainer only tries a few batches, with ``fast_dev_run``."""
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]


def read_training_data(
    trainer: Trainer,
    module: ScaledModule,
    accumulator: ScaleAccumulator,
    processes: FitProcesses,
    loader: TrainingLoader,
    limit_batches: int | None = None,
    errors: PredictionErrors | None = None,
    shard: tuple[int, int] = (0, 1),
    predicts: bool = False,
    sample: DataSample | None = None,
    relative_error: float | None = None,
) -> Batch | None:
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
        loader: loader of training.
        limit_batches: maximum number of batches of each loader, counted over all processes.
        errors: collects the errors of predictions too; afterwards it holds those of all processes.
        shard: index of the shard to read, from 0, and the number of shards.
        predicts: whether the module predicts for a batch, now or afterwards.
        sample: sample of the batches, if there is to be one.
        relative_error: read batches in random order until the standard error of every scale,
            relative to it, is below this; see :class:`SampledPass`. ``None``: read all. It has no
            effect beside ``overfit_batches`` and ``fast_dev_run``, and does not go with ``errors``.

    Returns:
        The first batch that this process has read.

    Raises:
        RuntimeError: on every process, if one of them fails or the layouts of targets differ.
        ValueError: without any batch, or if none would be left for training; and if the samples
            cannot be read in random order.
    """
    single = processes.world_size == 1
    collected = [accumulator] if errors is None else [accumulator, errors.accumulator]
    local, *local_errors = collected if single else [each.fresh() for each in collected]
    if errors is not None:
        errors.accumulator = local_errors[0]
    limits = _limits(trainer, loader, limit_batches)._replace(shard=shard)
    if relative_error is not None and limits.first is None and limits.spread is None:
        limits = limits._replace(random_order=True)
    sampled: SampledPass | None = None
    first_batch: Batch | None = None
    n_batches, hooks = 0, BatchHooks(trainer, module, predicts)
    with preserve_rng(loader.flattened), torch.no_grad():
        loader.restore_states()
        loaders = pass_loaders(loader.combined, processes, limits, loader.injected)
        batches = _with_progress(trainer, training_batches(loaders), length(loaders))
        if relative_error is not None and limits.random_order:
            n_own = length(loaders) or 0
            sampled = SampledPass(accumulator, relative_error, processes, n_own, loaders.shared)
            batches = sampled.batches(batches)
        with scaler_in_use(module):
            for batch in batches:
                n_batches += 1
                unpacked = _unpack(module, hooks, batch)
                first_batch = first_batch or unpacked
                into = local if sampled is None else sampled.next_group()
                into.update(*unpacked, exact_labels=True)
                if errors is not None:
                    errors.update(unpacked, local.system_labels)
                if sample is not None:
                    sample.update(unpacked)
                processes.check_for_failure()
        for one in loaders.flattened:
            if isinstance(one, Stream):
                one.check_readable_again()
    if sampled is not None:
        n_batches = sampled.merge_into(accumulator)
    elif not single:
        n_batches = merge_all([local, *local_errors], n_batches, collected, processes)
    if errors is not None:
        errors.accumulator = collected[1]
    if not n_batches and shard[1] == 1:
        raise ProcessesDisagreeError(
            "fitting the target scales: the training loader gave no batch"
            f"{'' if single else ' on any process'}; check that train_dataloader() has data"
        )
    return first_batch


def identify_training_data(
    trainer: Trainer,
    module: ScaledModule,
    accumulator: ScaleAccumulator,
    processes: FitProcesses,
    loader: TrainingLoader,
    limit_batches: int | None = None,
) -> dict[str, str] | None:
    """What identifies the data that :func:`read_training_data` would read.

    All random states are restored afterwards.

    Args:
        trainer: trainer that is starting a fit.
        module: module that unpacks the batches.
        accumulator: empty accumulator.
        processes: processes of the fit.
        loader: loader of training.
        limit_batches: maximum number of batches of each loader, counted over all processes.

    Returns:
        Values by name; ``None`` for data that cannot be identified; see
        :func:`data_fingerprint.identify_data`.
    """
    hooks = BatchHooks(trainer, module)
    with preserve_rng(loader.flattened), torch.no_grad(), scaler_in_use(module):
        loader.restore_states()
        found = identify_data(
            loader,
            lambda batch: _unpack(module, hooks, batch),
            accumulator.targets,
            accumulator.additive is not None,
            processes,
            _limits(trainer, loader, limit_batches),
        )
    if found is None:
        return None
    found["system_labels"] = accumulator.system_labels
    declaration = scaler_of(module).declaration
    if declaration is not None:
        found["declared targets"] = repr(declaration.without_units.state())
    return found


def _fill(
    trainer: Trainer,
    module: ScaledModule,
    accumulator: ScaleAccumulator,
    processes: FitProcesses,
    loader: TrainingLoader,
    decision: FitDecision,
    errors: PredictionErrors | None,
    sample: DataSample | None,
) -> Batch | None:
    """Fill an empty accumulator from the cache, if it has these data, or from the data.

    Returns:
        The first batch that this process has read.
    """
    limit_batches, sampling = decision.request.limit_batches, decision.request.relative_error
    inputs = (trainer, module, accumulator, processes, loader, limit_batches)
    options: dict[str, Any] = {
        "predicts": errors is not None or decision.part == "scales",
        "sample": sample,
        "relative_error": sampling,
    }
    cache = decision.request.cache and StatisticsCache(decision.request.cache, processes)
    if not cache:
        return read_training_data(*inputs, errors, **options)
    if decision.keep_existing or decision.part is not None or is_dev_run(trainer):
        cache.report_unused("fast_dev_run" if is_dev_run(trainer) else "other scales are kept")
        return read_training_data(*inputs, errors, **options)
    data = identify_training_data(*inputs)
    if cache.fill(accumulator, data, sampling):
        return None
    first_batch = read_training_data(*inputs, **options)
    cache.save(accumulator, data)
    return first_batch


def _unpack(module: ScaledModule, hooks: BatchHooks, batch: Any) -> Batch:
    """Systems, targets and masks of a batch after the hooks, the TensorMaps on the CPU."""
    unpacked = module._read_batch(hooks(batch))
    return unpacked.with_tensors_on_cpu() if hooks.moves else unpacked


def _limits(trainer: Trainer, loader: TrainingLoader, limit_batches: int | None) -> Limits:
    dev_run_batches = int(trainer.fast_dev_run)  # type: ignore[attr-defined]
    if dev_run_batches:
        return Limits(spread=dev_run_batches)
    if trainer.overfit_batches:  # type: ignore[attr-defined]
        return Limits(first=int(loader.max_batches))
    if limit_batches is not None:
        return Limits(spread=limit_batches)
    usable = []
    limit_train_batches = trainer.limit_train_batches
    if isinstance(limit_train_batches, int) and limit_train_batches:
        usable.append(limit_train_batches)
    if trainer.max_steps != -1:
        usable.append(trainer.max_steps * trainer.accumulate_grad_batches)
    return Limits(largest=min(usable, default=None))


def _with_progress(trainer: Trainer, batches: Iterable[Any], total: int | None) -> Iterable[Any]:
    """The batches, with a progress bar where the Trainer shows one."""
    hidden = trainer.progress_bar_callback is None or not trainer.is_global_zero
    yield from tqdm(
        batches,
        "Fitting target scales",
        total,
        leave=False,
        disable=hidden,
        delay=SECONDS_WITHOUT_PROGRESS,
    )
