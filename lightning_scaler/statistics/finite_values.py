"""Values whose sum of squares is not finite."""

import math

import torch


def check_finite(where: str, values: torch.Tensor) -> None:
    """Refuse infinite values, and values whose squares overflow.

    Args:
        where: what the values are, for the message.
        values: values of one block or gradient in a batch, NaN where missing.

    Raises:
        ValueError: naming the place, and the way out.
    """
    n_infinite = int(torch.isinf(values).sum())
    if n_infinite:
        raise ValueError(
            f"{where}: expected finite numbers, or NaN for missing ones, got {n_infinite} infinite "
            "values in a batch; remove these structures or set the values to NaN; nothing is fitted"
        )
    largest = float(torch.nan_to_num(values.double()).abs().max()) if values.numel() else 0.0
    if not math.isfinite(largest * largest * values.numel()):
        raise ValueError(
            f"{where}: the sum of squares overflows, the largest absolute value is "
            f"{largest:.3e}; convert the target to a larger unit; nothing is fitted"
        )
