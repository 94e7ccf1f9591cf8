"""TensorMaps of declared targets, built from plain tensors.

All targets of a batch are built in one call of TorchScript: from Python it takes five times as
long, half of what the conversions of a training step take.
"""

from typing import NamedTuple

import torch
from metatensor.torch import Labels, TensorBlock, TensorMap
from torch import Tensor

from ..tensors import scripted, scripted_arithmetic
from .atoms import Atoms
from .declared_targets import MATRIX, VECTOR, DeclaredTarget
from .engine import sample_values


class Rows(NamedTuple):
    """The samples of all targets of a batch, in which ``system`` is the position in the batch.

    Attributes:
        structures: samples of per-structure targets.
        atoms: samples of per-atom targets.
        positions: samples of gradients with respect to positions.
        strain: samples of gradients with respect to strain.
    """

    structures: Labels
    atoms: Labels
    positions: Labels
    strain: Labels


class PlainTensor(NamedTuple):
    """A tensor of the user's, and what it is in a block.

    Attributes:
        tensor: the tensor.
        per_atom: whether it has a row for each atom, otherwise for each structure.
        shape: shape of a row in the block, ``(*components, n_properties)``.
        sign: 1 or -1, by which the tensor is multiplied.
        scale: number for each structure by which it is multiplied too.
    """

    tensor: Tensor
    per_atom: bool
    shape: list[int]
    sign: int
    scale: Tensor | None


class PlainTarget(NamedTuple):
    """The tensors of a target, with the labels of a TensorMap of one block.

    Attributes:
        keys: keys of the TensorMap, a single one.
        components: components of the values.
        properties: properties of the target.
        parameters: ``""`` for the values, then the parameter of each gradient.
        tensors: values, then each gradient.
        gradient_components: components of each tensor that come before those of the values.
    """

    keys: Labels
    components: list[Labels]
    properties: Labels
    parameters: list[str]
    tensors: list[PlainTensor]
    gradient_components: list[list[Labels]]


def rows_of(atoms: Atoms) -> Rows:
    """The samples of a batch."""
    return Rows(*_rows_of(atoms.n_atoms, atoms.system_of_atom, atoms.first_atom))


@scripted
def _rows_of(n_atoms: Tensor, owner: Tensor, first_atom: Tensor) -> list[Labels]:
    """The labels of :class:`Rows`.

    Args:
        n_atoms: number of atoms of each structure, ``(n_structures,)``.
        owner: structure of each atom, ``(n_atoms,)``.
        first_atom: first atom of each structure, ``(n_structures,)``.
    """
    structures, atoms = sample_values(n_atoms, owner, first_atom)
    positions = torch.cat([atoms[:, :1], atoms], 1)
    # Not as a named tuple, for which TorchScript defines a new class in every call.
    return [
        Labels(["system"], structures, True),
        Labels(["system", "atom"], atoms, True),
        Labels(["sample", "system", "atom"], positions, True),
        Labels(["sample"], structures, True),
    ]


def in_shape(
    tensor: Tensor, n_rows: int, shape: list[int], n_atoms: Tensor | None
) -> Tensor | None:
    """A tensor in the shape ``(n_rows, *shape)``; ``None`` if it has another one.

    The last axis may be absent if there is one property, all of them for a single number. A tensor
    of structures of equal size may be ``(n_structures, n_atoms, ...)``, and a matrix ``(n_rows,
    6)``, in the order of Voigt as in ASE: xx, yy, zz, yz, xz, xy.

    Args:
        tensor: tensor of the user's.
        n_rows: number of rows of the block.
        shape: shape of a row in the block, ``(*components, n_properties)``.
        n_atoms: number of atoms of each structure, for a tensor with a row for each atom.
    """
    wanted = [n_rows] + shape  # noqa: RUF005 - TorchScript knows no stars
    own_shape = list(tensor.shape)
    if own_shape == wanted:
        return tensor
    if shape[-1] == 1 and own_shape == wanted[:-1]:
        return tensor.unsqueeze(-1)
    if tensor.dim() == 0 and n_rows == 1 and bool((torch.tensor(shape) == 1).all()):
        return tensor.reshape(wanted)
    if n_atoms is not None and tensor.dim() > 1:
        tail = own_shape[2:]
        same_tail = tail == shape or (shape[-1] == 1 and tail == shape[:-1])
        if (
            same_tail
            and tensor.size(0) == n_atoms.size(0)
            and bool((n_atoms == tensor.size(1)).all())
        ):
            return tensor.reshape(wanted)
    if n_atoms is None and shape == [3, 3, 1] and own_shape == [n_rows, 6]:
        return tensor[:, [0, 5, 4, 5, 1, 3, 4, 3, 2]].reshape(wanted)
    return None


def _in_block(one: PlainTensor, n_rows: int, n_atoms: Tensor) -> Tensor | None:
    """A tensor in the shape of its block, times its factor."""
    values = in_shape(one.tensor, n_rows, one.shape, n_atoms if one.per_atom else None)
    if values is None:
        return None
    if one.sign < 0:
        values = -values
    scale = one.scale
    if scale is not None:
        scale = scale.to(values)
        while scale.dim() < values.dim():
            scale = scale.unsqueeze(-1)
        values = values * scale
    return values


@scripted_arithmetic
def build_tensormaps(
    targets: list[PlainTarget], rows: Rows, n_atoms: Tensor
) -> tuple[list[TensorMap], int]:
    """A TensorMap for each target.

    Args:
        targets: targets, all on the device of the rows.
        rows: samples of the batch.
        n_atoms: number of atoms of each structure, ``(n_structures,)``.

    Returns:
        The TensorMaps. If a tensor has another shape than expected, those of the targets before
        it, and its index in its target.
    """
    built: list[TensorMap] = []
    for target in targets:
        values: list[Tensor] = []
        dtype = target.tensors[0].tensor.dtype
        for i, one in enumerate(target.tensors):
            n_rows = len(rows.atoms) if one.per_atom else len(rows.structures)
            in_block = _in_block(one, n_rows, n_atoms)
            if in_block is None:
                return built, i
            values.append(in_block)
            dtype = torch.promote_types(dtype, one.tensor.dtype)
        samples = rows.atoms if target.tensors[0].per_atom else rows.structures
        block = TensorBlock(values[0].to(dtype), samples, target.components, target.properties)
        for i, parameter in enumerate(target.parameters):
            if i > 0:
                gradient = TensorBlock(
                    values[i].to(dtype),
                    rows.positions if parameter == "positions" else rows.strain,
                    target.gradient_components[i] + target.components,
                    target.properties,
                )
                block.add_gradient(parameter, gradient)
        built.append(TensorMap(target.keys, [block]))
    return built, 0


# Not functools.cache, of which torch.compile warns.
_LABELS: dict[tuple[str, str, int, torch.device], tuple[Labels, list[Labels], Labels]] = {}
_GRADIENT_COMPONENTS: dict[tuple[str, torch.device], list[Labels]] = {}


def labels_of(
    name: str, components: str, n_properties: int, device: torch.device
) -> tuple[Labels, list[Labels], Labels]:
    """Keys, components and properties of a target.

    Args:
        name: name of the target, and of its properties.
        components: ``""``, ``"xyz"``, ``"matrix"`` or the degree of a spherical tensor.
        n_properties: number of properties.
        device: device of the labels.
    """
    known = _LABELS.get((name, components, n_properties, device))
    if known is not None:
        return known
    keys, found = Labels.single(), cartesian_components(components)
    if components.isdecimal():
        degree = int(components)
        keys = Labels(["o3_lambda", "o3_sigma"], torch.tensor([[degree, 1]]))
        found = [Labels(["o3_mu"], torch.arange(-degree, degree + 1)[:, None])]
    # Names of labels are ASCII identifiers, which names of targets need not be.
    property_name = "".join(c if c.isascii() and c.isalnum() else "_" for c in name)
    if not property_name.isidentifier():
        property_name = f"_{property_name}"
    properties = Labels.range(property_name, n_properties)
    on_device = keys.to(device), [labels.to(device) for labels in found], properties.to(device)
    _LABELS[name, components, n_properties, device] = on_device
    return on_device


def kind_of_components(target: DeclaredTarget) -> str:
    """The components of a target in one word, for :func:`labels_of`."""
    if isinstance(target.components, (str, type(None))):
        return target.components or ""
    return str(target.components["spherical"])


def gradient_components(parameter: str, device: torch.device) -> list[Labels]:
    """The components of a gradient with respect to positions or strain; none for ``""``."""
    known = _GRADIENT_COMPONENTS.get((parameter, device))
    if known is None:
        kind = {"positions": VECTOR, "strain": MATRIX}.get(parameter, "")
        known = [labels.to(device) for labels in cartesian_components(kind)]
        _GRADIENT_COMPONENTS[parameter, device] = known
    return known


def cartesian_components(kind: str) -> list[Labels]:
    """The components of vectors and matrices, none for others."""
    names = {VECTOR: ["xyz"], MATRIX: ["xyz_1", "xyz_2"]}.get(kind, [])
    return [Labels.range(name, 3) for name in names]
