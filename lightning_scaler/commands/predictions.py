"""The predictions of many batches as one."""

from collections.abc import Mapping, Sequence

import torch
from metatensor.torch import Labels, TensorBlock, TensorMap, join

from ..tensors import block_with_samples, map_blocks


def joined(batches: Sequence[Mapping[str, TensorMap]]) -> dict[str, TensorMap]:
    """Join what ``Trainer.predict`` gives for one loader.

    Args:
        batches: predictions of each batch, ``system`` being the position in it.

    Returns:
        By target name one TensorMap, ``system`` being the position in the data set.
    """
    renumbered: dict[str, list[TensorMap]] = {}
    first = 0
    for batch in batches:
        for name, tensor in batch.items():
            renumbered.setdefault(name, []).append(_systems_from(first, tensor.to("cpu")))
        first += max(
            (int(block.samples.column("system").max()) + 1 for block in _filled(batch)), default=0
        )
    return {
        name: join(tensors, "samples", different_keys="union")
        for name, tensors in renumbered.items()
    }


def _filled(batch: Mapping[str, TensorMap]) -> list[TensorBlock]:
    return [block for tensor in batch.values() for block in tensor.blocks() if len(block.samples)]


def _systems_from(first: int, tensor: TensorMap) -> TensorMap:
    def renumbered(_row: int, _keys: Labels, block: TensorBlock) -> TensorBlock:
        parameters = block.gradients_list()
        return block_with_samples(
            block,
            block.values,
            _shifted(block.samples, first),
            {name: block.gradient(name).values for name in parameters},
            {name: _shifted(block.gradient(name).samples, first) for name in parameters},
        )

    return map_blocks(tensor, renumbered)


def _shifted(labels: Labels, first: int) -> Labels:
    if "system" not in labels.names:
        return labels
    shift = torch.tensor([first * (name == "system") for name in labels.names])
    return Labels(labels.names, labels.values + shift.to(labels.values))
