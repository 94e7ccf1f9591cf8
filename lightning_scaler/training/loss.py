"""The default loss: the mean squared error of every term, divided by its mean square."""

from collections.abc import Mapping, Sequence
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
        names: name of each term, ``energy`` or ``energy/positions``.
        errors: mean squared error of each term, divided by the mean square of the term; 0 if all
            its values are missing; ``(n_terms,)``.
        present: 1 if the term has values, 0 if all are missing; ``(n_terms,)``.
    """

    names: list[str]
    errors: Tensor
    present: Tensor

    def weighted_mean(self, weights: Mapping[str, float]) -> Tensor:
        """The mean over the terms that are present, with weights by name, 1 unless given.

        Returns:
            Scalar tensor; 0 if no term is present.
        """
        errors, present = self.errors, self.present
        if weights:
            of_terms = _numbers_like(errors, [weights.get(name, 1.0) for name in self.names])
            errors, present = of_terms * errors, of_terms * present
        total = present.sum()
        return errors.sum() / total.where(total > 0, 1.0)


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
    found, squares, n_values = _squared_errors(
        names, list(predictions.values()), [targets[name] for name in names]
    )
    present = (n_values > 0).to(squares.dtype)
    errors = squares / n_values.clamp(min=1)
    if mean_squares:
        errors = errors / _numbers_like(errors, [mean_squares.get(name) or 1.0 for name in found])
    return LossTerms(found, errors, present)


def _numbers_like(tensor: Tensor, numbers: Sequence[float]) -> Tensor:
    return torch.tensor(numbers, dtype=tensor.dtype).to(tensor.device, non_blocking=True)


@scripted_arithmetic
def _squared_errors(
    names: list[str], predictions: list[TensorMap], targets: list[TensorMap]
) -> tuple[list[str], Tensor, Tensor]:
    """Name, sum of squared errors and number of values of each term."""
    terms: list[str] = []
    # Term and size of every block and gradient, and their values.
    term_of_part: list[int] = []
    sizes: list[int] = []
    predicted: list[Tensor] = []
    present: list[Tensor] = []
    for i, target in enumerate(targets):
        predicted_blocks = predictions[i].blocks()
        first = len(terms)
        for j, block in enumerate(target.blocks()):
            prediction = predicted_blocks[j]
            parameters = [""]
            parameters.extend(block.gradients_list())
            for parameter in parameters:
                if parameter == "":
                    term, predictions_of_part, values = names[i], prediction.values, block.values
                else:
                    term = names[i] + "/" + parameter
                    predictions_of_part = prediction.gradient(parameter).values
                    values = block.gradient(parameter).values
                k = first
                while k < len(terms) and terms[k] != term:
                    k += 1
                if k == len(terms):
                    terms.append(term)
                term_of_part.append(k)
                predicted.append(predictions_of_part.reshape(-1))
                present.append(values.reshape(-1))
                sizes.append(len(present[-1]))
    if len(terms) == 0:
        return terms, torch.zeros([0]), torch.zeros([0])
    values = torch.cat(present)
    # Indexing by a mask would make the host wait for a GPU.
    missing = values.isnan()
    difference = torch.cat(predicted).masked_fill(missing, 0.0) - values.masked_fill(missing, 0.0)
    squares = [part.sum() for part in difference.square().split_with_sizes(sizes)]
    counts = [part.sum() for part in (~missing).split_with_sizes(sizes)]
    sums: list[Tensor] = []
    numbers: list[Tensor] = []
    for part, k in enumerate(term_of_part):
        if k < len(sums):
            sums[k], numbers[k] = sums[k] + squares[part], numbers[k] + counts[part]
        else:
            sums.append(squares[part])
            numbers.append(counts[part])
    return terms, torch.stack(sums), torch.stack(numbers)


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
