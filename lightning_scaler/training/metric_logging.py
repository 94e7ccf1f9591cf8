"""The metrics that the mixin logs for each target."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule
from metatensor.torch import TensorMap
from torchmetrics import Metric, MetricCollection

from ..batches import Atoms
from ..metrics import (
    PhysicalUnits,
    WeightedMean,
    depends_on_baseline,
    leave_inference_mode,
    parts_of,
    select_values,
    set_double_precision,
)
from ..scaling import (
    PhysicalValues,
    Scaler,
    add_baseline,
    term_name,
    values_in_physical_units,
)
from .loss import LossTerms
from .metric_outputs import split_outputs, updated_metrics
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

        Args:
            module: module that logs and configures the metrics, with its scaler.
            stage: ``"train"``, ``"val"`` or ``"test"``.
            dataloader_idx: index of the loader.
            atoms: atoms of the batch.
            predictions: predictions in loss space, in the rows of the targets.
            targets: targets in loss space.
            per_block: names of the targets with additional metrics for every block.
        """
        scaler: Scaler = cast(Any, module).scaler
        values = values_in_physical_units(scaler, atoms, predictions, targets)

        @cache
        def with_baseline(name: str) -> list[PhysicalValues]:
            return add_baseline(scaler, atoms, name, values[name], targets)

        for name, scales in scaler.targets.items():
            for scope in metric_scopes(scales.layout, scales.extensive, per_block):
                self._log_scope(
                    module,
                    stage,
                    dataloader_idx,
                    scope,
                    values.get(name, []),
                    partial(with_baseline, name),
                )

    def _log_scope(
        self,
        module: LightningModule,
        stage: str,
        dataloader_idx: int,
        scope: MetricScope,
        values: Sequence[PhysicalValues],
        values_with_baseline: Callable[[], Sequence[PhysicalValues]],
    ) -> None:
        """Update the metrics of one scope of a target with a batch, and log them.

        Metrics that are not a function of the difference see the values with the baseline. Those
        that return a dict are logged under its keys.

        Args:
            module: module that logs and configures the metrics.
            stage: ``"train"``, ``"val"`` or ``"test"``.
            dataloader_idx: index of the loader.
            scope: values that the metrics see.
            values: predictions and targets in physical units, block by block; empty if the
                batch does not have the target.
            values_with_baseline: returns the same with the baseline added back.
        """
        key = f"{stage}/{dataloader_idx}/{scope.path}".replace(".", "_")
        # Metrics that remember values over epochs must not remember those of the sanity check.
        in_sanity_check = bool(module.trainer.sanity_checking)
        if key not in self or (key in self._of_sanity_check and not in_sanity_check):
            copies = copy_metrics(cast(Any, module).configure_metrics())
            self[key] = split_outputs(copies).to(module.device)
            (self._of_sanity_check.add if in_sanity_check else self._of_sanity_check.discard)(key)
        metrics = cast(Mapping[str, Metric], self[key])
        selected = select_values(values, scope.gradient, scope.block)
        if selected is not None:
            for metric in updated_metrics(metrics.values()):
                leave_inference_mode([metric])
                if depends_on_baseline(metric):
                    with_baseline = values_with_baseline()
                    metric.update(*select_values(with_baseline, scope.gradient, scope.block) or ())
                else:
                    metric.update(*selected)
        for name, metric in metrics.items():
            # Processes reduce their metrics together, so all of them log the same ones, even if
            # their batches have different targets. Wrappers never set their own update_called.
            updated = selected is not None or metric.update_called
            if updated or module.trainer.world_size > 1:
                module.log(
                    f"{stage}/{scope.logged_name(name)}",
                    metric,
                    on_step=False,
                    on_epoch=True,
                    metric_attribute=f"{self._attribute}.{key}.{name}",
                )

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
        options: dict[str, Any] = {"on_step": False, "on_epoch": True, "prog_bar": True}
        if stage == "train":
            module.log(f"{stage}/loss", loss, sync_dist=True, batch_size=n_systems, **options)
            return
        # Lightning's own mean rounds the number of systems per process to an integer.
        key = f"{stage}_loss/{dataloader_idx}"
        metric = self._weighted_mean(module, key)
        metric.update(loss, n_systems)
        attribute = f"{self._attribute}.{key}"
        module.log(f"{stage}/loss", metric, metric_attribute=attribute, **options)

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
        for name, scales in cast(Any, module).scaler.targets.items():
            for scope in metric_scopes(scales.layout, scales.extensive, ()):
                # No target has such a key: theirs begin with the stage alone.
                key = f"{stage}_loss/{dataloader_idx}/{scope.path}".replace(".", "_")
                metric = self._weighted_mean(module, key)
                term = term_name(name, scope.gradient or "")
                if term in terms.errors:
                    metric.update(terms.errors[term], n_systems * terms.present[term])
                # As with other metrics: processes reduce them together.
                if metric.update_called or module.trainer.world_size > 1:
                    module.log(
                        f"{stage}/loss/{scope.path}",
                        metric,
                        on_step=False,
                        on_epoch=True,
                        metric_attribute=f"{self._attribute}.{key}",
                    )

    def _weighted_mean(self, module: LightningModule, key: str) -> WeightedMean:
        """The mean under a key, ready to be updated."""
        if key not in self:
            self[key] = WeightedMean().to(module.device)
        metric = cast(WeightedMean, self[key])
        leave_inference_mode([metric])
        return metric
