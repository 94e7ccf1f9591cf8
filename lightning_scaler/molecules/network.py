"""A small O(3)-equivariant network for all targets of the embedded molecules."""

# ruff: noqa: UP006, UP035, UP045
# metatomic compares the annotations of `forward` with those of its interface.

from typing import Dict, List, Optional

import torch
from e3nn.o3 import Irreps, Linear
from metatensor.torch import Labels, TensorMap
from metatomic.torch import ModelOutput, NeighborListOptions, System
from torch import Tensor, nn

from ..batches import neighbor_vectors, selected_samples
from .interaction import (
    HARMONICS,
    Edges,
    Interaction,
    radial_functions,
    spherical_harmonics,
    sum_by_owner,
)
from .targets import TARGETS, neighbor_list_options, tensor_map

READOUTS = {"energy": "0e", "dipole": "0e + 1o", "polarizability": "0e + 2e", "charges": "0e"}
READOUTS |= {"populations": "2x0e", "atomic_dipoles": "1o"}  # the scalar of a dipole is a charge


class MoleculesNetwork(nn.Module):
    """A message-passing network with scalars, vectors and second-rank tensors on the atoms.

    Energy, dipole and polarizability are sums over atoms. Outputs are in model space, of order one
    before training. The network has the interface of metatomic's models and compiles with
    TorchScript: training and simulation engines call the same code.

    Args:
        channels: Number of scalars, of vectors and of tensors on each atom.
        layers: Number of message-passing rounds.
        cutoff: Cutoff of the neighbor lists in Å.
        n_radial: Number of radial functions.
        n_types: Number of atomic types; they run from 0 to `n_types - 1`.
    """

    per_atom: dict[str, bool]
    keys: dict[str, Labels]
    components: dict[str, list[list[Labels]]]
    properties: dict[str, Labels]

    def __init__(
        self, channels: int, layers: int, cutoff: float, n_radial: int, n_types: int
    ) -> None:
        super().__init__()
        self.cutoff = float(cutoff)
        self.n_radial = n_radial
        self.interaction_range = layers * self.cutoff
        self.per_atom = {name: target.per_atom for name, target in TARGETS.items()}
        self.keys = {name: target.keys for name, target in TARGETS.items()}
        self.components = {name: target.components for name, target in TARGETS.items()}
        self.properties = {name: target.properties for name, target in TARGETS.items()}
        self.embedding = nn.Embedding(n_types, channels)
        hidden = Irreps([(channels, ir) for _, ir in HARMONICS])
        inputs = [hidden[:1], *[hidden] * (layers - 1)]
        self.layers = nn.ModuleList(Interaction(irreps, hidden, n_radial) for irreps in inputs)
        self.readouts = nn.ModuleDict({k: Linear(hidden, irreps) for k, irreps in READOUTS.items()})

    def forward(
        self,
        systems: List[System],
        outputs: Dict[str, ModelOutput],
        selected_atoms: Optional[Labels] = None,
    ) -> Dict[str, TensorMap]:
        """Predict the requested targets, in model space; autograd can follow them to the systems.

        Args:
            systems: Systems with the requested neighbor list, in Å.
            outputs: Requested targets. With `sample_kind="atom"`, sums over atoms are replaced by
                the contribution of each atom.
            selected_atoms: Atoms that contribute to the outputs, as samples `["system", "atom"]`;
                `None`: all. All atoms are neighbors of them.

        Raises:
            ValueError: If a system has no such neighbor list.
        """
        positions = torch.cat([system.positions for system in systems])
        return self.predict(systems, positions, outputs, selected_atoms)

    def predict(
        self,
        systems: list[System],
        positions: Tensor,
        outputs: dict[str, ModelOutput],
        selected_atoms: Optional[Labels],
    ) -> dict[str, TensorMap]:
        """Predict as `forward` does, with positions `(n_atoms, 3)` in place of those of systems."""
        n_atoms = [len(system) for system in systems]
        structures, atoms, selected, row = selected_samples(n_atoms, selected_atoms)
        selected, row = selected.to(positions.device), row.to(positions.device)
        results: dict[str, TensorMap] = {}
        for name, contributions in self._atomic_tables(systems, outputs, positions).items():
            table = contributions.index_select(0, selected)
            per_atom = self.per_atom[name] or outputs[name].sample_kind == "atom"
            results[name] = tensor_map(
                atoms if per_atom else structures,
                table if per_atom else sum_by_owner(table, row, len(structures)),
                self.keys[name],
                self.components[name],
                self.properties[name],
            )
        return results

    @torch.jit.export
    def requested_neighbor_lists(self) -> list[NeighborListOptions]:
        """Every ordered pair within the cutoff."""
        return [neighbor_list_options(self.cutoff)]

    def _atomic_tables(
        self, systems: list[System], outputs: dict[str, ModelOutput], positions: Tensor
    ) -> dict[str, Tensor]:
        """The contribution of each atom to each target, `(n_atoms, n_columns)`."""
        options = self.requested_neighbor_lists()[0]
        center, neighbor, vectors = neighbor_vectors(systems, positions, options)
        features = types = self.embedding(torch.cat([system.types for system in systems]).int())
        lengths = torch.linalg.vector_norm(vectors, dim=1)
        # Atoms in the same place have no direction.
        harmonics = spherical_harmonics(vectors / lengths.clamp(min=1e-12).unsqueeze(1))
        radial = radial_functions(lengths, self.cutoff, self.n_radial)
        edges = Edges(center, neighbor, harmonics.to(features), radial.to(features))
        for layer in self.layers:
            features = layer(features, types, edges)
        tables: dict[str, Tensor] = {}
        for name, readout in self.readouts.items():
            if name in outputs:
                tables[name] = readout(features).to(positions)
        if "dipole" in tables:
            charge, dipole = tables["dipole"].split([1, 3], dim=1)
            centered = positions - _centroids(systems, positions)
            tables["dipole"] = charge * centered + dipole[:, [2, 0, 1]]  # from y z x
        return tables


def _centroids(systems: list[System], positions: Tensor) -> Tensor:
    """The centroid of the system of each atom, `(n_atoms, 3)`."""
    n_atoms = torch.tensor([len(system) for system in systems])
    owner = torch.arange(len(systems)).repeat_interleave(n_atoms).to(positions.device)
    n_atoms = n_atoms.unsqueeze(1).to(positions.device)
    return (sum_by_owner(positions, owner, len(systems)) / n_atoms)[owner]
