"""The default loss."""

from collections.abc import Iterator, Mapping

import torch
from metatensor.torch import TensorMap

from ..tensors import is_tensormap


def mean_squared_error(
    predictions: Mapping[str, TensorMap], targets: Mapping[str, TensorMap]
) -> torch.Tensor:
    """The mean over terms of the mean squared error of each.

    A term is all values of a target, or one of its gradients. NaN entries of a target are missing;
    they are taken out before anything is squared, so that no gradient sees them. A term without any
    entry is left out.

    Args:
        predictions: by target name, in the rows of the targets.
        targets: by target name; those without a prediction are passed over.

    Returns:
        A scalar; 0 if no target has an entry.
    """
    errors, present = [], []
    for name, prediction in predictions.items():
        for pairs in _terms(prediction, targets[name]).values():
            squares, entries = _squared_error(pairs)
            errors.append(squares / entries.clamp(min=1))
            present.append((entries > 0).to(squares.dtype))
    if not errors:
        return torch.zeros(())
    return torch.stack(errors).sum() / torch.stack(present).sum().clamp(min=1)


def _terms(
    prediction: TensorMap, target: TensorMap
) -> dict[str, list[tuple[torch.Tensor, torch.Tensor]]]:
    """Pairs of predicted and target values by gradient name, the values themselves under ``""``."""
    terms: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {}
    for ours, theirs in zip(target.blocks(), prediction.blocks(), strict=True):
        terms.setdefault("", []).append((theirs.values, ours.values))
        for name in ours.gradients_list():
            pair = (theirs.gradient(name).values, ours.gradient(name).values)
            terms.setdefault(name, []).append(pair)
    return terms


def _squared_error(
    pairs: list[tuple[torch.Tensor, torch.Tensor]],
) -> tuple[torch.Tensor, torch.Tensor]:
    def differences() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for prediction, target in pairs:
            missing = torch.isnan(target)
            # Indexing by a mask would make the host wait for a GPU. A NaN that `where` leaves out
            # gives no gradient, as long as nothing but the difference comes before it.
            difference = torch.where(missing, 0.0, prediction - target)
            yield difference.square().sum(), (~missing).sum()

    squares, entries = zip(*differences(), strict=True)
    return torch.stack(squares).sum(), torch.stack(entries).sum()


def zero_loss(predictions: Mapping[str, TensorMap]) -> torch.Tensor:
    """Zero times everything that was predicted: a loss with a gradient of zero.

    Args:
        predictions: by target name, in any space; what is no TensorMap is passed over.
    """
    entries = [
        values
        for tensor in predictions.values()
        if is_tensormap(tensor)
        for block in tensor.blocks()
        for values in (block.values, *(block.gradient(g).values for g in block.gradients_list()))
    ]
    if not entries:
        return torch.zeros(())
    return torch.stack([(0.0 * values.nan_to_num()).sum() for values in entries]).sum()
