"""The batches of several loaders joined into one."""

from collections.abc import Mapping, Sequence
from typing import Any

import metatensor.torch as mts
import torch
from metatensor.torch import Labels, TensorBlock, TensorMap

from ..tensors import block_with_samples, map_blocks
from .atoms import read_atoms
from .indexed_target import infer_indexing, relabel_by_position
from .systems import HasTypes, IdentifiedSystems

Tensors = Mapping[str, TensorMap]
Part = tuple[Sequence[HasTypes], Tensors, Tensors]


def join_batches(parts: Sequence[Part]) -> Part:
    """Join the systems of some batches, and the rows of targets that several of them have.

    Systems of a batch without a target have no rows in it.

    Args:
        parts: systems, targets and masks of each batch, at least one.

    Returns:
        Systems, targets and masks; ``system`` labels are positions in the joined batch.

    Raises:
        ValueError: if ``system`` labels could mean two things.
    """
    if len(parts) == 1:
        return parts[0]
    all_systems: list[Any] = []
    targets: dict[str, list[TensorMap]] = {}
    masks: dict[str, list[TensorMap]] = {}
    masked = {name for _, _, its_masks in parts for name in its_masks}
    for systems, its_targets, its_masks in parts:
        shift, atoms = len(all_systems), read_atoms(systems)
        indexing = infer_indexing(atoms, its_targets) if its_targets else None
        for joined, tensors in ((targets, its_targets), (masks, its_masks)):
            for name, tensor in tensors.items():
                if indexing is not None:
                    tensor = relabel_by_position(name, tensor, indexing, atoms)
                joined.setdefault(name, []).append(shift_systems(tensor, shift))
        for name in masked & its_targets.keys() - its_masks.keys():
            masks.setdefault(name, []).append(_full_mask(targets[name][-1]))
        all_systems += systems
    return (
        IdentifiedSystems(all_systems, range(len(all_systems))),
        {name: _join(name, tensors) for name, tensors in targets.items()},
        {name: _join(name, tensors) for name, tensors in masks.items()},
    )


def _join(name: str, tensors: list[TensorMap]) -> TensorMap:
    if len(tensors) == 1:
        return tensors[0]
    try:
        return mts.join(_with_same_gradients(tensors), "samples", different_keys="union")
    except (RuntimeError, torch.jit.Error) as error:
        raise ValueError(
            f"target '{name}': the batches of several loaders have layouts that cannot be joined; "
            "give them the same keys, components and properties, or override unpack_batch(batch) "
            "-> (systems, targets, masks)"
        ) from error


def _with_same_gradients(tensors: list[TensorMap]) -> list[TensorMap]:
    """The targets, each with an empty gradient for every parameter that only others have."""
    examples: dict[str, TensorBlock] = {}
    for tensor in tensors:
        for block in tensor.blocks():
            examples |= {name: block.gradient(name) for name in block.gradients_list()}

    def add_missing(_index: int, _keys: Labels, block: TensorBlock) -> TensorBlock:
        copy = TensorBlock(block.values, block.samples, block.components, block.properties)
        for name, example in examples.items():
            if name in block.gradients_list():
                gradient = block.gradient(name)
                values, samples = gradient.values, gradient.samples
                components = gradient.components
            else:
                values = example.values[:0].to(block.values)
                samples = Labels(example.samples.names, example.samples.values[:0])
                components = example.components
            gradient = TensorBlock(values, samples, components, block.properties)
            copy.add_gradient(name, gradient)
        return copy

    return [map_blocks(tensor, add_missing) for tensor in tensors] if examples else tensors


def shift_systems(tensor: TensorMap, shift: int) -> TensorMap:
    """The same target with ``system`` labels that are larger by ``shift``."""
    if not shift:
        return tensor

    def shift_block(_index: int, _keys: Labels, block: TensorBlock) -> TensorBlock:
        gradients, samples = {}, {}
        for parameter in block.gradients_list():
            gradient = block.gradient(parameter)
            gradients[parameter] = gradient.values
            samples[parameter] = _shift_labels(gradient.samples, shift)
        rows = _shift_labels(block.samples, shift)
        return block_with_samples(block, block.values, rows, gradients, samples)

    return map_blocks(tensor, shift_block)


def _shift_labels(labels: Labels, shift: int) -> Labels:
    if "system" not in labels.names:
        return labels
    values = labels.values.clone()
    values[:, labels.names.index("system")] += shift
    return Labels(labels.names, values)


def _full_mask(target: TensorMap) -> TensorMap:
    """A mask that keeps all values of a target."""
    blocks = [
        TensorBlock(
            torch.ones_like(block.values, dtype=torch.bool),
            block.samples,
            block.components,
            block.properties,
        )
        for block in target.blocks()
    ]
    return TensorMap(target.keys, blocks)
