"""The padding that distributed samplers add, which evaluation must not count."""

from collections.abc import Mapping, Sequence
from typing import Any

import metatensor.torch as mts
import torch
from lightning.pytorch import Trainer
from metatensor.torch import Labels, TensorMap
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler

from ..data_pass import flat_loaders
from ..scaling import LossTargets


def padded_positions(loader: Any, batch_idx: int, n_systems: int) -> list[int]:
    r"""Positions, in a batch, of the systems that are padding and counted on another rank.

    With W processes and n samples, the k-th index of rank r is padding if
    :math:`k W + r \ge n`: a ``DistributedSampler`` fills up with the first samples.

    Args:
        loader: loader of this process.
        batch_idx: index of the batch.
        n_systems: number of systems in the batch.

    Returns:
        An empty list for other samplers and batch samplers, and where a sample of the dataset is
        not a single system. Without automatic batching a sample is a whole batch, so that either
        all its systems are padding or none.
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
    padded = [i for i, k in enumerate(samples) if k * step + sampler.rank >= length]
    if unbatched:
        return list(range(n_systems)) if padded else []
    return padded if len(samples) == n_systems else []


def evaluation_loaders(trainer: Trainer) -> list[Any]:
    """The single loaders of the validation or test that runs."""
    # Trainer.val_dataloaders may be those of an earlier fit.
    return flat_loaders(trainer._evaluation_loop._combined_loader)


def drop_systems(
    predictions: Mapping[str, TensorMap],
    targets: Mapping[str, TensorMap],
    positions: Sequence[int],
    n_systems: int,
) -> tuple[Mapping[str, TensorMap], Mapping[str, TensorMap]]:
    """Predictions and targets without the samples, and the gradients, of some systems.

    Args:
        predictions: predictions by target name, with positions in the batch as ``system`` labels.
        targets: targets by name, with the same labels; those without a prediction are returned
            unchanged.
        positions: positions in the batch of the systems to drop.
        n_systems: number of systems in the batch.
    """
    if not positions:
        return predictions, targets
    kept = torch.tensor([i for i in range(n_systems) if i not in positions], dtype=torch.int64)
    selection = Labels("system", kept.reshape(-1, 1))

    def select(tensor: TensorMap) -> TensorMap:
        return mts.slice(tensor, "samples", selection.to(tensor.device))

    names = predictions.keys() & targets.keys()
    selected = {**targets, **{name: select(targets[name]) for name in names}}
    if isinstance(targets, LossTargets):
        # Still in loss space, but no longer with the rows of the batch.
        selected = LossTargets(selected, {})
    return {**predictions, **{name: select(predictions[name]) for name in names}}, selected
