"""What the data and the model share: the layouts of the six targets, and the neighbor list."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from metatensor.torch import Labels, TensorBlock, TensorMap
from metatomic.torch import NeighborListOptions

from ..batches import sample_labels


class MoleculesTarget(NamedTuple):
    """The layout of one target.

    Attributes:
        per_atom: Whether samples are `["system", "atom"]`; `["system"]` otherwise.
        keys: One key per block.
        components: The components of each block.
        properties: The properties, the same in all blocks.
    """

    per_atom: bool
    keys: Labels
    components: list[list[Labels]]
    properties: Labels


def _spherical(*degrees: int) -> tuple[Labels, list[list[Labels]]]:
    """Keys and components of a target of proper spherical tensors, one block per degree."""
    keys = Labels(["o3_lambda", "o3_sigma"], torch.tensor([[degree, 1] for degree in degrees]))
    orders = [torch.arange(-degree, degree + 1).reshape(-1, 1) for degree in degrees]
    return keys, [[Labels(["o3_mu"], order)] for order in orders]


_ONE_KEY = Labels.single()

TARGETS = {
    "energy": MoleculesTarget(False, _ONE_KEY, [[]], Labels.range("energy", 1)),
    "dipole": MoleculesTarget(
        False, _ONE_KEY, [[Labels.range("xyz", 3)]], Labels.range("dipole", 1)
    ),
    "polarizability": MoleculesTarget(
        False, *_spherical(0, 2), properties=Labels.range("polarizability", 1)
    ),
    "charges": MoleculesTarget(True, _ONE_KEY, [[]], Labels.range("charge", 1)),
    "populations": MoleculesTarget(True, _ONE_KEY, [[]], Labels.range("orbital", 2)),
    "atomic_dipoles": MoleculesTarget(
        True, *_spherical(1), properties=Labels.range("atomic_dipole", 1)
    ),
}
"""Layouts of all targets, shared by the data and the model."""


def neighbor_list_options(cutoff: float) -> NeighborListOptions:
    """The neighbor list of datasets and models: every ordered pair within `cutoff`."""
    return NeighborListOptions(cutoff=cutoff, full_list=True, strict=True)


def tensor_maps(
    n_atoms: list[int], tables: Mapping[str, torch.Tensor], energy_gradient: torch.Tensor
) -> dict[str, TensorMap]:
    """Build every target of a batch from its flat table.

    Args:
        n_atoms: Number of atoms in each system.
        tables: Values by target name, `(n_systems, n_columns)` or `(n_atoms, n_columns)`.
        energy_gradient: Gradient of the energy with respect to the positions, `(n_atoms, 3)`.
    """
    structures, atoms = sample_labels(n_atoms)
    targets = {
        name: tensor_map(
            atoms if target.per_atom else structures,
            tables[name],
            target.keys,
            target.components,
            target.properties,
        )
        for name, target in TARGETS.items()
    }
    targets["energy"] = add_positions_gradient(targets["energy"], atoms, energy_gradient)
    return targets


def add_positions_gradient(tensor: TensorMap, atoms: Labels, gradient: torch.Tensor) -> TensorMap:
    """Add the gradient with respect to the positions to a per-structure target of one block.

    Args:
        tensor: The target; its values are not copied.
        atoms: Samples `["system", "atom"]` of all atoms of the batch.
        gradient: `(n_atoms, 3)`.
    """
    device, block = gradient.device, tensor.block()
    atoms = atoms.to(device)
    rows = torch.cat([atoms.values[:, :1], atoms.values], dim=1)
    samples = Labels(["sample", "system", "atom"], rows, assume_unique=True)
    xyz = Labels.range("xyz", 3).to(device)
    with_gradient = TensorBlock(block.values, block.samples, block.components, block.properties)
    with_gradient.add_gradient(
        "positions", TensorBlock(gradient.unsqueeze(-1), samples, [xyz], block.properties)
    )
    return TensorMap(tensor.keys, [with_gradient])


def tensor_map(
    samples: Labels,
    table: torch.Tensor,
    keys: Labels,
    components: list[list[Labels]],
    properties: Labels,
) -> TensorMap:
    """Build a target from its flat table, on the device of the table; TorchScript compiles this.

    Args:
        samples: Samples of the target, one per row.
        table: Values, `(n_samples, n_columns)`; columns run over blocks, then components, then
            properties.
        keys: One key per block.
        components: The components of each block.
        properties: The properties, the same in all blocks.
    """
    samples, properties = samples.to(table.device), properties.to(table.device)
    blocks: list[TensorBlock] = []
    first = 0
    for labels in components:
        shape = [len(table)]
        width = len(properties)
        for component in labels:
            shape.append(len(component))
            width *= len(component)
        shape.append(len(properties))
        values = table[:, first : first + width].reshape(shape)
        axes = [component.to(table.device) for component in labels]
        blocks.append(TensorBlock(values, samples, axes, properties))
        first += width
    return TensorMap(keys.to(table.device), blocks)
