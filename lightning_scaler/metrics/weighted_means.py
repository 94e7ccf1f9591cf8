"""Several means with weights, which are updated together."""

from collections.abc import Sequence

import torch
from torchmetrics import Metric
from typing_extensions import override


class WeightedMeans(Metric):
    """Weighted means by name over all processes, in float64; see :class:`WeightedMean`.

    Args:
        names: names of the means, the same on every process.

    Attributes:
        found: names that have been updated since the last reset.

    Example:
        >>> means = WeightedMeans(["energy", "dipole"])
        >>> means.update(["dipole"], torch.tensor([1.0]), torch.tensor([3.0]))
        >>> means.update(["dipole"], torch.tensor([5.0]), torch.tensor([1.0]))
        >>> means.compute()["dipole"]
        tensor(2., dtype=torch.float64)
    """

    full_state_update = False
    totals: torch.Tensor
    weights: torch.Tensor

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.names = list(names)
        self.found: set[str] = set()
        for state in ("totals", "weights"):
            zeros = torch.zeros(len(self.names), dtype=torch.float64)
            self.add_state(state, zeros, dist_reduce_fx="sum")

    @override
    def update(self, names: Sequence[str], values: torch.Tensor, weights: torch.Tensor) -> None:
        """Add one value to some of the means.

        Args:
            names: names of the means; those without a place here are left out.
            values: value for each, ``(n_names,)``.
            weights: weight of each value, ``(n_names,)``.
        """
        self.found.update(names)
        terms = torch.stack([weights * values.detach().double(), weights])
        if names != self.names:
            columns = dict(zip(names, terms.unbind(1), strict=True))
            nothing = self.totals.new_zeros(2)  # a batch without targets has no device
            terms = torch.stack([columns.get(name, nothing) for name in self.names], 1)
        # Not in place: Lightning resets metrics in inference mode.
        self.totals, self.weights = self.totals + terms[0], self.weights + terms[1]

    @override
    def compute(self) -> dict[str, torch.Tensor]:
        """Return the mean of all values so far by name; NaN where the weights add up to zero."""
        return dict(zip(self.names, self.totals / self.weights, strict=True))

    @override
    def reset(self) -> None:
        """Forget all values."""
        super().reset()
        self.found.clear()
