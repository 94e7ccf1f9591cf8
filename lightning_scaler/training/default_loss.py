"""The loss of the mixin, with the settings that are stored in the scaler."""

from collections.abc import Iterable, Mapping

from lightning.pytorch.utilities import rank_zero_warn
from metatensor.torch import TensorMap
from torch import Tensor

from ..scaling import Scaler
from .loss import LossTerms, loss_terms


class DefaultLoss:
    """The weighted mean over the terms of the loss; see :func:`loss_terms`.

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
        self.terms = LossTerms(terms.names, terms.errors.detach(), terms.present)
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
        self, terms: LossTerms, scaler: Scaler, mean_squares: Mapping[str, float]
    ) -> None:
        found = dict.fromkeys([*scaler.loss_terms, *terms.names])
        weights = scaler.settings.loss_weights
        unbalanced = [t for t in found if not mean_squares.get(t) and t not in weights]
        # A single term has the whole loss.
        if len(found) > 1 and not self._unbalanced.issuperset(unbalanced):
            self._unbalanced.update(unbalanced)
            _warn_of_unknown_mean_squares(unbalanced, mean_squares)


def _warn_of_unknown_mean_squares(terms: Iterable[str], mean_squares: Mapping[str, float]) -> None:
    unknown = [term for term in terms if term not in mean_squares]
    zero = [term for term in terms if mean_squares.get(term) == 0]
    if unknown:
        rank_zero_warn(
            f"the mean squares of the loss terms {unknown} are unknown, and 1 is used; scales of "
            "an earlier version or of metatrain: fit again with TargetScaler(refit=True); scales "
            "fixed without a data pass, or terms that the training data do not have: set their "
            "weights in loss_weights"
        )
    if zero:
        rank_zero_warn(
            f"the loss terms {zero} are zero throughout the data of the fit, and 1 is used for "
            "their mean squares; remove them from the data, or set their weights in loss_weights"
        )
