"""The fit of the scales that a module does not have, agreed on by all processes."""

import warnings
from dataclasses import replace
from typing import NamedTuple

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn

from ..batches import Batch
from ..data_pass import (
    DataSample,
    FitProcesses,
    LoaderRecord,
    PredictionErrors,
    StatisticsCache,
    TrainingData,
    fit_processes,
)
from ..fitting import RandomSample, ScaleAccumulator, describe_force_targets
from ..scaling import Scaler
from ..settings import Settings
from ..steps import ScaledModule, scaler_of
from ..tensors import digest
from .fit_decision import FitDecision, decide_fit, is_dev_run
from .fit_report import describe_changes
from .fit_settings import FitSettings
from .module_in_pass import ModuleInPass
from .output_layers import OutputLayers
from .restored_settings import store_loss_settings


class FitResult(NamedTuple):
    """The outcome of a fit.

    Attributes:
        fitted: names of the targets that were fitted, other than those kept in part.
        changes: what changed in scales that the module already had, in one line.
        sample: sample of the data for a report, if one was requested; empty if none were read.
        precision: what was read of the data, if a relative error was asked for.
    """

    fitted: set[str]
    changes: str | None
    sample: DataSample | None
    precision: RandomSample | None


def fit_missing(
    trainer: Trainer,
    module: ScaledModule,
    request: FitSettings,
    record: LoaderRecord,
) -> FitResult | None:
    """Fit the scales that a module does not have, the same on all processes.

    Args:
        trainer: trainer that is starting a fit.
        module: module whose scaler gets the scales.
        request: settings of the callback.
        record: record of the training loaders.

    Returns:
        What the fit did; ``None`` if all scales were kept.

    Raises:
        RuntimeError: on every process, if one fails or they disagree.
    """
    scaler = scaler_of(module)
    with fit_processes(trainer) as processes:
        keeps_some = scaler.fitted and request.refit is not True
        stored = scaler.settings if keeps_some else Settings()
        result = _fit(trainer, module, request, processes, record)
        store_loss_settings(scaler, request, stored)
        if processes.world_size > 1:
            processes.check_equal(
                {"hash of the scales": digest(scaler.state())},
                "give all processes the same checkpoint or Scaler, and the same versions of the "
                "packages",
            )
    return result


def _fit(
    trainer: Trainer,
    module: ScaledModule,
    request: FitSettings,
    processes: FitProcesses,
    record: LoaderRecord,
) -> FitResult | None:
    scaler = scaler_of(module)
    decision = decide_fit(request, scaler, is_dev_run(trainer))
    to_fit = decision.targets if decision.targets is not None else "all targets"
    processes.check_equal(
        {"targets to fit": to_fit if decision.fit_needed else "nothing", **request.by_setting()},
        "give all processes the same settings, and the same checkpoint or Scaler",
    )
    if not decision.fit_needed:
        return None
    before, provisional = dict(scaler.targets), scaler.settings.provisional
    layers = None
    if decision.part == "scales":
        layers = OutputLayers(module, request.output_layers)
    sample = None
    if request.report and not is_dev_run(trainer):
        has_module = request.additive is not None or scaler.additive is not None
        sample = DataSample(keep_systems=has_module)
    fitted, batch, precision = _fit_to_data(trainer, module, decision, processes, record, sample)
    if layers is not None:
        layers.absorb(trainer, fitted, batch)
    if not decision.keep_existing:
        scaler.targets = {}
    scaler.update(fitted)
    if request.refit is False or not before or provisional:
        return FitResult(set(fitted.targets), None, sample, precision)
    changes = describe_changes(before, scaler.targets, request)
    kept = before.keys() - request.output_layers if decision.part else set()
    return FitResult(fitted.targets.keys() - kept, changes, sample, precision)


def _fit_to_data(
    trainer: Trainer,
    module: ScaledModule,
    decision: FitDecision,
    processes: FitProcesses,
    record: LoaderRecord,
    sample: DataSample | None,
) -> tuple[Scaler, Batch | None, RandomSample | None]:
    """Read the training data and fit the scales that were decided on.

    Returns:
        A scaler with the targets of the decision, and of a part that is kept, the same on all
        processes; the first batch of this process, if it has one; and what was read, if a
        relative error was asked for.
    """
    request, part, scaler = decision.request, decision.part, scaler_of(module)
    fixed_scales, first_batch, errors = decision.fixed_scales(), None, None
    accumulator = decision.accumulator(scaler, module.device)
    predicts_errors = part == "baseline" and request.against == "predictions"
    in_pass = ModuleInPass(trainer, module, predicts=predicts_errors or part == "scales")
    if predicts_errors:
        empty = decision.errors_accumulator(scaler)
        errors = PredictionErrors(scaler, in_pass.predict, empty)
    data = TrainingData(trainer, in_pass.unpack, processes, record, request.limit_batches)
    with in_pass.scaler_in_use():
        if fixed_scales and decision.targets is not None and part is None:
            # One batch shows the layouts, and no more is needed if all scales and baselines are
            # fixed.
            accumulator, first_batch = data.read_layouts(accumulator)
        no_pass = part is None and accumulator.all_fixed(fixed_scales)
        cache = _usable_cache(trainer, decision, processes, no_pass)
        if not no_pass:
            accumulator = accumulator.fresh()
            found = None if cache is None else data.identify(accumulator, scaler.declaration)
            if cache is None or not cache.fill(accumulator, found, request.relative_error):
                accumulator, first_batch = data.read(
                    accumulator,
                    relative_error=request.relative_error,
                    errors=errors,
                    sample=sample,
                )
                if cache is not None:
                    cache.save(accumulator, found)
            if sample is not None:
                sample.statistics = accumulator.statistics
    data.restart()
    collected = None if errors is None else errors.accumulator
    fitted = _compute(trainer, accumulator, decision, scaler, collected, complete=not no_pass)
    if no_pass:  # one batch says nothing about the mean squares
        fitted.targets = {n: replace(s, mean_squares={}) for n, s in fitted.targets.items()}
    return fitted, first_batch, accumulator.sample


def _usable_cache(
    trainer: Trainer, decision: FitDecision, processes: FitProcesses, no_pass: bool
) -> StatisticsCache | None:
    """The cache that a fit uses, if it has one that serves; a line says why one is not used."""
    if not decision.request.cache:
        return None
    cache = StatisticsCache(decision.request.cache, processes)
    if no_pass:
        cache.report_unused("all scales are fixed")
    elif is_dev_run(trainer):
        cache.report_unused("fast_dev_run")
    elif decision.keep_existing:
        cache.report_unused("other scales are kept")
    else:
        return cache
    return None


def _compute(
    trainer: Trainer,
    accumulator: ScaleAccumulator,
    decision: FitDecision,
    scaler: Scaler,
    errors: ScaleAccumulator | None,
    complete: bool,
) -> Scaler:
    """The scales from the statistics; ``scaler`` has those before.

    ``complete`` says whether more than one batch was read.
    """
    request, dev_run = decision.request, is_dev_run(trainer)
    complete = complete and not dev_run
    fixed_scales, unseen_types = decision.fixed_scales(), request.settings.unseen_types
    # Parameters have absorbed new scales for good.
    provisional = dev_run and decision.part != "scales"
    if provisional:
        unseen_types = "pooled"
        rank_zero_warn(
            "fast_dev_run: the target scales are fitted to a few batches, and atomic types that do "
            "not occur in them use the RMS over all types and no baseline"
        )
    with warnings.catch_warnings():
        # A few batches give false alarms, of targets that a baseline explains or without values.
        if dev_run or not trainer.is_global_zero:
            warnings.simplefilter("ignore")
        if decision.part is None:
            enabled = request.settings.enabled
            fitted = accumulator.compute(fixed_scales, unseen_types, enabled, complete)
        else:
            fitted = accumulator.refit(
                scaler,
                decision.part,
                fixed_scales,
                unseen_types,
                complete,
                request.output_layers,
                errors=errors,
            )
        about_forces = describe_force_targets(fitted.layouts)
        if about_forces is not None:
            warnings.warn(about_forces, stacklevel=2)
    fitted.settings = replace(fitted.settings, provisional=provisional)
    return fitted
