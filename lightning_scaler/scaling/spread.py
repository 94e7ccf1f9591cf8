"""Checks of spreads and variances before they are converted."""

from collections.abc import Mapping

from metatensor.torch import TensorMap

from ..tensors import describe


def check_spreads(tensors: Mapping[str, TensorMap], variance: bool) -> None:
    """Refuse negative spreads or variances; missing ones (NaN) are accepted.

    Args:
        tensors: spreads or variances by target name.
        variance: whether they are variances, for the message.

    Raises:
        ValueError: naming the target and the block.
    """
    what = "variances" if variance else "spreads"
    for name, tensor in tensors.items():
        for index, block in enumerate(tensor.blocks()):
            negative = block.values < 0.0
            if bool(negative.any()):
                raise ValueError(
                    f"target '{name}', block ({describe(tensor.keys, index)}): expected {what} of "
                    f"at least 0, got {int(negative.sum())} that are negative; values and "
                    "differences are converted with Scaler.convert"
                )
