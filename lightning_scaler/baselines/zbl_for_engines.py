"""The ZBL nuclear repulsion in TorchScript, with the neighbor lists of a simulation engine."""

# ruff: noqa: UP006, UP035, UP045
# metatomic compares the annotations of `forward` with those of its interface.

from collections.abc import Sequence
from typing import Dict, List, Optional

import torch
from metatensor.torch import Labels, TensorBlock, TensorMap
from metatomic.torch import ModelOutput, NeighborListOptions, System
from torch import Tensor

from ..batches import neighbor_vectors, selected_samples


class ZBLForEngines(torch.nn.Module):
    """The repulsion of :class:`ZBL` with the interface of metatomic's models.

    Its table is a plain attribute, which no ``.to(dtype)`` rounds. Autograd can follow the energy
    back to positions and cells.

    Args:
        target: name of the energy.
        coulomb: e²/(4πε0) in Å times the unit of energy.
        radii: covalent radius of each atomic number from 0 on, in Å.
        types: all atomic numbers that can occur; they determine the cutoff.
    """

    radii: Tensor
    key: Labels
    properties: Labels

    def __init__(
        self, target: str, coulomb: float, radii: Sequence[float], types: Sequence[int]
    ) -> None:
        super().__init__()
        self.target = target
        self.coulomb = coulomb
        self.radii = torch.tensor(radii, dtype=torch.float64)
        # TorchScript cannot save static methods of Labels.
        self.key, self.properties = Labels.single(), Labels.range("energy", 1)
        self.cutoff = 2.0 * max(radii[z] for z in types)

    def forward(
        self,
        systems: List[System],
        outputs: Dict[str, ModelOutput],
        selected_atoms: Optional[Labels] = None,
    ) -> Dict[str, TensorMap]:
        """The repulsion of every system, in float64.

        Args:
            systems: systems with the requested neighbor list, in Å.
            outputs: requested targets; with ``sample_kind="atom"``, each atom has half of the
                energy of its pairs.
            selected_atoms: atoms whose energy counts, as samples ``["system", "atom"]``; ``None``:
                all.

        Returns:
            The energy under its name, or an empty dict if it is not requested.

        Raises:
            ValueError: if a system has no such neighbor list.
        """
        results: Dict[str, TensorMap] = {}
        if self.target not in outputs:
            return results
        positions = torch.cat([system.positions for system in systems]).double()
        if self.radii.device != positions.device:
            self.radii = self.radii.to(positions.device)
        types = torch.cat([system.types for system in systems]).long()
        options = self.requested_neighbor_lists()[0]
        first, second, vectors = neighbor_vectors(systems, positions, options)
        energy = pair_repulsion(
            types[first].double(),
            types[second].double(),
            self.radii[types[first]] + self.radii[types[second]],
            torch.linalg.vector_norm(vectors, dim=1),
            self.coulomb,
        )[0]
        of_atom = torch.zeros_like(positions[:, 0])
        of_atom = of_atom.index_add(0, first, 0.5 * energy).index_add(0, second, 0.5 * energy)
        n_atoms = [len(system) for system in systems]
        structures, samples, selected, row = selected_samples(n_atoms, selected_atoms)
        values = of_atom.index_select(0, selected.to(positions.device))
        if outputs[self.target].sample_kind != "atom":
            samples = structures
            zeros = torch.zeros(len(samples), dtype=values.dtype, device=values.device)
            values = zeros.index_add(0, row.to(values.device), values)
        no_components: List[Labels] = []
        block = TensorBlock(
            values.unsqueeze(1),
            samples.to(values.device),
            no_components,
            self.properties.to(values.device),
        )
        results[self.target] = TensorMap(self.key.to(values.device), [block])
        return results

    @torch.jit.export
    def requested_neighbor_lists(self) -> List[NeighborListOptions]:
        """Every pair within the largest sum of two radii, once."""
        return [NeighborListOptions(cutoff=self.cutoff, full_list=False, strict=True)]


def pair_repulsion(
    first: Tensor, second: Tensor, bond: Tensor, distance: Tensor, coulomb: float
) -> tuple[Tensor, Tensor]:
    """Energy of every pair of atoms and its derivative with respect to their distance.

    Args:
        first: atomic number of the first atom, ``(n_pairs,)`` float64.
        second: atomic number of the second atom.
        bond: sum of their covalent radii in Å, at which the energy becomes zero.
        distance: their distance in Å.
        coulomb: e²/(4πε0) in Å times the unit of energy.

    Returns:
        Two tensors ``(n_pairs,)``; TorchScript leaves the second one out where it is not used.
    """
    terms = [(0.18175, 3.19980), (0.50986, 0.94229), (0.28022, 0.40290), (0.02817, 0.20162)]
    # 0.8854 Bohr radii, in Å
    length = 0.46850 / (first**0.23 + second**0.23)
    screening = torch.zeros_like(distance)
    screening_slope = torch.zeros_like(distance)
    for coefficient, exponent in terms:
        term = coefficient * torch.exp(-exponent * distance / length)
        screening = screening + term
        screening_slope = screening_slope - term * (exponent / length)
    ratio = (distance / bond).clamp(max=1.0)
    envelope = 1.0 - 28.0 * ratio**6 + 48.0 * ratio**7 - 21.0 * ratio**8
    envelope_slope = -168.0 * ratio**5 * (1.0 - ratio).square() / bond
    bare = coulomb * first * second / distance
    slope = bare * (
        screening_slope * envelope + screening * envelope_slope - screening * envelope / distance
    )
    return bare * screening * envelope, slope
