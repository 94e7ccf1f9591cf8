"""The fit of the scales that a module does not have, agreed on by all processes."""

from typing import NamedTuple

from lightning.pytorch import Trainer

from ..data_pass import DataSample, FitProcesses, LoaderRecord, fit_processes
from ..fitting import RandomSample
from ..tensors import digest
from .data_pass import fit_scales, is_dev_run
from .fit_decision import FitRequest, decide_fit
from .loss_settings import LossSettings
from .output_layers import OutputLayers
from .refit_report import describe_changes
from .scaled_module import ScaledModule, scaler_of


class FitResult(NamedTuple):
    """What a fit did.

    Attributes:
        fitted: names of the targets that were fitted, other than those kept in part.
        changes: what changed in scales that the module already had, in one line.
        sample: sample of the data for a report, if one was requested; empty if none were read.
        precision: what was read of the data, if a relative error was asked for.
    """

    fitted: set[str]
    changes: str | None
    sample: DataSample | None
    precision: RandomSample | None = None


def fit_missing(
    trainer: Trainer,
    module: ScaledModule,
    request: FitRequest,
    loss_settings: LossSettings,
    record: LoaderRecord,
) -> FitResult | None:
    """Fit the scales that a module does not have, the same on all processes.

    Args:
        trainer: trainer that is starting a fit.
        module: module whose scaler gets the scales.
        request: settings of the callback.
        loss_settings: settings of the loss, which are stored in the scaler.
        record: record of the training loaders.

    Returns:
        What the fit did; ``None`` if all scales were kept.

    Raises:
        RuntimeError: on every process, if one fails or they disagree.
    """
    scaler = scaler_of(module)
    with fit_processes(trainer) as processes:
        stored = None if request.refit is True or not scaler.fitted else scaler.settings
        fitted = _fit(trainer, module, request, processes, record)
        loss_settings.apply(scaler, stored)
        if processes.world_size > 1:
            processes.check_equal(
                {"hash of the scales": digest(scaler.state())},
                "give all processes the same checkpoint or Scaler, and the same versions of the "
                "packages",
            )
    return fitted


def _fit(
    trainer: Trainer,
    module: ScaledModule,
    request: FitRequest,
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
    fitted, batch, precision = fit_scales(trainer, module, decision, processes, record, sample)
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
