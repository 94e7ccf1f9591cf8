"""The metrics that the mixin logs of each target, and under what names."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from lightning.pytorch import LightningModule
from torchmetrics import Metric, MetricCollection
from typing_extensions import override

from ..metrics import PhysicalPair, entries_of, leave_inference_mode
from ..tensors import TargetLayout


class Part(NamedTuple):
    """What a metric looks at: all values of a target, one of its gradients, or one block."""

    path: str
    gradient: str | None = None
    block: dict[str, int] | None = None
    per_atom: bool = False

    def name(self, metric: str) -> str:
        """The logged name behind the stage: ``"energy/rmse_per_atom"``."""
        return f"{self.path}/{metric}" + ("_per_atom" if self.per_atom else "")


def parts_of_target(layout: TargetLayout, extensive: bool, per_block: Sequence[str]) -> list[Part]:
    """All that is logged of one target, the same on every process.

    Args:
        layout: of the target, as it was fitted.
        extensive: whether it is compared per atom.
        per_block: names of the targets that are told for every block too.
    """
    name = layout.name
    parts = [Part(name, per_atom=extensive)]
    for parameter in layout.gradients:
        per_atom = extensive and parameter != "positions"
        parts.append(Part(f"{name}/{parameter}", gradient=parameter, per_atom=per_atom))
    if name in per_block:
        for key in layout.blocks:
            named = dict(zip(layout.key_names, key, strict=True))
            # The names of a key that say something; a proper sigma is the rule.
            words = [f"{n}_{v}" for n, v in named.items() if (n, v) != ("o3_sigma", 1)]
            path = f"{name}/{'_'.join(words)}"
            parts.append(Part(path, block=named, per_atom=extensive))
    return parts


def metrics_of_part(metrics: MetricCollection) -> torch.nn.ModuleDict:
    """The metrics anew, for one part of one target, in float64.

    Their states are their own: Lightning logs and resets each metric by itself.

    Raises:
        TypeError: for anything but a ``MetricCollection``.
    """
    if not isinstance(metrics, MetricCollection):
        raise TypeError(
            "configure_metrics: expected a torchmetrics MetricCollection (its names are those that "
            f"are logged), got {type(metrics).__name__}"
        )
    own = {name: metric.clone().set_dtype(torch.float64) for name, metric in metrics.items()}
    # Those given may be part of a module in evaluation mode.
    return torch.nn.ModuleDict(own).train()


class WeightedMean(Metric):
    """A mean with weights over all processes, in float64.

    Instead of torchmetrics' ``MeanMetric``, which leaves out NaN, or else the weights.

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
    def update(self, value: torch.Tensor, weight: float) -> None:
        """Take in a scalar."""
        self.total = self.total + weight * value.detach().double()
        self.weight = self.weight + weight

    @override
    def compute(self) -> torch.Tensor:
        """The mean so far; NaN without any weight."""
        return self.total / self.weight


class LoggedMetrics(torch.nn.ModuleDict):
    """The metrics of a module, by stage, loader and part of a target; made when first needed.

    Args:
        attribute: of the module that holds this one.
    """

    def __init__(self, attribute: str) -> None:
        super().__init__()
        self._attribute = attribute

    def log_part(
        self,
        module: LightningModule,
        stage: str,
        dataloader_idx: int,
        part: Part,
        pairs: Sequence[PhysicalPair],
        batch_size: int,
    ) -> None:
        """Take a batch into the metrics of one part of a target, and log them."""
        key = f"{stage}/{dataloader_idx}/{part.path}".replace(".", "_")
        if key not in self:
            self[key] = metrics_of_part(cast(Any, module).configure_metrics()).to(module.device)
        metrics = cast(Mapping[str, Metric], self[key])
        entries = entries_of(pairs, part.gradient, part.block)
        if entries is not None:
            leave_inference_mode(metrics.values())
            for metric in metrics.values():
                metric.update(*entries)
        for name, metric in metrics.items():
            # Processes reduce their metrics together, so all log the same ones, whatever targets
            # their batches have. Wrappers of torchmetrics do not know whether they were updated.
            updated = entries is not None or metric.update_called
            if updated or module.trainer.world_size > 1:
                module.log(
                    f"{stage}/{part.name(name)}",
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
        """Log the mean over batches, each weighted by its systems."""
        options: dict[str, Any] = {"on_step": False, "on_epoch": True, "prog_bar": True}
        if stage == "train":
            module.log(f"{stage}/loss", loss, sync_dist=True, batch_size=n_systems, **options)
            return
        # Lightning's own mean rounds the number of systems of a process to an integer.
        key = f"{stage}/{dataloader_idx}"
        if key not in self:
            self[key] = WeightedMean().to(module.device)
        metric = cast(WeightedMean, self[key])
        leave_inference_mode([metric])
        metric.update(loss, n_systems)
        attribute = f"{self._attribute}.{key}"
        module.log(f"{stage}/loss", metric, metric_attribute=attribute, **options)
