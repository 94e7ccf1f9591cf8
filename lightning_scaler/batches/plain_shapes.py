"""The shapes of plain tensors in words, and the way back to them."""

import math

from torch import Tensor

from .plain_tensormaps import PlainTensor

# Components of a symmetric matrix in the order of Voigt, as in ASE: xx, yy, zz, yz, xz, xy.
TO_VOIGT = [0, 4, 8, 5, 2, 1]


def restore_shape(values: Tensor, like: Tensor) -> Tensor:
    """Values of a block in the shape that the user gave."""
    if values.numel() != like.numel():
        values = values.reshape(-1, 9)[:, TO_VOIGT]
    return values.reshape(like.shape)


def describe_shape(one: PlainTensor, n_rows: int) -> str:
    """The shape that is expected of a tensor, the shape that it has, and what to do about it."""
    n_properties, components = one.shape[-1], one.shape[:-1]
    rows = f"n_{'atoms' if one.per_atom else 'structures'}={n_rows}"
    sizes = ", ".join([rows, *map(str, components)])
    expected = f"({sizes}, {n_properties})"
    if n_properties == 1:
        expected = f"({sizes}{'' if components else ','}) or {expected}"
    shape = tuple(one.tensor.shape)
    return f"expected the shape {expected}, got {shape}{_advice(one, n_rows)}"


def _advice(one: PlainTensor, n_rows: int) -> str:
    shape, components = list(one.tensor.shape), one.shape[:-1]
    if len(shape) > 1 and shape[0] == n_rows:
        rest = shape[1:-1] if shape[-1] == 1 else shape[1:]
        ways = []
        if not components and rest == [3]:
            ways.append("components='xyz' for a vector")
        if not components and rest == [3, 3]:
            ways.append("components='matrix' for a matrix")
        if not components and len(rest) == 1 and rest[0] % 2 and rest[0] > 1:
            ways.append(f"components={{'spherical': {rest[0] // 2}}} for a spherical tensor")
        if shape[1:-1] == components:
            ways.append(f"properties={shape[-1]} for {shape[-1]} properties")
        if ways:
            return f"; declare {', or '.join(ways)}"
    if one.tensor.numel() == n_rows * math.prod(one.shape):
        return (
            "; it has as many numbers as expected: if collating joined the tensors of all "
            f"structures, give each the shape {(1, *components)} where samples are made, otherwise "
            "reshape it"
        )
    return ""
