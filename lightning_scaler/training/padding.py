"""The samples that a distributed sampler repeats, so that every process has equally many."""

from collections.abc import Mapping, Sequence
from typing import Any

import metatensor.torch as mts
import torch
from metatensor.torch import Labels, TensorMap
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler


def repeated_systems(loader: Any, batch_idx: int, n_systems: int) -> list[int]:
    r"""Positions in a batch of the systems that another process counts already.

    The k-th index of rank r is a repeat where :math:`k W + r \ge n`, with W processes and n
    samples: a ``DistributedSampler`` fills up with the first samples.

    Args:
        loader: gives the batches of this process.
        batch_idx: which of them this is.
        n_systems: in the batch.

    Returns:
        Nothing for samplers and batch samplers of other kinds; nothing where the samples of the
        data set are not systems one by one, unless the whole batch is a sample.
    """
    if not isinstance(loader, DataLoader):
        return []
    unbatched = loader.batch_sampler is None
    sampler, size = loader.sampler, 1
    if not unbatched:
        if type(loader.batch_sampler) is not BatchSampler:
            return []
        sampler, size = loader.batch_sampler.sampler, loader.batch_sampler.batch_size
    if not isinstance(sampler, DistributedSampler):
        return []
    last = min(len(sampler), (batch_idx + 1) * size)
    length, step = len(sampler.dataset), sampler.num_replicas  # type: ignore[arg-type]
    samples = range(batch_idx * size, last)
    repeated = [i for i, k in enumerate(samples) if k * step + sampler.rank >= length]
    if unbatched:
        return list(range(n_systems)) if repeated else []
    return repeated if len(samples) == n_systems else []


def without_systems(
    predictions: Mapping[str, TensorMap],
    targets: Mapping[str, TensorMap],
    positions: Sequence[int],
    n_systems: int,
) -> tuple[Mapping[str, TensorMap], Mapping[str, TensorMap]]:
    """Predictions and their targets without the rows, and gradients, of some systems.

    Args:
        predictions: by target name, ``system`` being the position in the batch.
        targets: likewise; those without a prediction stay as they are.
        positions: of the systems to leave out.
        n_systems: in the batch.
    """
    if not positions:
        return predictions, targets
    kept = torch.tensor([i for i in range(n_systems) if i not in positions], dtype=torch.int64)
    selection = Labels("system", kept.reshape(-1, 1))

    def rest(tensor: TensorMap) -> TensorMap:
        return mts.slice(tensor, "samples", selection.to(tensor.device))

    names = predictions.keys() & targets.keys()
    return (
        {**predictions, **{name: rest(predictions[name]) for name in names}},
        {**targets, **{name: rest(targets[name]) for name in names}},
    )
