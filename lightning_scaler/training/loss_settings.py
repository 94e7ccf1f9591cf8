"""The settings of the default loss, from the callback or from restored scales."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..scaling import Scaler
from ..settings import Settings, check_terms, did_you_mean, parse_loss_weights


def check_loss_settings(
    loss_weights: Any, balance_loss: Any, targets: Sequence[str] | None
) -> dict[str, float] | None:
    """Check the settings of the loss as far as possible without data.

    Args:
        loss_weights: weights by term, such as ``{"energy/positions": 4}``, or ``None``.
        balance_loss: whether terms are divided by their mean squares, or ``None``.
        targets: names of the targets to fit; ``None``: all.

    Returns:
        The weights as floats.

    Raises:
        TypeError: for a ``balance_loss`` that is not a bool.
        ValueError: for weights that are negative or not finite, or of targets not to be fitted.
    """
    if balance_loss is not None and not isinstance(balance_loss, bool):
        raise TypeError(f"balance_loss: expected True, False or None, got {balance_loss!r}")
    weights = parse_loss_weights(loss_weights)
    for term in weights or ():
        if targets is not None and not _is_term_of(term, targets):
            raise ValueError(
                f"loss_weights names '{term}', whose target is not in targets=[…]; "
                f"{did_you_mean(term.split('/')[0], targets)}"
            )
    return weights


def store_loss_settings(
    scaler: Scaler,
    restored: Settings | None,
    loss_weights: Mapping[str, float] | None,
    balance_loss: bool | None,
) -> None:
    """Store the settings of the loss in a fitted scaler.

    Unlike scales, weights may change when a training is resumed: those given now are used.

    Args:
        scaler: scaler with all its targets.
        restored: settings of the scales that the module had before, if they are kept.
        loss_weights: weights by term; ``None``: those of the restored settings, or none.
        balance_loss: whether to balance; ``None``: as in the restored settings, or ``True``.

    Raises:
        ValueError: for a weight that is not that of a term of the loss; lists the terms.
    """
    restored = restored or Settings()
    weights = restored.loss_weights if loss_weights is None else loss_weights
    balance = restored.balance_loss if balance_loss is None else balance_loss
    check_terms(weights, scaler.loss_terms)
    scaler.settings = replace(scaler.settings, loss_weights=dict(weights), balance_loss=balance)


def _is_term_of(term: str, targets: Iterable[str]) -> bool:
    return any(term == target or term.startswith(f"{target}/") for target in targets)
