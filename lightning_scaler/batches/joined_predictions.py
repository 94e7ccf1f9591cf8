"""The predictions of all batches of a loader, joined."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from metatensor.torch import TensorMap, join

from ..tensors import is_tensormap
from .joined import shift_systems


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
                tensor = shift_systems(tensor.to("cpu"), first_system)
            elif not isinstance(tensor, torch.Tensor) or not tensor.dim():
                raise TypeError(
                    f"predictions of '{name}': expected TensorMaps, or tensors with one row for "
                    f"each structure or atom, got {type(tensor).__name__}; leave '{name}' out"
                )
            parts.setdefault(name, []).append(tensor)
        first_system += _count_systems(maps)
    return {name: _join(name, tensors, len(batches)) for name, tensors in parts.items()}


def _join(name: str, tensors: list[Any], n_batches: int) -> Any:
    if is_tensormap(tensors[0]):
        return join(tensors, "samples", different_keys="union")
    if len(tensors) < n_batches:
        raise ValueError(
            f"predictions of '{name}': {len(tensors)} of {n_batches} batches have them, so their "
            "rows cannot be counted through; predict them for all batches, or leave them out"
        )
    return torch.cat(tensors)


def _count_systems(batch: Mapping[str, TensorMap]) -> int:
    samples = [block.samples for tensor in batch.values() for block in tensor.blocks()]
    last = (int(labels.column("system").max()) for labels in samples if len(labels))
    return max(last, default=-1) + 1
