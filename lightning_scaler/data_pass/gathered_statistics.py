"""The statistics of all processes, merged alike on each of them."""

from collections.abc import Sequence
from typing import Any

from ..fitting import ScaleAccumulator
from ..tensors import TargetLayout, flatten_state, unflatten_state
from .processes import FitProcesses, ProcessesDisagreeError


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
    """Check that all processes found the same layouts and the same kind of system labels.

    Args:
        structures: state of each process's accumulator, without its float64 values.
    """
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
