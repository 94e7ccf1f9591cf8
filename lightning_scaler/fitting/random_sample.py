"""How precise scales are that were fitted to a random sample of the data."""

from dataclasses import dataclass, field
from typing import Annotated

from torch import Tensor

from ..settings import list_or_count
from ..tensors import TensorCheck


@dataclass(frozen=True, eq=False)
class RandomSample:
    """A random sample of the batches of some data, and the standard errors of its scales.

    Attributes:
        relative_error: the standard error, relative to the scales, that was asked for.
        n_batches: number of batches that were read.
        n_all_batches: number of all batches; if as many were read, the scales are exact.
        largest: largest relative error of any scale that is not in ``rare``.
        rare: scales whose values are too rare in the data for the error that was asked for, in
            words with their own errors.
        errors: for each target the largest relative error of the scales of each atomic type,
            ``(n_types,)`` with one row unless the target is per-atom, NaN where it is unknown.
    """

    relative_error: float
    n_batches: int
    n_all_batches: int
    largest: float = 0.0
    rare: tuple[str, ...] = ()
    errors: Annotated[dict[str, Tensor], TensorCheck("n_types", allow_nan=True)] = field(
        default_factory=dict
    )

    @property
    def complete(self) -> bool:
        """Whether all data were read."""
        return self.n_batches >= self.n_all_batches

    @property
    def precise(self) -> bool:
        """Whether no more data are needed."""
        return self.complete or self.largest <= self.relative_error

    def serves(self, relative_error: float | None) -> bool:
        """Whether the sample has a relative error that is asked for; ``None``: all data."""
        return self.complete or (
            relative_error is not None and self.relative_error <= relative_error
        )

    def __str__(self) -> str:
        if self.complete:
            return (
                f"all {self.n_batches} batches were read, so that the scales have no error of "
                f"sampling (relative_error={self.relative_error:g})"
            )
        text = (
            f"{self.n_batches} of {self.n_all_batches} batches were read, in random order; the "
            f"standard error of the scales is at most {percentage(self.largest)} of each "
            f"(relative_error={self.relative_error:g})"
        )
        if not self.rare:
            return text
        return (
            f"{text}, except of those with too few values in the data: "
            f"{list_or_count(self.rare, 'scales')}; fixed_scales gives these, and without "
            "relative_error all data are read"
        )


def percentage(error: float) -> str:
    """A relative error in percent, ``"unknown"`` for NaN.

    Example:
        >>> percentage(0.0123)
        '1.2 %'
    """
    return "unknown" if error != error else f"{100.0 * error:.2g} %"
