"""Sums over the errors of all targets, from which MAE and RMSE follow."""

from collections.abc import Sequence

import torch
from torchmetrics import Metric
from typing_extensions import override

from ..scaling import TargetPart


class ErrorSums(Metric):
    """Absolute errors, squared errors and numbers of values, summed for each part of the targets.

    One update serves the MAE and RMSE of all targets, and one reduction over processes.

    Args:
        parts: blocks and gradients of the targets, the same on every process.

    Attributes:
        found: parts that the batches since the last reset have had.

    Example:
        >>> sums = ErrorSums([TargetPart("energy", (0,)), TargetPart("dipole", (0,))])
        >>> sums.update([TargetPart("dipole", (0,))], torch.tensor([[3.0, 5.0, 2.0]]))
        >>> sums.compute()
        tensor([[0., 0., 0.],
                [3., 5., 2.]], dtype=torch.float64)
    """

    full_state_update = False
    sums: torch.Tensor

    def __init__(self, parts: Sequence[TargetPart]) -> None:
        super().__init__()
        self.parts = list(parts)
        self.found: set[TargetPart] = set()
        zeros = torch.zeros((len(self.parts), 3), dtype=torch.float64)
        self.add_state("sums", zeros, dist_reduce_fx="sum")

    @override
    def update(self, parts: Sequence[TargetPart], sums: torch.Tensor) -> None:
        """Add the sums of a batch.

        Args:
            parts: parts of the targets in the batch; those without a place here are left out.
            sums: sums of these parts, ``(n_parts, 3)``.
        """
        self.found.update(parts)
        if parts != self.parts:
            rows = dict(zip(parts, sums, strict=True))
            nothing = self.sums.new_zeros(3)  # a batch without targets has no device
            sums = torch.stack([rows.get(part, nothing) for part in self.parts])
        # Not in place: Lightning resets metrics in inference mode.
        self.sums = self.sums + sums

    @override
    def compute(self) -> torch.Tensor:
        """Return the sums over all batches, ``(n_parts, 3)``."""
        return self.sums

    @override
    def reset(self) -> None:
        """Forget all batches."""
        super().reset()
        self.found.clear()
