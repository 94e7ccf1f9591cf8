"""The statistics of a data pass: of all processes, and of no more data than the scales need."""

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, TypeVar

from ..fitting import RandomSample, ScaleAccumulator, estimate_sample, merged
from ..tensors import TargetLayout, flatten_state, unflatten_state
from .processes import FitProcesses, ProcessesDisagreeError

N_GROUPS = 20
FEWEST_BATCHES = 100
# The first estimates of an error are themselves uncertain.
SMALLEST_STEP, LARGEST_STEP = 1.1, 2.0

T = TypeVar("T")


class SampledPass:
    """Reads batches in random order until every scale has a relative error, or all are read.

    Batch i goes into accumulator i modulo 20, and the errors are those of the delete-a-group
    jackknife over these (see :func:`fitting.estimate_sample`). They are computed after 100 batches,
    and then after as many as the last ones predict, but at least a tenth more and at most twice as
    many. All processes compute the same errors from the same data, and stop together.

    Args:
        accumulator: empty accumulator.
        relative_error: largest standard error of the scales, relative to them.
        processes: processes of the fit.
        n_batches: number of batches of this process, if it reads all of them.
        shared: whether these are every n-th one of a list that n processes share.

    Attributes:
        sample: what was read, and the errors; ``None`` before the end of the pass.
    """

    def __init__(
        self,
        accumulator: ScaleAccumulator,
        relative_error: float,
        processes: FitProcesses,
        n_batches: int,
        shared: bool,
    ) -> None:
        self._relative_error = relative_error
        self._processes = processes
        self._own, self._all = n_batches, sum(processes.gather_objects(n_batches))
        # Processes with data of their own may have equal data, which then belong in one group.
        self._shared = shared or processes.world_size == 1
        self._groups = [accumulator.fresh() for _ in range(N_GROUPS)]
        self._merged = self._groups
        # What the first batches decide holds for all groups.
        self._group = accumulator
        self._n_read = 0
        self.sample: RandomSample | None = None

    def batches(self, loaded: Iterable[T]) -> Iterator[T]:
        """The batches of this process up to the end of the pass; each goes into :meth:`next_group`.

        Args:
            loaded: all batches of this process, in random order.
        """
        loaded, n_batches = iter(loaded), FEWEST_BATCHES
        while True:
            last = n_batches >= self._all
            n_batches = min(n_batches, self._all)
            yield from islice(loaded, self._n_due(n_batches) - self._n_read)
            n_batches, found = self._estimate(last)
            if found.precise:
                self.sample = found
                return
            n_batches = self._next_check(n_batches, found.largest)

    def next_group(self) -> ScaleAccumulator:
        """The accumulator for the next batch."""
        processes, position = self._processes, self._n_read
        if self._shared:
            position = processes.rank + position * processes.world_size
        group = self._groups[position % N_GROUPS]
        group.follow(self._group)
        self._group = group
        self._n_read += 1
        return group

    def result(self) -> tuple[ScaleAccumulator, int]:
        """The statistics of all processes at the end of the pass, and the number of batches."""
        assert self.sample is not None
        accumulator = merged(self._merged)
        accumulator.sample = self.sample
        return accumulator, self.sample.n_batches

    def _next_check(self, n_batches: int, error: float) -> int:
        """The number of batches after which the error should be small enough."""
        of_all = n_batches / self._all
        variance = n_batches * error**2 / max(1.0 - of_all, 1e-9)  # of one batch
        needed = 1.0 / (self._relative_error**2 / variance + 1.0 / self._all)
        needed = min(max(needed, SMALLEST_STEP * n_batches), LARGEST_STEP * n_batches)
        return N_GROUPS * math.ceil(needed / N_GROUPS)

    def _n_due(self, n_batches: int) -> int:
        """How many batches this process has read when all have read a number of them."""
        if self._shared:
            return len(range(self._processes.rank, n_batches, self._processes.world_size))
        return math.ceil(n_batches * self._own / max(1, self._all))

    def _estimate(self, complete: bool) -> tuple[int, RandomSample]:
        """The number of batches that all processes have read, and their errors."""
        self._merged, n_batches = merge_all(self._groups, self._n_read, self._processes)
        n_all = n_batches if complete else self._all
        return n_batches, estimate_sample(self._merged, n_batches, n_all, self._relative_error)


def merge_all(
    accumulators: Sequence[ScaleAccumulator], n_batches: int, processes: FitProcesses
) -> tuple[list[ScaleAccumulator], int]:
    """Merge what all processes have collected, in rank order.

    Args:
        accumulators: accumulators with the data of this process.
        n_batches: number of batches of this process.
        processes: processes of the fit.

    Returns:
        Accumulators with the data of all processes, the same on each of them, and the number of
        all batches.

    Raises:
        RuntimeError: on every process, if the layouts of a target or the kinds of labels differ.
    """
    if processes.world_size == 1:
        return list(accumulators), n_batches
    structure, values = flatten_state([each.state() for each in accumulators])
    gathered = processes.gather_objects((structure, values.numel(), n_batches))
    structures, lengths, numbers = [list(parts) for parts in zip(*gathered, strict=True)]
    for of_accumulator in zip(*structures, strict=True):
        _check_compatible(of_accumulator)
    values_by_rank = processes.gather_values(values, lengths)
    merged = [each.fresh() for each in accumulators]
    for structure, values in zip(structures, values_by_rank, strict=True):
        for one, state in zip(merged, unflatten_state(structure, values), strict=True):
            one.merge_state(state)
    return merged, sum(numbers)


def _check_compatible(structures: Sequence[Any]) -> None:
    """Check that all processes found the same layouts and the same kind of system labels."""
    layouts: dict[str, TargetLayout] = {}
    first_rank: dict[str, int] = {}
    for rank, structure in enumerate(structures):
        for name, statistics in structure["statistics"].items():
            layout = TargetLayout.from_state(name, statistics["layout"])
            try:
                layouts[name] = layouts.get(name, layout).union(layout)
            except ValueError as error:
                raise ProcessesDisagreeError(
                    f"the data of rank {rank} differ in layout from those of lower ranks: {error}"
                ) from error
        if structure["system_labels"] != "auto":
            first_rank.setdefault(structure["system_labels"], rank)
    if len(first_rank) > 1:
        found = " and ".join(f"'{labels}' on rank {rank}" for labels, rank in first_rank.items())
        raise ProcessesDisagreeError(
            f"expected the same kind of system labels on all processes, got {found}; use one kind "
            "in all data, or set system_labels"
        )
