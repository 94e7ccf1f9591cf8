"""The settings of the default loss: read from the callback, and stored with the scales."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from ..plain_tensors import Declaration
from ..scaling import Scaler
from ..settings import Numbers, Settings, did_you_mean, parse_loss_weights


def read_loss_weights(
    weights: Numbers | None, targets: Sequence[str] | None, declaration: Declaration | None
) -> dict[str, float] | None:
    """The weights by term, checked as far as possible without data.

    Args:
        weights: weights by term, such as ``{"energy/positions": 4}``; ``None``: not set.
        targets: names of the targets to fit; ``None``: all.
        declaration: declared targets, which name their gradients.

    Raises:
        ValueError: for weights that are negative or not finite, or of other targets.
    """
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
    return parsed


def store_loss_settings(
    scaler: Scaler, weights: dict[str, float] | None, balance: bool | None, stored: Settings | None
) -> None:
    """Store the settings of the loss in a fitted scaler.

    Unlike scales, weights may change when training is resumed: those set now replace stored ones.

    Args:
        scaler: scaler with all its targets.
        weights: weights by term; ``None``: those of restored scales, or none.
        balance: whether terms are divided by their mean squares; ``None``: as with restored scales,
            or ``True``.
        stored: settings of the restored scales, if there are any.

    Raises:
        ValueError: for a weight that is not of a term of the loss; lists the terms. If all terms
            have the weight 0.
    """
    stored = stored or Settings()
    weights = stored.loss_weights if weights is None else weights
    balance = stored.balance_loss if balance is None else balance
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
