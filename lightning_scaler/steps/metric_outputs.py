"""Copies of the metrics that a user configures, of which each logs one number."""

import warnings
from collections.abc import Iterable, Mapping
from typing import cast

import torch
from torchmetrics import Metric, MetricCollection
from typing_extensions import override

from ..metrics import PhysicalUnits, SharedMetric, parts_of, set_double_precision


class MetricOutput(SharedMetric):
    """One entry of the dict that a metric returns, which Lightning cannot log as a whole.

    Args:
        metric: metric that returns a dict.
        name: key of the entry.
    """

    def __init__(self, metric: Metric, name: str) -> None:
        super().__init__(metric)
        self.name = name

    @override
    def compute(self) -> torch.Tensor:
        """Return the entry."""
        return torch.as_tensor(self.metric.compute()[self.name])


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
    # A prefix may end with a dot, which torch does not allow in names of modules.
    copies = {name.replace(".", "_"): metric.clone() for name, metric in metrics.items()}
    for metric in copies.values():
        set_double_precision(metric)
    # The originals may belong to a module in evaluation mode.
    return torch.nn.ModuleDict(copies).train()


def split_outputs(metrics: torch.nn.ModuleDict) -> torch.nn.ModuleDict:
    """The same metrics by name, each that returns a dict replaced by one metric for every key."""
    split = torch.nn.ModuleDict()
    for name, metric in metrics.items():
        outputs = output_names(cast(Metric, metric))
        if outputs is None:
            split[name] = metric
        for output in outputs or ():
            split[f"{name}/{output}".replace(".", "_")] = MetricOutput(cast(Metric, metric), output)
    return split


def updated_metrics(metrics: Iterable[Metric]) -> list[Metric]:
    """The metrics to update, once each, of the result of :func:`split_outputs`."""
    found = [m.metric if isinstance(m, MetricOutput) else m for m in metrics]
    return list({id(metric): metric for metric in found}.values())


def output_names(metric: Metric) -> list[str] | None:
    """The keys of the scalars in the dict that a metric returns; ``None`` if it returns no dict.

    A copy of the metric computes a few values, the same on every process, which does not need data
    and leaves the state of the random number generator as it is.

    Args:
        metric: metric of two float64 tensors ``(n_values,)``.
    """
    if type(metric).__module__.startswith("torchmetrics.regression."):
        return None  # all of these return tensors, and most metrics are among them
    trial = metric.clone()
    for part in parts_of(trial):
        part.distributed_available_fn = lambda: False
    target = torch.linspace(1.0, 2.0, 16, dtype=torch.float64, device=metric.device)
    with (
        torch.random.fork_rng(devices=[]),
        torch.inference_mode(False),
        torch.no_grad(),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        trial.update(target.square() / target.mean(), target)
        outputs = trial.compute()
    if not isinstance(outputs, Mapping):
        return None
    return [name for name, value in outputs.items() if torch.as_tensor(value).numel() == 1]
