"""The default loss: the mean squared error of every term, divided by its mean square."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from lightning.pytorch.utilities import rank_zero_warn
from metatensor.torch import TensorMap
from torch import Tensor

from ..scaling import Scaler
from ..tensors import TargetLayout, is_tensormap, scripted_arithmetic


class DefaultLoss:
    """The weighted mean over the terms of the loss, with the settings stored in the scaler.

    Warns once of each term whose mean square is unknown or zero, and once of unused weights.

    Attributes:
        terms: terms of the last batch, detached; ``None`` if another loss was used for it.
    """

    def __init__(self) -> None:
        self.terms: LossTerms | None = None
        self._unbalanced: set[str] = set()
        self._unused_weights = False

    def __call__(
        self, predictions: Mapping[str, TensorMap], targets: Mapping[str, TensorMap], scaler: Scaler
    ) -> Tensor:
        """The loss of a batch.

        Args:
            predictions: predictions in loss space by target name, in the rows of the targets.
            targets: targets in loss space by name, NaN where a value is missing.
            scaler: fitted scaler, with its settings ``loss_weights`` and ``balance_loss``.

        Returns:
            Scalar tensor.
        """
        balanced = scaler.settings.balance_loss
        mean_squares = scaler.mean_squares if balanced else {}
        terms = loss_terms(predictions, targets, mean_squares)
        # A module that holds tensors with a graph cannot be copied.
        self.terms = terms._replace(errors=terms.errors.detach())
        # A few batches say little about the terms.
        if balanced and not scaler.settings.provisional:
            self._warn_of_unbalanced_terms(terms, scaler, mean_squares)
        return terms.weighted_mean(scaler.settings.loss_weights)

    def warn_of_unused_weights(self, owner: str, weights: Mapping[str, float]) -> None:
        """Warn once of weights that another loss does not use.

        Args:
            owner: class whose ``compute_loss`` replaces this one.
            weights: weights by term.
        """
        if weights and not self._unused_weights:
            self._unused_weights = True
            rank_zero_warn(
                f"loss_weights={weights} has no effect, because {owner}.compute_loss replaces the "
                "default loss; leave it out, or call super().compute_loss(predictions, targets)"
            )

    def _warn_of_unbalanced_terms(
        self, terms: "LossTerms", scaler: Scaler, mean_squares: Mapping[str, float]
    ) -> None:
        found = dict.fromkeys([*scaler.loss_terms, *terms.names])
        weights = scaler.settings.loss_weights
        unbalanced = [t for t in found if not mean_squares.get(t) and t not in weights]
        # A single term is the whole loss.
        if len(found) == 1 or self._unbalanced.issuperset(unbalanced):
            return
        self._unbalanced.update(unbalanced)
        unknown = [term for term in unbalanced if term not in mean_squares]
        zero = [term for term in unbalanced if term in mean_squares]
        if unknown:
            rank_zero_warn(
                f"the mean squares of the loss terms {unknown} are unknown, and 1 is used; scales "
                "of an earlier version or of metatrain: fit again with TargetScaler(refit=True); "
                "scales fixed without a data pass, or terms that the training data do not have: "
                "set their weights in loss_weights"
            )
        if zero:
            rank_zero_warn(
                f"the loss terms {zero} are zero throughout the data of the fit, and 1 is used for "
                "their mean squares; remove them from the data, or set their weights in "
                "loss_weights"
            )


class LossTerms(NamedTuple):
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
    are missing values, which enter neither the loss nor its gradient.

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
    sizes: list[int] = []
    predicted: list[Tensor] = []
    given: list[Tensor] = []
    for i, target in enumerate(targets):
        blocks, predicted_blocks = target.blocks(), predictions[i].blocks()
        parameters = [""] if len(blocks) > 0 else [""][:0]
        for block in blocks:
            for parameter in block.gradients_list():
                if parameter not in parameters:
                    parameters.append(parameter)
        for parameter in parameters:
            size = 0
            for j, block in enumerate(blocks):
                if parameter == "":
                    given.append(block.values.reshape(-1))
                    predicted.append(predicted_blocks[j].values.reshape(-1))
                    size += len(given[-1])
                elif parameter in block.gradients_list():
                    given.append(block.gradient(parameter).values.reshape(-1))
                    predicted.append(predicted_blocks[j].gradient(parameter).values.reshape(-1))
                    size += len(given[-1])
            terms.append(names[i] if parameter == "" else names[i] + "/" + parameter)
            sizes.append(size)
    if len(terms) == 0:
        return terms, torch.zeros([0]), torch.zeros([0])
    values = torch.cat(given)
    # Indexing by a mask would make the host wait for a GPU.
    missing = values.isnan()
    squares = (torch.cat(predicted) - values).masked_fill(missing, 0.0).square()
    sums = torch.stack([part.sum() for part in squares.split_with_sizes(sizes)])
    return terms, sums, torch.stack([part.sum() for part in (~missing).split_with_sizes(sizes)])


def zero_loss(
    predictions: Mapping[str, TensorMap], layouts: Mapping[str, TargetLayout] | None = None
) -> Tensor:
    """A loss of zero that depends on all predictions, so that their gradients are not missing.

    A batch may lack a target, a block, a gradient or some rows that the network predicts. Weights
    that affect nothing else then have a gradient of zero instead of none, for which DDP would wait.

    Args:
        predictions: predictions by target name, in any space; only TensorMaps are used.
        layouts: layouts of the targets in the fit, by name. Gradients that a target never has are
            left out: to differentiate them would cost as much as to train on them.
    """
    tensors = {name: tensor for name, tensor in predictions.items() if is_tensormap(tensor)}
    known = {name: list(layout.gradients) for name, layout in (layouts or {}).items()}
    return _zero(list(tensors.values()), [known.get(name) for name in tensors])


@scripted_arithmetic
def _zero(tensors: list[TensorMap], gradients: list[list[str] | None]) -> Tensor:
    parts: list[Tensor] = []
    for i, tensor in enumerate(tensors):
        used = gradients[i]
        for block in tensor.blocks():
            parts.append(block.values.reshape(-1))
            for parameter in block.gradients_list():
                if used is None or parameter in used:
                    parts.append(block.gradient(parameter).values.reshape(-1))
    if len(parts) == 0:
        return torch.zeros([])
    return (0.0 * torch.cat(parts).nan_to_num()).sum()
