"""A mean error that is computed from sums which several metrics share."""

from collections.abc import Sequence
from typing import Any

import torch
from torchmetrics import MeanAbsoluteError, MeanSquaredError, Metric
from torchmetrics.wrappers.abstract import WrapperMetric
from typing_extensions import override

from ..scaling import TargetPart
from .error_sums import ErrorSums

# Whatever of these is set to another value is left to torchmetrics.
_SETTINGS = (
    "num_outputs",
    "compute_on_cpu",
    "dist_sync_on_step",
    "process_group",
    "dist_sync_fn",
    "distributed_available_fn",
    "sync_on_compute",
    "compute_with_cache",
)


class SummedError(WrapperMetric):
    """The MAE or (root) mean squared error of some parts of the targets.

    Args:
        sums: sums of all parts, which are updated by themselves.
        parts: parts of which this is the error.
        metric: metric of torchmetrics with this meaning; see :func:`is_summable`.
    """

    def __init__(self, sums: ErrorSums, parts: Sequence[TargetPart], metric: Metric) -> None:
        super().__init__()
        self.metric = sums
        self.squares = isinstance(metric, MeanSquaredError)
        self.root = isinstance(metric, MeanSquaredError) and not metric.squared
        self._parts = frozenset(parts)
        self._rows = [row for row, part in enumerate(sums.parts) if part in self._parts]

    @property
    def update_called(self) -> bool:
        """Whether a batch since the last reset has had one of the parts."""
        return not self._parts.isdisjoint(self.metric.found)

    @override
    def update(self, *args: Any, **kwargs: Any) -> None:
        """Update the shared sums."""
        self.metric.update(*args, **kwargs)

    @override
    def compute(self) -> torch.Tensor | None:
        """Return the error over all batches; ``None`` if all values are missing."""
        absolute, squared, number = self.metric.compute()[self._rows].sum(0)
        if number == 0:
            return None
        error: torch.Tensor = (squared if self.squares else absolute) / number
        return error.sqrt() if self.root else error

    @override
    def reset(self) -> None:
        """Reset the shared sums."""
        self.metric.reset()


def is_summable(metric: Metric) -> bool:
    """Whether a metric is a plain MAE or mean squared error, which :class:`SummedError` can be."""
    if type(metric) not in (MeanAbsoluteError, MeanSquaredError):
        return False
    default = type(metric)()
    saved = bool(metric.state_dict())
    return not saved and all(getattr(metric, n) == getattr(default, n) for n in _SETTINGS)
