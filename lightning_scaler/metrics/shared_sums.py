"""Sums by name, and the means of them that are logged."""

from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torchmetrics import MeanAbsoluteError, MeanSquaredError, Metric
from torchmetrics.wrappers.abstract import WrapperMetric
from typing_extensions import override

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


class SharedSums(Metric):
    """Rows of sums by name, in float64: one update and one reduction over processes for all.

    Args:
        names: names of the rows, the same on every process.
        n_columns: number of sums in a row.

    Attributes:
        found: names that the batches since the last reset have had.

    Example:
        >>> sums = SharedSums(["energy", "dipole"], 2)
        >>> sums.update(["dipole"], torch.tensor([[3.0, 2.0]]))
        >>> sums.compute()
        tensor([[0., 0.],
                [3., 2.]], dtype=torch.float64)
    """

    full_state_update = False
    sums: torch.Tensor

    def __init__(self, names: Sequence[Hashable], n_columns: int) -> None:
        super().__init__()
        self.names = list(names)
        self.found: set[Hashable] = set()
        zeros = torch.zeros((len(self.names), n_columns), dtype=torch.float64)
        self.add_state("sums", zeros, dist_reduce_fx="sum")

    @override
    def update(self, names: Sequence[Hashable], sums: torch.Tensor) -> None:
        """Add the sums of a batch.

        Args:
            names: names of the rows; those without a place here are left out.
            sums: sums under these names, ``(n_names, n_columns)``.
        """
        self.found.update(names)
        if names != self.names:
            rows = dict(zip(names, sums, strict=True))
            nothing = self.sums.new_zeros(self.sums.shape[1])  # an empty batch has no device
            sums = torch.stack([rows.get(name, nothing) for name in self.names])
        # Not in place: Lightning resets metrics in inference mode.
        self.sums = self.sums + sums

    @override
    def compute(self) -> torch.Tensor:
        """Return the sums over all batches, ``(n_names, n_columns)``."""
        return self.sums

    @override
    def reset(self) -> None:
        """Forget all batches."""
        super().reset()
        self.found.clear()


class SharedMetric(WrapperMetric):
    """One number of a metric, which is updated and reset for all those that share it.

    Args:
        metric: the metric.
    """

    def __init__(self, metric: Metric) -> None:
        super().__init__()
        self.metric = metric

    @property
    def device(self) -> torch.device:
        """The device of the shared metric, to which Lightning moves what is logged."""
        return self.metric.device

    @override
    def update(self, *args: Any, **kwargs: Any) -> None:
        """Update the shared metric."""
        self.metric.update(*args, **kwargs)

    @override
    def reset(self) -> None:
        """Reset the shared metric."""
        self.metric.reset()


class MeanOfSums(SharedMetric):
    """One column of some rows of :class:`SharedSums`, divided by the last column.

    torchmetrics' ``MeanMetric`` ignores either NaN values or the weights; this ignores neither.

    Args:
        sums: the sums, which are updated by themselves.
        names: names of the rows that are added up.
        column: column of the numerator.
        root: whether to take the square root.

    Example:
        >>> sums = SharedSums(["energy", "dipole"], 2)
        >>> mean = MeanOfSums(sums, ["dipole"])
        >>> sums.update(["dipole"], torch.tensor([[1.0 * 3, 3.0]]))
        >>> sums.update(["dipole"], torch.tensor([[5.0 * 1, 1.0]]))
        >>> mean.compute()
        tensor(2., dtype=torch.float64)
    """

    metric: SharedSums

    def __init__(
        self, sums: SharedSums, names: Sequence[Hashable], column: int = 0, root: bool = False
    ) -> None:
        super().__init__(sums)
        self.column, self.root = column, root
        self._names = frozenset(names)
        self._rows = [row for row, name in enumerate(sums.names) if name in self._names]

    @property
    def update_called(self) -> bool:
        """Whether a batch since the last reset has had one of the names."""
        return not self._names.isdisjoint(self.metric.found)

    @override
    def compute(self) -> torch.Tensor | None:
        """Return the mean over all batches; NaN if the last column is zero."""
        total = self.metric.compute()[self._rows].sum(0)
        mean = total[self.column] / total[-1]
        return mean.sqrt() if self.root else mean


class SummedError(MeanOfSums):
    """The MAE or (root) mean squared error of some parts of the targets.

    Args:
        sums: sums of absolute errors and squared errors, and numbers of values, of all parts.
        parts: parts of which this is the error.
        metric: metric of torchmetrics with this meaning; see :func:`is_summable`.
    """

    def __init__(self, sums: SharedSums, parts: Sequence[Hashable], metric: Metric) -> None:
        squares = isinstance(metric, MeanSquaredError)
        super().__init__(sums, parts, int(squares), squares and not metric.squared)

    @override
    def compute(self) -> torch.Tensor | None:
        """Return the error over all batches; ``None`` if all values are missing."""
        error = super().compute()
        number = self.metric.compute()[self._rows, -1].sum()
        return error if number else None


def is_summable(metric: Metric) -> bool:
    """Whether a metric is a plain MAE or mean squared error, which :class:`SummedError` can be."""
    if type(metric) not in (MeanAbsoluteError, MeanSquaredError):
        return False
    default = type(metric)()
    saved = bool(metric.state_dict())
    return not saved and all(getattr(metric, n) == getattr(default, n) for n in _SETTINGS)
