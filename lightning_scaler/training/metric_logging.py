"""The metrics that the mixin logs for each target."""

import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule
from metatensor.torch import TensorMap
from torchmetrics import Metric, MetricCollection

from ..batches import Atoms
from ..metrics import (
    ErrorSums,
    PhysicalUnits,
    SummedError,
    WeightedMean,
    WeightedMeans,
    depends_on_baseline,
    is_summable,
    leave_inference_mode,
    parts_of,
    select_values,
    set_double_precision,
)
from ..scaling import (
    PhysicalValues,
    Scaler,
    add_baseline,
    errors_in_physical_units,
    parts_of_targets,
    term_name,
    values_in_physical_units,
)
from .epoch_log import EpochLog
from .loss import LossTerms
from .metric_outputs import MetricOutput, split_outputs, updated_metrics
from .metric_scopes import MetricScope, metric_scopes


def copy_metrics(metrics: MetricCollection) -> torch.nn.ModuleDict:
    """Independent float64 copies of metrics, for one scope.

    Copies do not share states, because Lightning logs and resets each metric by itself.

    Raises:
        TypeError: for anything but a ``MetricCollection``, and for :class:`PhysicalUnits` in it.
    """
    if not isinstance(metrics, MetricCollection):
        raise TypeError(
            "configure_metrics: expected a torchmetrics MetricCollection (its names are logged), "
            f"got {type(metrics).__name__}; write MetricCollection({{'mae': MeanAbsoluteError()}})"
        )
    for name, metric in metrics.items():
        if any(isinstance(part, PhysicalUnits) for part in parts_of(metric)):
            raise TypeError(
                "configure_metrics: expected metrics of two tensors, got PhysicalUnits as "
                f"'{name}'; metrics see predictions and targets in physical units already, so give "
                "the metric inside it"
            )
    copies = {name: metric.clone() for name, metric in metrics.items()}
    for metric in copies.values():
        set_double_precision(metric)
    # The originals may belong to a module in evaluation mode.
    return torch.nn.ModuleDict(copies).train()


class LoggedMetrics(torch.nn.ModuleDict):
    """The metrics of a module by stage, loader and scope, each created when it is first needed.

    Args:
        attribute: name of the attribute under which the module holds this one.
    """

    def __init__(self, attribute: str) -> None:
        super().__init__()
        self._attribute = attribute
        self._of_sanity_check: set[str] = set()
        self._run: weakref.ref[Any] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_run": None}

    def log_targets(
        self,
        module: LightningModule,
        stage: str,
        dataloader_idx: int,
        atoms: Atoms,
        predictions: Mapping[str, TensorMap],
        targets: Mapping[str, TensorMap],
        per_block: Sequence[str],
    ) -> None:
        """Update the metrics of all targets with a batch, and log them.

        The MAE and RMSE of all targets share their sums. Metrics that are not a function of the
        difference see the values with the baseline. Those that return a dict are logged under its
        keys.

        Args:
            module: module that logs and configures the metrics, with its scaler.
            stage: ``"train"``, ``"val"`` or ``"test"``.
            dataloader_idx: index of the loader.
            atoms: atoms of the batch.
            predictions: predictions in loss space, in the rows of the targets.
            targets: targets in loss space.
            per_block: names of the targets with additional metrics for every block.
        """
        self._forget_other_runs(module)
        scaler: Scaler = cast(Any, module).scaler
        sums = self._error_sums(module, stage, dataloader_idx)
        scopes = [
            (name, scope, *self._metrics_of(module, stage, dataloader_idx, name, scope, sums))
            for name, scales in scaler.targets.items()
            for scope in metric_scopes(scales.layout, scales.extensive, per_block)
        ]
        if any(isinstance(m, SummedError) for *_, metrics in scopes for m in metrics.values()):
            sums.update(*errors_in_physical_units(scaler, atoms, predictions, targets))

        @cache
        def values() -> Mapping[str, list[PhysicalValues]]:
            return values_in_physical_units(scaler, atoms, predictions, targets)

        @cache
        def with_baseline(name: str) -> list[PhysicalValues]:
            return add_baseline(scaler, atoms, name, values()[name], targets)

        log = EpochLog(module, self._attribute)
        for name, scope, key, metrics in scopes:
            others = [m for m in metrics.values() if not isinstance(m, SummedError)]
            updated = False
            if others and name in values():
                updated = _update(others, scope, values()[name], partial(with_baseline, name))
            for metric_name, metric in metrics.items():
                # Processes reduce their metrics together, so all of them log the same ones, even if
                # their batches have different targets. Wrappers never set their own update_called.
                if updated or log.several_processes or metric.update_called:
                    logged_name = f"{stage}/{scope.logged_name(metric_name)}"
                    log(logged_name, metric, f"{key}.{metric_name}")

    def _forget_other_runs(self, module: LightningModule) -> None:
        """Reset the sums of a run that was interrupted before Lightning could do so."""
        strategy = module.trainer.strategy
        if self._run is None or self._run() is not strategy:
            self._run = weakref.ref(strategy)
            for metric in self.values():
                if isinstance(metric, (ErrorSums, WeightedMean, WeightedMeans)):
                    metric.reset()

    def _error_sums(self, module: LightningModule, stage: str, dataloader_idx: int) -> ErrorSums:
        """The sums that all MAE and RMSE of a stage and a loader share."""
        # No scope has such a key, which ends with its path.
        key = f"{stage}/{dataloader_idx}"
        parts = parts_of_targets(cast(Any, module).scaler)
        if key not in self or cast(ErrorSums, self[key]).parts != parts:
            for old in [old for old in self if old.startswith(f"{key}/")]:
                del self[old]
            self[key] = ErrorSums(parts).to(module.device)
        return cast(ErrorSums, self[key])

    def _metrics_of(
        self,
        module: LightningModule,
        stage: str,
        dataloader_idx: int,
        target: str,
        scope: MetricScope,
        sums: ErrorSums,
    ) -> tuple[str, Mapping[str, Metric]]:
        """The metrics of one scope of a target by name, and their key."""
        key = f"{stage}/{dataloader_idx}/{scope.path}".replace(".", "_")
        # Metrics that remember values over epochs must not remember those of the sanity check.
        in_sanity_check = bool(module.trainer.sanity_checking)
        if key not in self or (key in self._of_sanity_check and not in_sanity_check):
            copies = split_outputs(copy_metrics(cast(Any, module).configure_metrics()))
            layout = cast(Any, module).scaler.targets[target].layout
            parts = [part for part in sums.parts if scope.contains(part, layout)]
            for name, metric in copies.items():
                if is_summable(cast(Metric, metric)):
                    copies[name] = SummedError(sums, parts, cast(Metric, metric))
            self[key] = copies.to(module.device)
            (self._of_sanity_check.add if in_sanity_check else self._of_sanity_check.discard)(key)
        return key, cast(Mapping[str, Metric], self[key])

    def log_loss(
        self,
        module: LightningModule,
        stage: str,
        dataloader_idx: int,
        loss: torch.Tensor,
        n_systems: int,
    ) -> None:
        """Log the mean loss over batches, weighted by their number of systems.

        Args:
            module: module that logs the loss.
            stage: ``"train"``, ``"val"`` or ``"test"``.
            dataloader_idx: index of the loader.
            loss: scalar loss of the batch.
            n_systems: number of systems in the batch, without padding.
        """
        self._forget_other_runs(module)
        # Lightning's own mean rounds the number of systems per process to an integer.
        key = f"{stage}_loss/{dataloader_idx}"
        if key not in self:
            self[key] = WeightedMean().to(module.device)
        metric = cast(WeightedMean, self[key])
        metric.update(loss, n_systems)
        EpochLog(module, self._attribute)(f"{stage}/loss", metric, key, prog_bar=True)

    def log_loss_terms(
        self,
        module: LightningModule,
        stage: str,
        dataloader_idx: int,
        terms: LossTerms,
        n_systems: int,
    ) -> None:
        """Log the mean of each term of the loss over those batches that have it.

        Args:
            module: module that logs the terms, with its scaler.
            stage: ``"train"``, ``"val"`` or ``"test"``.
            dataloader_idx: index of the loader.
            terms: terms of the batch.
            n_systems: number of systems in the batch, without padding.
        """
        scaler: Scaler = cast(Any, module).scaler
        paths = {
            term_name(name, scope.gradient or ""): scope.path
            for name, scales in scaler.targets.items()
            for scope in metric_scopes(scales.layout, scales.extensive, ())
        }
        # No target has such keys: theirs begin with the stage alone.
        keys = {
            term: f"{stage}_loss/{dataloader_idx}/{path}".replace(".", "_")
            for term, path in paths.items()
        }
        shared = f"{stage}_loss_terms/{dataloader_idx}"
        if shared not in self or cast(WeightedMeans, self[shared]).names != list(paths):
            self[shared] = WeightedMeans(list(paths)).to(module.device)
            for term, key in keys.items():
                self[key] = MetricOutput(cast(Metric, self[shared]), term)
        means = cast(WeightedMeans, self[shared])
        means.update(terms.names, terms.errors, n_systems * terms.present)
        log = EpochLog(module, self._attribute)
        for term, path in paths.items():
            # As with other metrics: processes reduce them together.
            if term in means.found or log.several_processes:
                log(f"{stage}/loss/{path}", cast(Metric, self[keys[term]]), keys[term])


def _update(
    metrics: Sequence[Metric],
    scope: MetricScope,
    values: Sequence[PhysicalValues],
    values_with_baseline: Callable[[], Sequence[PhysicalValues]],
) -> bool:
    """Update metrics with the values of one scope; whether the batch has any."""
    selected = select_values(values, scope.gradient, scope.block)
    if selected is None:
        return False
    for metric in updated_metrics(metrics):
        leave_inference_mode([metric])
        if depends_on_baseline(metric):
            with_baseline = values_with_baseline()
            metric.update(*select_values(with_baseline, scope.gradient, scope.block) or ())
        else:
            metric.update(*selected)
    return True
