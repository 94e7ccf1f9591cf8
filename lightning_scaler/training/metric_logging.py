"""The metrics that the mixin logs for each target, and their names."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from lightning.pytorch import LightningModule
from torchmetrics import Metric, MetricCollection
from typing_extensions import override

from ..metrics import (
    PhysicalUnits,
    depends_on_baseline,
    leave_inference_mode,
    parts_of,
    select_values,
    set_double_precision,
)
from ..scaling import PhysicalValues
from ..tensors import TargetLayout
from .metric_outputs import split_outputs, updated_metrics


class MetricScope(NamedTuple):
    """The values that one metric sees: all values of a target, one of its gradients, or one block.

    Attributes:
        path: logged name without stage and metric, as in ``"energy"`` or ``"energy/positions"``.
        gradient: parameter of the gradient; ``None`` for values.
        block: key of the block by name; ``None`` for all blocks.
        per_atom: whether errors are divided by the number of atoms.
    """

    path: str
    gradient: str | None = None
    block: dict[str, int] | None = None
    per_atom: bool = False

    def logged_name(self, metric: str) -> str:
        """The logged name of a metric, without the stage: ``"energy/rmse_per_atom"``."""
        return f"{self.path}/{metric}" + ("_per_atom" if self.per_atom else "")


def metric_scopes(
    layout: TargetLayout, extensive: bool, per_block: Sequence[str]
) -> list[MetricScope]:
    """The scopes in which a target is logged, the same on every process.

    Args:
        layout: layout of the target in the fit.
        extensive: whether errors are per atom.
        per_block: names of the targets with additional metrics for every block.
    """
    name = logged_path(layout.name)
    scopes = [MetricScope(name, per_atom=extensive)]
    for parameter in layout.gradients:
        per_atom = extensive and parameter != "positions"
        scopes.append(MetricScope(f"{name}/{parameter}", gradient=parameter, per_atom=per_atom))
    if layout.name in per_block:
        for key in layout.blocks:
            block = dict(zip(layout.key_names, key, strict=True))
            # Nearly all blocks have o3_sigma=1, so names leave it out.
            words = [f"{n}_{v}" for n, v in block.items() if (n, v) != ("o3_sigma", 1)]
            path = f"{name}/{'_'.join(words)}"
            scopes.append(MetricScope(path, block=block, per_atom=extensive))
    return scopes


def logged_path(name: str) -> str:
    """The name of a target in logged names: ``"mtt/dipole"`` for ``"mtt::dipole"``.

    ``ModelCheckpoint`` cannot read colons and brackets in the fields of its ``filename``.
    """
    return re.sub(r"[\[\]{}]", "_", re.sub(r":+", "/", name))


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


class WeightedMean(Metric):
    """Weighted mean over all processes, in float64.

    torchmetrics' ``MeanMetric`` ignores either NaN values or the weights; this ignores neither.

    Example:
        >>> mean = WeightedMean()
        >>> mean.update(torch.tensor(1.0), 3)
        >>> mean.update(torch.tensor(5.0), 1)
        >>> mean.compute()
        tensor(2., dtype=torch.float64)
    """

    full_state_update = False
    total: torch.Tensor
    weight: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("total", "weight"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    @override
    def update(self, value: torch.Tensor, weight: float | torch.Tensor) -> None:
        """Add a scalar.

        Args:
            value: scalar tensor.
            weight: weight of the value, a number or a scalar tensor.
        """
        self.total = self.total + weight * value.detach().double()
        self.weight = self.weight + weight

    @override
    def compute(self) -> torch.Tensor:
        """Return the mean of all values so far; NaN if the weights add up to zero."""
        return self.total / self.weight


class LoggedMetrics(torch.nn.ModuleDict):
    """The metrics of a module by stage, loader and scope, each created when it is first needed.

    Args:
        attribute: name of the attribute under which the module holds this one.
    """

    def __init__(self, attribute: str) -> None:
        super().__init__()
        self._attribute = attribute
        self._of_sanity_check: set[str] = set()

    def log_scope(
        self,
        module: LightningModule,
        stage: str,
        dataloader_idx: int,
        scope: MetricScope,
        values: Sequence[PhysicalValues],
        values_with_baseline: Callable[[], Sequence[PhysicalValues]],
        batch_size: int,
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
            batch_size: number of systems in the batch.
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
                    batch_size=batch_size,
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
        key = f"{stage}/{dataloader_idx}"
        if key not in self:
            self[key] = WeightedMean().to(module.device)
        metric = cast(WeightedMean, self[key])
        leave_inference_mode([metric])
        metric.update(loss, n_systems)
        attribute = f"{self._attribute}.{key}"
        module.log(f"{stage}/loss", metric, metric_attribute=attribute, **options)

    def log_loss_term(
        self,
        module: LightningModule,
        stage: str,
        dataloader_idx: int,
        scope: MetricScope,
        found: tuple[torch.Tensor, torch.Tensor] | None,
    ) -> None:
        """Log the mean of one term of the loss over those batches that have it.

        Args:
            module: module that logs the term.
            stage: ``"train"``, ``"val"`` or ``"test"``.
            dataloader_idx: index of the loader.
            scope: values of a target, or one of its gradients.
            found: the term in the batch, and its weight; ``None`` if the batch does not have it.
        """
        key = f"{stage}/{dataloader_idx}/term/{scope.path}".replace(".", "_")
        if key not in self:
            self[key] = WeightedMean().to(module.device)
        metric = cast(WeightedMean, self[key])
        if found is not None:
            leave_inference_mode([metric])
            metric.update(*found)
        # As in log_scope: processes reduce their metrics together.
        if metric.update_called or module.trainer.world_size > 1:
            module.log(
                f"{stage}/loss/{scope.path}",
                metric,
                on_step=False,
                on_epoch=True,
                metric_attribute=f"{self._attribute}.{key}",
            )
