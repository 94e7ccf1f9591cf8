"""The batches of several loaders, and the predictions of all batches of a loader, joined."""

from collections.abc import Mapping, Sequence
from typing import Any

import metatensor.torch as mts
import torch
from metatensor.torch import Labels, TensorBlock, TensorMap

from ..tensors import is_tensormap, map_blocks
from .atoms import read_atoms
from .indexed_target import infer_indexing, relabel_by_position, relabel_systems
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
                joined.setdefault(name, []).append(_shift_systems(tensor, shift))
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


def _shift_systems(tensor: TensorMap, shift: int) -> TensorMap:
    """The same TensorMap with ``system`` labels that are larger by ``shift``."""
    if not shift:
        return tensor
    return relabel_systems(tensor, lambda _, block: block.samples.column("system") + shift)


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


def join_predictions(batches: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Join the predictions of one loader, as ``Trainer.predict`` returns them.

    Args:
        batches: predictions of each batch by target name: TensorMaps, whose ``system`` is the
            position in the batch, or tensors whose first axis runs over the structures or atoms of
            the batch.

    Returns:
        One TensorMap per target on the CPU, whose ``system`` is the position in the data of the
        loader; or one tensor, with the rows of all batches in order.

    Raises:
        TypeError: for predictions of another kind, and for tensors without an axis.
        ValueError: for a tensor that only some of the batches have.

    Example:
        >>> first = {"energy": torch.tensor([-1.0, -2.0]), "n_atoms": torch.tensor([1, 3])}
        >>> second = {"energy": torch.tensor([-3.0]), "n_atoms": torch.tensor([2])}
        >>> join_predictions([first, second])
        {'energy': tensor([-1., -2., -3.]), 'n_atoms': tensor([1, 3, 2])}
    """
    parts: dict[str, list[Any]] = {}
    first_system = 0
    for batch in batches:
        if not isinstance(batch, Mapping):
            raise TypeError(
                "expected the predictions of the batches of one loader, dicts by target name, got "
                f"a {type(batch).__name__}; trainer.predict with several loaders returns a list "
                "for each of them"
            )
        maps = {name: tensor for name, tensor in batch.items() if is_tensormap(tensor)}
        for name, tensor in batch.items():
            if name in maps:
                tensor = _shift_systems(tensor.to("cpu"), first_system)
            elif not isinstance(tensor, torch.Tensor) or not tensor.dim():
                raise TypeError(
                    f"predictions of '{name}': expected TensorMaps, or tensors with one row for "
                    f"each structure or atom, got {type(tensor).__name__}; leave '{name}' out"
                )
            parts.setdefault(name, []).append(tensor)
        first_system += _count_systems(maps)
    return {name: _join_of_batches(name, tensors, len(batches)) for name, tensors in parts.items()}


def _join_of_batches(name: str, tensors: list[Any], n_batches: int) -> Any:
    if is_tensormap(tensors[0]):
        return mts.join(tensors, "samples", different_keys="union")
    if len(tensors) < n_batches:
        raise ValueError(
            f"predictions of '{name}': {len(tensors)} of {n_batches} batches have them, so their "
            "rows cannot be numbered; predict them for all batches, or leave them out"
        )
    return torch.cat(tensors)


def _count_systems(batch: Mapping[str, TensorMap]) -> int:
    samples = [block.samples for tensor in batch.values() for block in tensor.blocks()]
    last = (int(labels.column("system").max()) for labels in samples if len(labels))
    return max(last, default=-1) + 1
