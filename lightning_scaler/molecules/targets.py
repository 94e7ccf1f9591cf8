"""The layouts of the six targets of the embedded molecules, shared by the data and the model."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from metatensor.torch import Labels, TensorBlock, TensorMap


class MoleculesTarget(NamedTuple):
    """The layout of one target, and its conversion from a flat table of values.

    A table has one row per sample; its columns run over blocks, then components, then properties.

    Attributes:
        per_atom: Whether samples are `["system", "atom"]`; `["system"]` otherwise.
        keys: One key per block.
        components: The components of each block.
        properties: The properties, the same in all blocks.
    """

    per_atom: bool
    keys: Labels
    components: tuple[tuple[Labels, ...], ...]
    properties: Labels

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Shape of a sample in each block, `(*components, n_properties)`."""
        return [(*map(len, block), len(self.properties)) for block in self.components]

    def tensor_map(
        self, samples: Labels, table: torch.Tensor, gradient: "TensorBlock | None" = None
    ) -> TensorMap:
        """Build the target from its flat table, on the device of the table.

        Args:
            samples: Samples of the target, one per row.
            table: Values, `(n_samples, n_columns)`.
            gradient: Gradient with respect to the positions, for a target of a single block.
        """
        device = table.device
        properties = self.properties.to(device)
        widths = [math.prod(shape) for shape in self.shapes]
        blocks = []
        for shape, labels, columns in zip(
            self.shapes, self.components, table.split(widths, dim=1), strict=True
        ):
            components = [component.to(device) for component in labels]
            values = columns.reshape(len(table), *shape)
            blocks.append(TensorBlock(values, samples, components, properties))
        if gradient is not None:
            blocks[0].add_gradient("positions", gradient)
        return TensorMap(self.keys.to(device), blocks)


def _spherical(*degrees: int) -> tuple[Labels, tuple[tuple[Labels, ...], ...]]:
    """Keys and components of a target of proper spherical tensors, one block per degree."""
    keys = Labels(["o3_lambda", "o3_sigma"], torch.tensor([[degree, 1] for degree in degrees]))
    orders = [torch.arange(-degree, degree + 1).reshape(-1, 1) for degree in degrees]
    return keys, tuple((Labels(["o3_mu"], order),) for order in orders)


XYZ = Labels.range("xyz", 3)
_ONE_KEY = Labels.single()

TARGETS = {
    "energy": MoleculesTarget(False, _ONE_KEY, ((),), Labels.range("energy", 1)),
    "dipole": MoleculesTarget(False, _ONE_KEY, ((XYZ,),), Labels.range("dipole", 1)),
    "polarizability": MoleculesTarget(
        False, *_spherical(0, 2), properties=Labels.range("polarizability", 1)
    ),
    "charges": MoleculesTarget(True, _ONE_KEY, ((),), Labels.range("charge", 1)),
    "populations": MoleculesTarget(True, _ONE_KEY, ((),), Labels.range("orbital", 2)),
    "atomic_dipoles": MoleculesTarget(
        True, *_spherical(1), properties=Labels.range("atomic_dipole", 1)
    ),
}
"""Layouts of all targets, shared by the data and the model."""


def tensor_maps(
    n_atoms: Sequence[int], tables: Mapping[str, torch.Tensor], energy_gradient: torch.Tensor
) -> dict[str, TensorMap]:
    """Build every target of a batch from its flat table, on the device of the tables.

    Args:
        n_atoms: Number of atoms in each system.
        tables: Values by target name, `(n_systems, n_columns)` or `(n_atoms, n_columns)`.
        energy_gradient: Gradient of the energy with respect to the positions, `(n_atoms, 3)`.
    """
    device = energy_gradient.device
    structures, atoms, gradient_rows = (labels.to(device) for labels in sample_labels(n_atoms))
    targets = {}
    for name, target in TARGETS.items():
        gradient = None
        if name == "energy":
            xyz, properties = XYZ.to(device), target.properties.to(device)
            values = energy_gradient.unsqueeze(-1)
            gradient = TensorBlock(values, gradient_rows, [xyz], properties)
        rows = atoms if target.per_atom else structures
        targets[name] = target.tensor_map(rows, tables[name], gradient)
    return targets


def sample_labels(n_atoms: Sequence[int]) -> tuple[Labels, Labels, Labels]:
    """The samples of a batch, in which `system` is the position in the batch.

    Args:
        n_atoms: Number of atoms in each system.

    Returns:
        Samples of per-structure targets, of per-atom targets, and of gradients with respect to
        positions.
    """
    counts = torch.tensor(n_atoms, dtype=torch.int32)
    system = torch.arange(len(n_atoms), dtype=torch.int32)
    owner = system.repeat_interleave(counts)
    first = counts.cumsum(0, dtype=torch.int32) - counts
    atom = torch.arange(len(owner), dtype=torch.int32) - first[owner]
    return (
        Labels(["system"], system.unsqueeze(1), assume_unique=True),
        Labels(["system", "atom"], torch.stack([owner, atom], 1), assume_unique=True),
        Labels(["sample", "system", "atom"], torch.stack([owner, owner, atom], 1), True),
    )
