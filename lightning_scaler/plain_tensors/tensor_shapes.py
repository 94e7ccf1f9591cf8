"""The shapes of plain tensors: as they are in a block, back to what they were, and in words."""

import math
from collections.abc import Sequence

from torch import Tensor

# Components of a symmetric matrix in the order of Voigt, as in ASE: xx, yy, zz, yz, xz, xy.
TO_VOIGT = [0, 4, 8, 5, 2, 1]
FROM_VOIGT = [0, 5, 4, 5, 1, 3, 4, 3, 2]


def in_shape(
    tensor: Tensor, n_rows: int, shape: tuple[int, ...], n_atoms: Tensor | None
) -> Tensor | None:
    """A tensor in the shape ``(n_rows, *shape)``; ``None`` if it has another one.

    The last axis may be absent if there is one property, all of them for a single number. A tensor
    of structures of equal size may be ``(n_structures, n_atoms, ...)``, and a matrix ``(n_rows,
    6)``, in the order of Voigt as in ASE.

    Args:
        tensor: tensor of the user's.
        n_rows: number of rows of the block.
        shape: shape of a row in the block, ``(*components, n_properties)``.
        n_atoms: number of atoms of each structure, for a tensor with a row for each atom.
    """
    own, wanted = tuple(tensor.shape), (n_rows, *shape)
    if own == wanted:
        return tensor
    if shape[-1] == 1 and own == wanted[:-1]:
        return tensor.unsqueeze(-1)
    if not own and math.prod(wanted) == 1:
        return tensor.reshape(wanted)
    if n_atoms is None:
        if shape == (3, 3, 1) and own == (n_rows, 6):
            return tensor[:, FROM_VOIGT].reshape(wanted)
        return None
    same_tail = own[2:] == shape or (shape[-1] == 1 and own[2:] == shape[:-1])
    is_table = len(own) > 1 and own[0] == n_atoms.numel() and same_tail
    if is_table and bool((n_atoms == own[1]).all()):
        return tensor.reshape(wanted)
    return None


def restore_shape(values: Tensor, like: Tensor) -> Tensor:
    """Values of a block in the shape that the user gave."""
    if values.numel() != like.numel():
        values = values.reshape(-1, 9)[:, TO_VOIGT]
    return values.reshape(like.shape)


def describe_shape(
    tensor: Tensor, n_atoms: Tensor, shape: Sequence[int], per_atom: bool, is_gradient: bool
) -> str:
    """The shape that is expected of a tensor, the shape that it has, and what to do about it.

    Args:
        tensor: tensor of the user's.
        n_atoms: number of atoms of each structure.
        shape: shape of a row in the block, ``(*components, n_properties)``.
        per_atom: whether there is a row for each atom, otherwise for each structure.
        is_gradient: whether it is a gradient of the target, whose rows cannot be declared.
    """
    *components, n_properties = shape
    counts = n_atoms.numel(), int(n_atoms.sum())
    n_rows, n_others = counts[::-1] if per_atom else counts
    rows = f"n_{'atoms' if per_atom else 'structures'}={n_rows}"
    sizes = ", ".join([rows, *map(str, components)])
    expected = f"({sizes}, {n_properties})"
    if n_properties == 1:
        expected = f"({sizes}{'' if components else ','}) or {expected}"
    advice = _advice(tensor, n_rows, components, n_properties)
    rows_of = [[*components, n_properties], components if n_properties == 1 else None]
    own = list(tensor.shape)
    if not advice and not is_gradient and own[:1] == [n_others] and own[1:] in rows_of:
        advice = "; it has a row for each structure: declare PerStructure(...)"
        if not per_atom:
            advice = (
                "; it has a row for each atom: declare PerAtom(...), or sum over the atoms of each "
                "structure"
            )
    padded = [counts[0], int(n_atoms.max())] if counts[0] else []
    if not advice and per_atom and own[:2] == padded and own[2:] in rows_of:
        advice = "; leave out the padding: give the rows of all structures one after another"
    return f"expected the shape {expected}, got {tuple(tensor.shape)}{advice}"


def _advice(tensor: Tensor, n_rows: int, components: list[int], n_properties: int) -> str:
    shape = list(tensor.shape)
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
    if tensor.numel() == n_rows * math.prod(components) * n_properties:
        return (
            "; it has as many numbers as expected: if collating joined the tensors of all "
            f"structures, give each the shape {(1, *components)} where samples are made, otherwise "
            "reshape it"
        )
    return ""
