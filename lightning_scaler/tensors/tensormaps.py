"""Read and rebuild ``TensorMap`` objects, values and gradients together."""

from collections.abc import Callable
from typing import Any

import torch
from metatensor.torch import Labels, TensorBlock, TensorMap

from .torchscript import values_and_gradients, with_values


def is_tensormap(value: Any) -> bool:
    """Whether ``value`` is a ``TensorMap`` (``isinstance`` raises on TorchScript classes)."""
    return _class_name(value) == "TensorMap"


def is_system(value: Any) -> bool:
    """Whether ``value`` is a metatomic ``System``."""
    return _class_name(value) == "System"


def _class_name(value: Any) -> str | None:
    script_class: Any = value._type() if isinstance(value, torch.ScriptObject) else None
    return None if script_class is None else str(script_class.name())


def dtype_of(tensor: TensorMap) -> torch.dtype:
    """The dtype of the values (``TensorMap.dtype`` is an integer in Python); float64 if empty."""
    return tensor.block_by_id(0).values.dtype if len(tensor.keys) else torch.float64


def describe(labels: Labels, row: int) -> str:
    """One entry of some labels in words: ``"o3_lambda=2, o3_sigma=1"``."""
    values = labels.values[row].tolist()
    return ", ".join(f"{name}={value}" for name, value in zip(labels.names, values, strict=True))


def block_with_samples(
    block: TensorBlock,
    values: torch.Tensor,
    samples: Labels,
    gradients: dict[str, torch.Tensor],
    gradient_samples: dict[str, Labels] | None = None,
) -> TensorBlock:
    """A new block with the components and properties of ``block`` and other samples.

    Args:
        block: gives components, properties and the labels of the gradients.
        values: ``(n_samples, *components, n_properties)``.
        samples: of the values.
        gradients: the values of each gradient of ``block``, by parameter name.
        gradient_samples: of the gradients, by parameter name; by default those of ``block``.
    """
    rebuild = TensorBlock(values, samples, block.components, block.properties)
    for name, values_of_gradient in gradients.items():
        gradient = block.gradient(name)
        rebuild.add_gradient(
            name,
            TensorBlock(
                values_of_gradient,
                gradient.samples if gradient_samples is None else gradient_samples[name],
                gradient.components,
                gradient.properties,
            ),
        )
    return rebuild


def map_blocks(
    tensor: TensorMap, function: Callable[[int, Labels, TensorBlock], TensorBlock]
) -> TensorMap:
    """A ``TensorMap`` with the keys of ``tensor`` and ``function(row, keys, block)`` as blocks."""
    keys = tensor.keys
    return TensorMap(
        keys, [function(row, keys, block) for row, block in enumerate(tensor.blocks())]
    )


def check_gradients(name: str, tensor: TensorMap) -> None:
    """Refuse gradients of gradients, which nothing here converts.

    Raises:
        NotImplementedError: naming the target, the block and the gradient.
    """
    for row, block in enumerate(tensor.blocks()):
        for parameter in block.gradients_list():
            inner = block.gradient(parameter).gradients_list()
            if inner:
                raise NotImplementedError(
                    f"target '{name}', block ({describe(tensor.keys, row)}): the gradient "
                    f"'{parameter}' has gradients of its own ({inner}); gradients of gradients are "
                    "not supported, give them as a target of their own"
                )


def mask_values(name: str, tensor: TensorMap, mask: TensorMap) -> list[torch.Tensor]:
    """For every block ``False`` where the mask leaves an entry out, in the shape of the values.

    Args:
        name: of the target, for the messages.
        tensor: the target.
        mask: same keys, samples and shapes; ``True`` (or 1) keeps an entry.

    Raises:
        ValueError: if keys, samples or shapes of the mask are not those of the target.
    """
    if mask.keys != tensor.keys:
        raise ValueError(
            f"mask of target '{name}': expected the keys of the target, {tensor.keys}, got "
            f"{mask.keys}"
        )
    kept = []
    for row, (block, keep) in enumerate(zip(tensor.blocks(), mask.blocks(), strict=True)):
        if keep.values.shape != block.values.shape or keep.samples != block.samples:
            raise ValueError(
                f"mask of target '{name}', block ({describe(tensor.keys, row)}): expected the "
                f"samples and shape {tuple(block.values.shape)} of the target, got "
                f"{tuple(keep.values.shape)}"
            )
        kept.append(keep.values.to(torch.bool))
    return kept


def apply_mask(name: str, tensor: TensorMap, mask: TensorMap) -> TensorMap:
    """A copy of ``tensor`` in which every entry that the mask leaves out is NaN (missing).

    Gradients are kept as they are. Arguments and errors as of :func:`mask_values`.
    """
    kept = mask_values(name, tensor, mask)
    values, gradients = values_and_gradients(tensor)
    masked = [torch.where(k, v, torch.nan) for k, v in zip(kept, values, strict=True)]
    return with_values(tensor, masked, gradients)
