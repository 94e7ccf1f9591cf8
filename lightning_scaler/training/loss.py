"""The default loss."""

from collections.abc import Iterator, Mapping

import torch
from metatensor.torch import TensorMap

from ..tensors import is_tensormap


def mean_squared_error(
    predictions: Mapping[str, TensorMap], targets: Mapping[str, TensorMap]
) -> torch.Tensor:
    """Mean, over the terms of the loss, of the mean squared error of each term.

    The values of a target (all blocks together) are one term, and so is each of its gradients. NaN
    values of a target are missing values; they are removed before errors are squared, so that they
    do not enter the gradient of the loss. Terms in which all values are missing do not count.

    Args:
        predictions: predictions by target name, with the samples of the targets in their order.
        targets: targets by name; those without a prediction are ignored.

    Returns:
        Scalar tensor; 0 if all values are missing.
    """
    errors, present = [], []
    for name, prediction in predictions.items():
        for pairs in _terms(prediction, targets[name]).values():
            squares, count = _squared_error(pairs)
            errors.append(squares / count.clamp(min=1))
            present.append((count > 0).to(squares.dtype))
    if not errors:
        return torch.zeros(())
    return torch.stack(errors).sum() / torch.stack(present).sum().clamp(min=1)


def _terms(
    prediction: TensorMap, target: TensorMap
) -> dict[str, list[tuple[torch.Tensor, torch.Tensor]]]:
    """Pairs (prediction, target) of tensors by gradient name, with the values under ``""``."""
    terms: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {}
    for target_block, prediction_block in zip(target.blocks(), prediction.blocks(), strict=True):
        terms.setdefault("", []).append((prediction_block.values, target_block.values))
        for name in target_block.gradients_list():
            pair = (prediction_block.gradient(name).values, target_block.gradient(name).values)
            terms.setdefault(name, []).append(pair)
    return terms


def _squared_error(
    pairs: list[tuple[torch.Tensor, torch.Tensor]],
) -> tuple[torch.Tensor, torch.Tensor]:
    """The sum of squared errors over all blocks, and the number of values that are not missing."""

    def by_block() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for prediction, target in pairs:
            missing = torch.isnan(target)
            # Indexing by a mask would make the host wait for a GPU. A NaN that `where` removes has
            # no gradient, as long as only the difference is taken before.
            difference = torch.where(missing, 0.0, prediction - target)
            yield difference.square().sum(), (~missing).sum()

    squares, counts = zip(*by_block(), strict=True)
    return torch.stack(squares).sum(), torch.stack(counts).sum()


def zero_loss(predictions: Mapping[str, TensorMap]) -> torch.Tensor:
    """A loss of zero that depends on all predictions, so that its gradient is zero, not missing.

    Args:
        predictions: predictions by target name, in any space; only TensorMaps are used.
    """
    tensors = [
        values
        for tensor in predictions.values()
        if is_tensormap(tensor)
        for block in tensor.blocks()
        for values in (block.values, *(block.gradient(g).values for g in block.gradients_list()))
    ]
    if not tensors:
        return torch.zeros(())
    return torch.stack([(0.0 * values.nan_to_num()).sum() for values in tensors]).sum()
