"""TensorMaps of declared targets, built from plain tensors.

All targets of a batch are built in one call of TorchScript: from Python it takes five times as
long, half of what the conversions of a training step take.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from metatensor.torch import Labels, TensorBlock, TensorMap
from torch import Tensor

from ..batches import Atoms, sample_values
from ..tensors import TargetLayout, scripted
from .declared_targets import MATRIX, VECTOR
from .places import GRADIENT_SHAPES, Place


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


class Blocks(NamedTuple):
    """What of the blocks of some targets is the same in every batch, one after another.

    The block of each target comes before its gradients; every TensorMap has one block.

    Attributes:
        keys: keys of the TensorMap.
        parameters: ``""`` for a block, the parameter for a gradient.
        per_atom: whether there is a row for each atom, otherwise for each structure.
        components: components.
        properties: properties.
    """

    keys: list[Labels]
    parameters: list[str]
    per_atom: list[bool]
    components: list[list[Labels]]
    properties: list[Labels]


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


@scripted
def build_tensormaps(tensors: list[Tensor], blocks: Blocks, rows: Rows) -> list[TensorMap]:
    """A TensorMap for each target.

    Args:
        tensors: a tensor for each block, in its shape and on the device of the rows.
        blocks: labels of the blocks.
        rows: samples of the batch.
    """
    made: list[TensorBlock] = []
    for i, parameter in enumerate(blocks.parameters):
        samples = rows.structures
        if parameter == "positions":
            samples = rows.positions
        elif parameter == "strain":
            samples = rows.strain
        elif blocks.per_atom[i]:
            samples = rows.atoms
        block = TensorBlock(tensors[i], samples, blocks.components[i], blocks.properties[i])
        if parameter == "":
            made.append(block)
        else:
            made[-1].add_gradient(parameter, block)
    return [TensorMap(blocks.keys[i], [block]) for i, block in enumerate(made)]


# Not functools.cache, of which torch.compile warns. Batches may have ever other sets of targets.
MOST_SETS = 256
_BLOCKS: dict[tuple[tuple[Place, ...], torch.device], Blocks] = {}


def blocks_of(places: Sequence[Place], device: torch.device) -> Blocks:
    """The labels of the blocks of some targets.

    Args:
        places: for each target, the place of its values and then those of its gradients.
        device: device of the labels.
    """
    key = (*places,), device
    known = _BLOCKS.get(key)
    if known is None:
        if len(_BLOCKS) >= MOST_SETS:
            _BLOCKS.clear()
        known = _BLOCKS[key] = Blocks(
            [_keys_of(place).to(device) for place in places if not place.parameter],
            [place.parameter for place in places],
            [place.per_atom for place in places],
            [[labels.to(device) for labels in _components_of(place)] for place in places],
            [_properties_of(place).to(device) for place in places],
        )
    return known


def layouts_of(places: Mapping[str, Sequence[Place]]) -> dict[str, TargetLayout]:
    """The layouts of some targets by name, given the places of their values and gradients."""
    all_places = [place for of_target in places.values() for place in of_target]
    none = torch.zeros(0, dtype=torch.int64)
    tensors = [torch.zeros((0, *place.shape)) for place in all_places]
    blocks = blocks_of(all_places, none.device)
    without_rows = build_tensormaps(tensors, blocks, rows_of(Atoms.from_types(none, none)))
    return {n: TargetLayout.of(n, tensor) for n, tensor in zip(places, without_rows, strict=True)}


def _keys_of(place: Place) -> Labels:
    if not place.components.isdecimal():
        return Labels.single()
    return Labels(["o3_lambda", "o3_sigma"], torch.tensor([[int(place.components), 1]]))


def _components_of(place: Place) -> list[Labels]:
    gradient = {(): "", (3,): VECTOR, (3, 3): MATRIX}[GRADIENT_SHAPES.get(place.parameter, ())]
    axes = {VECTOR: ["xyz"], MATRIX: ["xyz_1", "xyz_2"]}
    names = axes.get(place.components, [])
    # The axes of a block need different names: those of the dipole and of its derivative.
    of_gradient = [f"{n}_gradient" if n in names else n for n in axes.get(gradient, [])]
    components = [Labels.range(name, 3) for name in of_gradient + names]
    if place.components.isdecimal():
        degree = int(place.components)
        components.append(Labels(["o3_mu"], torch.arange(-degree, degree + 1)[:, None]))
    return components


def _properties_of(place: Place) -> Labels:
    # Names of labels are ASCII identifiers, which names of targets need not be.
    name = "".join(c if c.isascii() and c.isalnum() else "_" for c in place.target)
    return Labels.range(name if name.isidentifier() else f"_{name}", place.shape[-1])
