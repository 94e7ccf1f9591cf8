"""The default loss: the mean squared error of every term, divided by its mean square."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from metatensor.torch import TensorMap
from torch import Tensor

from ..tensors import (
    TargetLayout,
    is_tensormap,
    scripted_arithmetic,
    scripted_gradients_of_blocks,
)


@dataclass(frozen=True)
class LossTerms:
    """The terms of the loss in one batch: the values of each target, and each of its gradients.

    Attributes:
        errors: mean squared error of each term by name, ``energy`` or ``energy/positions``, divided
            by the mean square of the term; 0 if all its values are missing; scalar tensors.
        present: 1 if the term has values, 0 if all are missing; scalar tensors.
    """

    errors: dict[str, Tensor]
    present: dict[str, Tensor]

    def weighted_mean(self, weights: Mapping[str, float]) -> Tensor:
        """The mean over the terms that are present, with weights by name, 1 unless given.

        Returns:
            Scalar tensor; 0 if no term is present.
        """
        if not self.errors:
            return torch.zeros(())
        errors, present = list(self.errors.values()), list(self.present.values())
        if weights:
            in_order = [weights.get(name, 1.0) for name in self.errors]
            errors = [w * error for w, error in zip(in_order, errors, strict=True)]
            present = [w * one for w, one in zip(in_order, present, strict=True)]
        total = torch.stack(present).sum()
        return torch.stack(errors).sum() / total.where(total > 0, 1.0)


def loss_terms(
    predictions: Mapping[str, TensorMap],
    targets: Mapping[str, TensorMap],
    mean_squares: Mapping[str, float],
) -> LossTerms:
    r"""The terms of the loss.

    .. math::

        t = \frac{1}{m N} \sum_{i=1}^N (\hat y_i - y_i)^2

    All blocks of a target are one term, and so are all blocks of a gradient. NaN values of a target
    are missing values; they are left out before the difference is taken, so that they do not enter
    the gradient of the loss.

    Args:
        predictions: predictions by target name, with the samples of the targets in their order.
        targets: targets by name; those without a prediction are ignored.
        mean_squares: mean square :math:`m` of each term by name, 1 unless given and positive.
    """
    names = list(predictions)
    found, squares, counts = _squared_errors(
        names, list(predictions.values()), [targets[name] for name in names]
    )
    errors, present = {}, {}
    for name, square, count in zip(found, squares, counts, strict=True):
        error = square / count.clamp(min=1)
        mean_square = mean_squares.get(name)
        errors[name] = error / mean_square if mean_square else error
        present[name] = (count > 0).to(square.dtype)
    return LossTerms(errors, present)


@scripted_arithmetic
def _squared_errors(
    names: list[str], predictions: list[TensorMap], targets: list[TensorMap]
) -> tuple[list[str], list[Tensor], list[Tensor]]:
    """Name, sum of squared errors and number of values of each term."""
    terms: list[str] = []
    squares: list[Tensor] = []
    counts: list[Tensor] = []
    for i, target in enumerate(targets):
        predicted_blocks = predictions[i].blocks()
        first = len(terms)
        for j, block in enumerate(target.blocks()):
            prediction = predicted_blocks[j]
            parameters = [""]
            parameters.extend(block.gradients_list())
            for parameter in parameters:
                if parameter == "":
                    term, predicted, values = names[i], prediction.values, block.values
                else:
                    term = names[i] + "/" + parameter
                    predicted = prediction.gradient(parameter).values
                    values = block.gradient(parameter).values
                # Indexing by a mask would make the host wait for a GPU.
                missing = torch.isnan(values)
                difference = predicted.masked_fill(missing, 0.0) - values.masked_fill(missing, 0.0)
                square, count = difference.square().sum(), (~missing).sum()
                k = first
                while k < len(terms) and terms[k] != term:
                    k += 1
                if k < len(terms):
                    squares[k], counts[k] = squares[k] + square, counts[k] + count
                else:
                    terms.append(term)
                    squares.append(square)
                    counts.append(count)
    return terms, squares, counts


def zero_loss(
    predictions: Mapping[str, TensorMap], layouts: Mapping[str, TargetLayout] | None = None
) -> Tensor:
    """A loss of zero that depends on all predictions, so that their gradients are not missing.

    A batch may be without a target, a block, a gradient or some rows that the network predicts.
    Weights that affect nothing else then have a gradient of zero, which DDP would wait for.

    Args:
        predictions: predictions by target name, in any space; only TensorMaps are used.
        layouts: layouts of the targets in the fit, by name. Gradients that a target never has are
            left out: to differentiate them would cost as much as to train on them.
    """
    tensors = {name: tensor for name, tensor in predictions.items() if is_tensormap(tensor)}
    unused = []
    for name, tensor in tensors.items():
        layout = (layouts or {}).get(name)
        parameters = set() if layout is None else set(scripted_gradients_of_blocks(tensor)[1])
        unused.append([] if layout is None else sorted(parameters.difference(layout.gradients)))
    return _zero(list(tensors.values()), unused)


@scripted_arithmetic
def _zero(tensors: list[TensorMap], unused_gradients: list[list[str]]) -> Tensor:
    parts: list[Tensor] = [torch.zeros([0])]
    for i, tensor in enumerate(tensors):
        for block in tensor.blocks():
            parts.append(block.values.reshape([-1]))
            for parameter in block.gradients_list():
                if parameter not in unused_gradients[i]:
                    parts.append(block.gradient(parameter).values.reshape([-1]))
    if len(parts) == 1:
        return parts[0].sum()
    return (0.0 * torch.cat(parts[1:]).nan_to_num()).sum()
