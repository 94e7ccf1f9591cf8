"""Metrics with all metrics inside them: their dependence on the baseline, and their states."""

from collections.abc import Iterator

import torch
from torchmetrics import (
    LogCoshError,
    MeanAbsoluteError,
    MeanSquaredError,
    Metric,
    MetricCollection,
    MinkowskiDistance,
    TweedieDevianceScore,
)

# Of torchmetrics' regression metrics these alone do not change if the same numbers are added to
# predictions and targets. The deviance with power 0 is a mean squared error.
FUNCTIONS_OF_DIFFERENCE = (LogCoshError, MeanAbsoluteError, MeanSquaredError, MinkowskiDistance)


def depends_on_baseline(metric: Metric | MetricCollection) -> str | None:
    """The name of a metric that is not a function of the difference, ``None`` if there is none.

    Adding the baseline to predictions and targets changes such a metric (R2, MAPE). The regression
    metrics of torchmetrics are known, and classes derived from them, also inside wrappers,
    collections and compositions. Any other metric has an attribute ``depends_on_baseline = True``.
    """
    names = (type(part).__name__ for part in parts_of(metric) if _is_known_to_depend(part))
    return next(names, None)


def parts_of(metric: Metric | MetricCollection) -> Iterator[Metric]:
    """The metric itself and all metrics inside it."""
    return (part for part in metric.modules() if isinstance(part, Metric))


def set_double_precision(metric: Metric | MetricCollection) -> None:
    """Make all states float64, those inside wrappers too, which torchmetrics leaves as they are."""
    for part in parts_of(metric):
        part.set_dtype(torch.float64)


def leave_inference_mode(metric: Metric | MetricCollection) -> None:
    """Make a metric writable outside of inference mode, under which Lightning resets it."""
    for part in parts_of(metric):
        for name, state in part.metric_state.items():
            if isinstance(state, torch.Tensor) and state.is_inference():
                setattr(part, name, state.clone())


def _is_known_to_depend(metric: Metric) -> bool:
    known = getattr(metric, "depends_on_baseline", None)
    if known is not None:
        return bool(known)
    if isinstance(metric, TweedieDevianceScore):
        return metric.power != 0
    modules = (cls.__module__ for cls in type(metric).__mro__)
    is_regression = any(module.startswith("torchmetrics.regression.") for module in modules)
    return is_regression and not isinstance(metric, FUNCTIONS_OF_DIFFERENCE)
