"""A check that predicted gradients have the sign that their declaration says."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from metatensor.torch import TensorMap
from torch import Tensor

# Relative difference up to which two gradients are the same.
SAME = 1e-3


def warn_of_opposite_signs(predictions: Mapping[str, TensorMap]) -> None:
    """Warn of predicted gradients that are minus the derivative of the predicted values.

    This can be seen where values and gradients come from one computation with positions that
    require a gradient.

    Args:
        predictions: predictions of a network by target name, in model space.
    """
    for name, tensor in predictions.items():
        block = tensor.block_by_id(0)
        if "positions" not in block.gradients_list() or block.values.grad_fn is None:
            continue
        given = block.gradient("positions").values.detach().sum(-1)
        for leaf in _leaves(block.values.grad_fn):
            if leaf.shape != given.shape or isinstance(leaf, torch.nn.Parameter):
                continue
            derivative = _derivative(block.values, leaf)
            if derivative is not None and _are_opposite(given, derivative.to(given)):
                rank_zero_warn(
                    f"target '{name}': the predicted gradient 'positions' is minus the derivative "
                    "of the predicted values; forces are minus the gradient, so declare them with "
                    "a minus: gradients={'positions': '-forces'}, or, if only forward returns the "
                    "gradient itself, with the address prediction='+…'"
                )


def _derivative(values: Tensor, leaf: Tensor) -> Tensor | None:
    try:
        return torch.autograd.grad(values.sum(), leaf, retain_graph=True, allow_unused=True)[0]
    except RuntimeError:  # the graph has been freed
        return None


def _are_opposite(first: Tensor, second: Tensor) -> bool:
    size = second.norm()
    return bool(size > 0) and bool((first + second).norm() < SAME * size)


def _leaves(node: Any) -> Iterator[Tensor]:
    """The tensors that require a gradient at the ends of a graph of autograd."""
    seen, waiting = {node}, [node]
    while waiting:
        current = waiting.pop()
        if hasattr(current, "variable"):
            yield current.variable
        for following, _ in current.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                waiting.append(following)
