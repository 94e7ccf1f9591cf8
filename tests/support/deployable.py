"""A small network with the interface of metatomic, what trains it, and systems for it."""

# ruff: noqa: UP006, UP035, UP045 (metatomic compares the annotations of `forward` with its own)

from typing import Dict, List, Optional

import metatensor.torch as mts
import torch
from builders import system
from lightning.pytorch import LightningModule
from metatensor.torch import Labels, TensorBlock, TensorMap
from metatomic.torch import (
    ModelOutput,
    NeighborListOptions,
    System,
    register_autograd_neighbors,
)
from vesin.metatomic import NeighborList, neighbor_lists_for_model

from lightning_scaler import TargetScalingMixin

CUTOFF = 4.0
# kcal/mol in eV: 4184 J / (6.02214076e23 · 1.602176634e-19 J)
EV = 0.0433641042418009

TARGETS = ("energy", "charges", "polarizability")
OUTPUTS = {"energy": "kcal/mol", "charges": "e", "polarizability": "bohr^3"}
MOLECULES = [(1, 8, 1), (6, 1, 1, 1, 1), (6, 8), (8, 6, 1, 1), (6, 6, 8, 1, 1, 1, 1, 1, 1)]
MOLECULES += [(8, 8), (6, 8, 8), (1, 6, 8), (6, 6, 1, 1), (8, 1, 8, 1)]
# kcal/mol
COMPOSITION = {1: -313.0, 6: -23720.0, 8: -47150.0}


class SmallNetwork(torch.nn.Module):
    """Smooth functions of the distances to the neighbors, for atoms of the types 1, 6 and 8.

    Energies are sums over the atoms; charges are per-atom; polarizabilities have blocks λ=0 and 2.
    """

    properties: Dict[str, Labels]

    def __init__(self, dtype: torch.dtype = torch.float64, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        numbers = torch.randn(9, 4, 3, generator=generator, dtype=torch.float64)
        self.weights = torch.nn.Parameter(numbers.to(dtype))
        self.options = NeighborListOptions(CUTOFF, full_list=True, strict=True)
        self.properties = {
            name: Labels.range("property", 1) for name in ("energy", "charges", "polarizability")
        }

    @torch.jit.export
    def requested_neighbor_lists(self) -> List[NeighborListOptions]:
        return [self.options]

    def forward(
        self,
        systems: List[System],
        outputs: Dict[str, ModelOutput],
        selected_atoms: Optional[Labels] = None,
    ) -> Dict[str, TensorMap]:
        scalars: List[torch.Tensor] = []
        tensors: List[torch.Tensor] = []
        rows: List[torch.Tensor] = []
        for i, one in enumerate(systems):
            neighbors = one.get_neighbor_list(self.options)
            center = neighbors.samples.column("first_atom").long()
            other = neighbors.samples.column("second_atom").long()
            vector = neighbors.values.squeeze(-1)
            distance = vector.square().sum(1, keepdim=True).sqrt()
            envelope = (1 - (distance / 4.0).square()).clamp(min=0.0).pow(3)
            types = one.types.long()
            weights = self.weights[types[center]] * self.weights[types[other]]
            features = torch.tanh(weights[:, 0] + weights[:, 1] * distance) * envelope
            of_atoms = torch.zeros_like(self.weights[types, 0]).index_add(0, center, features)
            of_atoms = of_atoms * self.weights[types, 2] + self.weights[types, 3]
            unit = vector / distance
            x, y, z = unit[:, 0], unit[:, 1], unit[:, 2]
            harmonics = torch.stack(
                [x * y, y * z, z * z - (x * x + y * y) / 2, x * z, (x * x - y * y) / 2], 1
            )
            harmonics = harmonics * features[:, :1]
            quadrupoles = torch.zeros_like(one.positions[:, :1]).expand(len(one), 5)
            scalars.append(of_atoms)
            tensors.append(quadrupoles.index_add(0, center, harmonics))
            atom = torch.arange(len(one), device=types.device)
            rows.append(torch.stack([torch.full_like(atom, i), atom], 1))
        scalar, tensor, row = torch.cat(scalars), torch.cat(tensors), torch.cat(rows)
        if selected_atoms is not None:
            chosen = torch.zeros([row.size(0)], dtype=torch.bool, device=row.device)
            for k in range(row.size(0)):
                chosen[k] = selected_atoms.position(row[k]) is not None
            scalar, tensor, row = scalar[chosen], tensor[chosen], row[chosen]
        result: Dict[str, TensorMap] = {}
        for name, output in outputs.items():
            per_atom = name == "charges" or output.sample_kind == "atom"
            columns = [scalar[:, :1]]
            if name == "charges":
                columns = [scalar[:, 1:2]]
            if name == "polarizability":
                columns = [scalar[:, 2:], tensor]
            samples = Labels(["system", "atom"], row)
            if not per_atom:
                samples = Labels(
                    "system", torch.arange(len(systems), device=row.device).unsqueeze(1)
                )
            blocks: List[TensorBlock] = []
            degrees: List[List[int]] = []
            for column in columns:
                if not per_atom:
                    totals = torch.zeros(
                        [len(systems), column.size(1)], dtype=column.dtype, device=column.device
                    )
                    column = totals.index_add(0, row[:, 0], column)
                components: List[Labels] = []
                if name == "polarizability":
                    degree = column.size(1) // 2
                    degrees.append([degree, 1])
                    order = torch.arange(-degree, degree + 1, device=row.device)
                    components.append(Labels("o3_mu", order.unsqueeze(1)))
                    column = column.unsqueeze(-1)
                properties = self.properties[name].to(row.device)
                blocks.append(TensorBlock(column, samples, components, properties))
            keys = Labels("_", torch.tensor([[0]], device=row.device))
            if name == "polarizability":
                keys = Labels(["o3_lambda", "o3_sigma"], torch.tensor(degrees, device=row.device))
            result[name] = TensorMap(keys, blocks)
        return result


def add_neighbors(systems: list[System], network: torch.nn.Module) -> list[System]:
    """Add the neighbor lists that a network or an exported model requests."""
    unit = None if hasattr(network, "capabilities") else "angstrom"
    for calculator in neighbor_lists_for_model("angstrom", network, unit):
        for one in systems:
            calculator.add_neighbor_list(one)
    return systems


def register_neighbors(system: System, options: NeighborListOptions) -> System:
    """Add a neighbor list as engines do: autograd follows its vectors to positions and cell."""
    plain = System(system.types, system.positions.detach(), system.cell.detach(), system.pbc)
    neighbors = NeighborList(options, length_unit="angstrom").compute(plain)
    register_autograd_neighbors(system, neighbors)
    system.add_neighbor_list(options, neighbors)
    return system


def molecules(*types: tuple[int, ...], seed: int = 0) -> list[System]:
    """Molecules at random positions, at least 0.9 Å between atoms."""
    generator = torch.Generator().manual_seed(seed)
    systems = []
    for of_atoms in types:
        grid = torch.tensor([[a % 2, a // 2 % 2, a // 4] for a in range(len(of_atoms))])
        noise = torch.rand(len(of_atoms), 3, generator=generator, dtype=torch.float64)
        systems.append(system(*of_atoms, positions=1.3 * grid.double() + 0.4 * noise))
    return systems


class Net(TargetScalingMixin, LightningModule):
    """Wraps the small network in float32 for training."""

    def __init__(self) -> None:
        super().__init__()
        self.network = SmallNetwork(torch.float32)

    def forward(self, systems) -> dict[str, TensorMap]:
        return self.network(list(systems), {name: ModelOutput() for name in TARGETS})

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 0.01)


def batches():
    """Ten batches of three molecules with total energies, charges and polarizabilities."""
    teacher = SmallNetwork(seed=1)
    for k in range(10):
        chosen = [MOLECULES[(3 * k + i) % len(MOLECULES)] for i in range(3)]
        systems = add_neighbors(molecules(*chosen, seed=k), teacher)
        with torch.no_grad():
            targets = teacher(systems, {name: ModelOutput() for name in TARGETS})
        energy = mts.multiply(targets["energy"], 5.0)
        totals = [[sum(COMPOSITION[z] for z in of)] for of in chosen]
        energy.block().values.add_(torch.tensor(totals, dtype=torch.float64))
        yield {"system": systems, **targets, "energy": energy}
