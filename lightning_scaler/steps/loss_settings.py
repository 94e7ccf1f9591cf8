"""The settings of the default loss, from the callback or from restored scales."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from ..plain_tensors import Declaration
from ..scaling import Scaler
from ..settings import Numbers, Settings, did_you_mean, parse_loss_weights


@dataclass(frozen=True)
class LossSettings:
    """What a ``TargetScaler`` sets for the loss.

    Attributes:
        weights: weights by term; ``None``: those of restored scales, or none.
        balance: whether terms are divided by their mean squares; ``None``: as with restored scales,
            or ``True``.
    """

    weights: dict[str, float] | None
    balance: bool | None

    @classmethod
    def parse(
        cls,
        weights: Numbers | None,
        balance: bool | None,
        targets: Sequence[str] | None,
        declaration: Declaration | None = None,
    ) -> "LossSettings":
        """Check the settings as far as possible without data.

        Args:
            weights: weights by term, such as ``{"energy/positions": 4}``.
            balance: whether to balance the terms.
            targets: names of the targets to fit; ``None``: all.
            declaration: declared targets, which name their gradients.

        Raises:
            TypeError: for a ``balance`` that is not a bool.
            ValueError: for weights that are negative or not finite, or of other targets.
        """
        if balance is not None and not isinstance(balance, bool):
            raise TypeError(f"balance_loss: expected True, False or None, got {balance!r}")
        parsed = parse_loss_weights(weights)
        for term in parsed or ():
            if targets is not None and not _is_term_of(term, targets):
                gradient = None if declaration is None else declaration.gradient_terms.get(term)
                way_out = did_you_mean(term.split("/")[0], targets)
                if gradient is not None:
                    way_out = f"as a gradient, '{term}' is the term '{gradient}'"
                raise ValueError(
                    f"loss_weights names '{term}', whose target is not in targets=[…]; {way_out}"
                )
        return cls(parsed, balance)

    def apply(self, scaler: Scaler, stored: Settings | None) -> None:
        """Store the settings in a fitted scaler.

        Unlike scales, weights may change when training is resumed: those set here replace
        stored ones.

        Args:
            scaler: scaler with all its targets.
            stored: settings of the restored scales, if there are any.

        Raises:
            ValueError: for a weight that is not of a term of the loss; lists the terms. If all
                terms have the weight 0.
        """
        stored = stored or Settings()
        weights = stored.loss_weights if self.weights is None else self.weights
        balance = stored.balance_loss if self.balance is None else self.balance
        unknown = [term for term in weights if term not in scaler.loss_terms]
        if unknown:
            raise ValueError(
                f"loss_weights names '{unknown[0]}', which is not a term of the loss; "
                f"{did_you_mean(unknown[0], scaler.loss_terms)}"
            )
        if scaler.loss_terms and all(weights.get(term) == 0 for term in scaler.loss_terms):
            raise ValueError(
                f"loss_weights: expected a positive weight for one of the terms of the loss, got "
                f"{weights}, with which the loss is always 0"
            )
        scaler.settings = replace(scaler.settings, loss_weights=dict(weights), balance_loss=balance)


def _is_term_of(term: str, targets: Iterable[str]) -> bool:
    return any(term == target or term.startswith(f"{target}/") for target in targets)
