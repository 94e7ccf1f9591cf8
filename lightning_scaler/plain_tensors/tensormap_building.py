"""TensorMaps of declared targets, built from plain tensors.

All targets of a batch are built in one call of TorchScript: from Python it takes five times as
long, half of what the conversions of a training step take.
"""

from typing import NamedTuple

import torch
from metatensor.torch import Labels, TensorBlock, TensorMap
from torch import Tensor

from ..batches import Atoms, sample_values
from ..tensors import scripted
from .declared_targets import MATRIX, VECTOR, DeclaredTarget


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


class PlainTarget(NamedTuple):
    """The values and gradients of a target, with the labels of a TensorMap of one block.

    Attributes:
        keys: keys of the TensorMap, a single one.
        components: components of the values.
        properties: properties of the target.
        per_atom: whether it has a row for each atom, otherwise for each structure.
        values: values, ``(n_rows, *components, n_properties)``.
        parameters: parameter of each gradient.
        gradients: gradients, ``(n_rows, *gradient_components, *components, n_properties)``.
        gradient_components: components of each gradient that come before those of the values.
    """

    keys: Labels
    components: list[Labels]
    properties: Labels
    per_atom: bool
    values: Tensor
    parameters: list[str]
    gradients: list[Tensor]
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


@scripted
def build_tensormaps(targets: list[PlainTarget], rows: Rows) -> list[TensorMap]:
    """A TensorMap for each target.

    Args:
        targets: targets, all on the device of the rows.
        rows: samples of the batch.
    """
    built: list[TensorMap] = []
    for target in targets:
        samples = rows.atoms if target.per_atom else rows.structures
        block = TensorBlock(target.values, samples, target.components, target.properties)
        for i, parameter in enumerate(target.parameters):
            gradient = TensorBlock(
                target.gradients[i],
                rows.positions if parameter == "positions" else rows.strain,
                target.gradient_components[i] + target.components,
                target.properties,
            )
            block.add_gradient(parameter, gradient)
        built.append(TensorMap(target.keys, [block]))
    return built


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
    """The components of a gradient with respect to positions or strain."""
    known = _GRADIENT_COMPONENTS.get((parameter, device))
    if known is None:
        kind = VECTOR if parameter == "positions" else MATRIX
        known = [labels.to(device) for labels in cartesian_components(kind)]
        _GRADIENT_COMPONENTS[parameter, device] = known
    return known


def cartesian_components(kind: str) -> list[Labels]:
    """The components of vectors and matrices, none for others."""
    names = {VECTOR: ["xyz"], MATRIX: ["xyz_1", "xyz_2"]}.get(kind, [])
    return [Labels.range(name, 3) for name in names]
