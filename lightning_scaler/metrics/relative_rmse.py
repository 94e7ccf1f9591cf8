"""The RMSE relative to the RMS of the targets."""

import torch
from torchmetrics import Metric
from typing_extensions import override


class RelativeRootMeanSquaredError(Metric):
    r"""The root mean square of the errors divided by that of the targets, dimensionless.

    .. math:: \sqrt{\sum_i (p_i - y_i)^2 / \sum_i y_i^2}

    The targets are not centred, and neither are the scales. In :class:`PhysicalUnits` the baseline
    is subtracted, so 0 is perfect and 1 is the error of the baseline alone. NaN if all targets
    are 0.

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
        """Add predictions and targets of the same shape.

        Raises:
            ValueError: for two shapes, which PyTorch might expand.
        """
        if preds.shape != target.shape:
            raise ValueError(
                "expected predictions and targets of the same shape, got "
                f"{tuple(preds.shape)} and {tuple(target.shape)}; flatten both"
            )
        self.squared_errors += (preds - target).square().sum()
        self.squared_targets += target.square().sum()

    @override
    def compute(self) -> torch.Tensor:
        """The relative error of all batches together."""
        return (self.squared_errors / self.squared_targets).sqrt()
