"""Masks of targets: which of their values are not missing."""

import torch
from metatensor.torch import TensorMap
from torch import Tensor

from .tensormaps import describe, scripted_rebuild, values_and_gradients


def mask_values(name: str, tensor: TensorMap, mask: TensorMap) -> list[Tensor]:
    """The mask of every block as booleans, ``False`` for missing values.

    Args:
        name: name of the target, for messages.
        tensor: the target.
        mask: TensorMap with the keys, samples and shapes of the target; ``True`` (or 1) keeps a
            value.

    Raises:
        ValueError: if keys, samples or shapes of the mask differ from those of the target, or it
            has numbers other than 0 and 1.
    """
    if mask.keys != tensor.keys:
        raise ValueError(
            f"mask of target '{name}': expected the keys of the target, {tensor.keys}, got "
            f"{mask.keys}"
        )
    masks = []
    for index, (block, mask_block) in enumerate(zip(tensor.blocks(), mask.blocks(), strict=True)):
        same_samples = mask_block.samples == block.samples
        if mask_block.values.shape != block.values.shape or not same_samples:
            raise ValueError(
                f"mask of target '{name}', block ({describe(tensor.keys, index)}): expected the "
                f"samples and shape {tuple(block.values.shape)} of the target, got "
                f"{tuple(mask_block.values.shape)}{'' if same_samples else ' with other samples'}"
            )
        kept = mask_block.values
        if kept.dtype != torch.bool:
            where = f"mask of target '{name}', block ({describe(tensor.keys, index)})"
            _check_zeros_and_ones(where, kept)
        masks.append(kept.to(torch.bool))
    return masks


def _check_zeros_and_ones(where: str, values: Tensor) -> None:
    others = (values != 0) & (values != 1)
    if bool(others.any()):
        raise ValueError(
            f"{where}: expected True and False (or 1 and 0), got {int(others.sum())} other "
            f"numbers, such as {float(values[others][0]):.4g}; these are weights, which would be "
            "lost: use them in a compute_loss of your own, with no mask or a mask of values > 0"
        )


def apply_mask(name: str, tensor: TensorMap, mask: TensorMap) -> TensorMap:
    """A copy of a target with NaN where the mask is ``False``; gradients stay as they are.

    See :func:`mask_values` for arguments and errors.
    """
    masks = mask_values(name, tensor, mask)
    values, gradients = values_and_gradients(tensor)
    masked = [torch.where(k, v, torch.nan) for k, v in zip(masks, values, strict=True)]
    return scripted_rebuild(tensor, masked, gradients)
