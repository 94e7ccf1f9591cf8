"""A relative error whose zero is the baseline."""

import torch
from torchmetrics import Metric
from typing_extensions import override


class RelativeRootMeanSquaredError(Metric):
    r"""The root mean square of the errors over that of the targets, dimensionless.

    .. math:: \sqrt{\sum_i (p_i - y_i)^2 / \sum_i y_i^2}

    Un-centred, as the scales are: inside :class:`PhysicalUnits` the baseline is off, so 1 is what
    the baseline alone gives, and 0 is perfect. NaN where all targets are 0.

    Example:
        >>> metric = RelativeRootMeanSquaredError()
        >>> metric(torch.tensor([3.0, 0.0]), torch.tensor([3.0, 4.0]))
        tensor(0.8000)
    """

    is_differentiable = True
    higher_is_better = False
    full_state_update = False
    squared_errors: torch.Tensor
    squared_targets: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("squared_errors", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("squared_targets", torch.tensor(0.0), dist_reduce_fx="sum")

    @override
    def update(self, preds: torch.Tensor, target: torch.Tensor) -> None:
        """Take in predictions and targets of one shape."""
        self.squared_errors += (preds - target).square().sum()
        self.squared_targets += target.square().sum()

    @override
    def compute(self) -> torch.Tensor:
        """The relative error over all batches."""
        return (self.squared_errors / self.squared_targets).sqrt()
