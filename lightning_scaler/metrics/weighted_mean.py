"""A mean with weights over all processes."""

import torch
from torchmetrics import Metric
from typing_extensions import override


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
