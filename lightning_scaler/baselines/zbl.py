"""Repulsion of nuclei at short range, an additive module ready for use."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from metatensor.torch import Labels, TensorBlock, TensorMap
from metatomic.torch import System
from typing_extensions import override
from vesin import NeighborList

COULOMB = 14.399645  # e²/(4πε0) in eV Å (CODATA 2018)
SCREENING_LENGTH = 0.46850  # Å, 0.8854 Bohr radii
COEFFICIENTS = (0.18175, 0.50986, 0.28022, 0.02817)
EXPONENTS = (3.19980, 0.94229, 0.40290, 0.20162)

# Å, from hydrogen on: B. Cordero et al., Dalton Trans. 2008, 2832, table 2 (carbon sp3; Mn, Fe and
# Co low spin).
COVALENT_RADII = (
    *(0.31, 0.28, 1.28, 0.96, 0.84, 0.76, 0.71, 0.66, 0.57, 0.58, 1.66, 1.41, 1.21, 1.11, 1.07),
    *(1.05, 1.02, 1.06, 2.03, 1.76, 1.70, 1.60, 1.53, 1.39, 1.39, 1.32, 1.26, 1.24, 1.32, 1.22),
    *(1.22, 1.20, 1.19, 1.20, 1.20, 1.16, 2.20, 1.95, 1.90, 1.75, 1.64, 1.54, 1.47, 1.46, 1.42),
    *(1.39, 1.45, 1.44, 1.42, 1.39, 1.39, 1.38, 1.39, 1.40, 2.44, 2.15, 2.07, 2.04, 2.03, 2.01),
    *(1.99, 1.98, 1.98, 1.96, 1.94, 1.92, 1.92, 1.89, 1.90, 1.87, 1.87, 1.75, 1.70, 1.62, 1.51),
    *(1.44, 1.41, 1.36, 1.36, 1.32, 1.45, 1.46, 1.48, 1.40, 1.50, 1.50, 2.60, 2.21, 2.15, 2.06),
    *(2.00, 1.96, 1.90, 1.87, 1.80, 1.69),
)


class ZBL(torch.nn.Module):
    r"""Screened repulsion of nuclei (Ziegler, Biersack and Littmark), zero from the bond length on.

    .. math::

        V(r) = \frac{e^2}{4 \pi \epsilon_0} \frac{Z_i Z_j}{r} \, \phi(r / a) \, f(r / r_c), \qquad
        a = \frac{0.4685\,\text{Å}}{Z_i^{0.23} + Z_j^{0.23}}

    with :math:`r_c` the sum of the covalent radii and :math:`f` a polynomial that goes to zero with
    two derivatives. It keeps atoms apart where there are no data, as in close contacts of a
    simulation. Bonds shorter than a single bond lie within its reach: on molecules near their
    minima, what is left of energies and forces may be larger than before.

    Sources: J. F. Ziegler, J. P. Biersack, U. Littmark, The Stopping and Range of Ions in Matter,
    1985; J. Gasteiger et al., Directional Message Passing for Molecular Graphs, 2020, eq. 8 (f).

    Args:
        target: the name of the energy; per-structure, a single property.
        energy_unit: the unit of that energy in eV. Positions are in Å, types are atomic numbers.

    Example:
        >>> repulsion = ZBL()
        >>> cell, pbc = torch.zeros(3, 3).double(), torch.tensor([False] * 3)
        >>> positions = torch.tensor([[0.0, 0, 0], [0, 0, 0.5]]).double()
        >>> system = System(torch.tensor([1, 8]), positions, cell, pbc)
        >>> repulsion([system], ["energy"])["energy"].block().values
        tensor([[27.6757]], dtype=torch.float64)
    """

    def __init__(self, target: str = "energy", energy_unit: float = 1.0) -> None:
        super().__init__()
        self.target = target
        constants = {"coulomb": COULOMB / energy_unit, "radii": (0.0, *COVALENT_RADII)}
        for name, numbers in constants.items():
            self.register_buffer(name, torch.tensor(numbers, dtype=torch.float64))

    @override
    def forward(self, systems: Sequence[System], names: Sequence[str]) -> dict[str, TensorMap]:
        """The repulsion of every system, with its gradients to positions and strain.

        Args:
            systems: positions in Å.
            names: of the targets that are asked for; an empty dict if the energy is not one.

        Raises:
            ValueError: for types that are no atomic numbers up to curium.
        """
        if self.target not in names:
            return {}
        device = self.get_buffer("radii").device
        n_atoms = torch.tensor([len(s) for s in systems], dtype=torch.int64, device=device)
        types = torch.cat([torch.empty(0, device=device), *(s.types for s in systems)]).long()
        self._check_types(types)
        pairs = self._pairs(systems, n_atoms)
        energy, slope = self._repulsion(types[pairs.first], types[pairs.second], pairs.distance)
        of_systems = energy.new_zeros(len(systems)).index_add_(0, pairs.system, energy)
        # The gradient to the vector from the first atom to the second.
        pull = (slope / pairs.distance)[:, None] * pairs.vector
        of_atoms = energy.new_zeros(len(types), 3)
        of_atoms.index_add_(0, pairs.second, pull).index_add_(0, pairs.first, -pull)
        outer = pull[:, :, None] * pairs.vector[:, None, :]
        of_strain = energy.new_zeros(len(systems), 3, 3).index_add_(0, pairs.system, outer)
        return {self.target: _tensormap(n_atoms, of_systems, of_atoms, of_strain)}

    def _check_types(self, types: torch.Tensor) -> None:
        wrong = types[(types < 1) | (types > len(COVALENT_RADII))].unique().tolist()
        if wrong:
            raise ValueError(
                f"ZBL: expected atomic numbers from 1 to {len(COVALENT_RADII)} as types, got "
                f"{wrong}"
            )

    def _pairs(self, systems: Sequence[System], n_atoms: torch.Tensor) -> "_Pairs":
        """All pairs of atoms that may be nearer to each other than their covalent radii."""
        radii = self.get_buffer("radii")
        firsts, seconds, owners = ([torch.empty(0, dtype=torch.int64)] for _ in range(3))
        vectors = [torch.empty((0, 3), dtype=radii.dtype)]
        offsets = (n_atoms.cumsum(0) - n_atoms).tolist()
        for number, (system, offset) in enumerate(zip(systems, offsets, strict=True)):
            if len(system) == 0:
                continue
            longest = 2.0 * float(radii[system.types.long()].max())
            neighbors = NeighborList(cutoff=longest, full_list=False)
            points, box = (
                tensor.detach().double().cpu().numpy() for tensor in (system.positions, system.cell)
            )
            periodic = system.pbc.tolist()
            i, j, vector = neighbors.compute(points, box, periodic, quantities="ijD")
            firsts.append(torch.from_numpy(i.astype("int64")) + offset)
            seconds.append(torch.from_numpy(j.astype("int64")) + offset)
            owners.append(torch.full((len(i),), number))
            vectors.append(torch.from_numpy(vector))
        first, second, owner, vector = (
            torch.cat(parts).to(radii.device) for parts in (firsts, seconds, owners, vectors)
        )
        return _Pairs(first, second, owner, vector, vector.norm(dim=1))

    def _repulsion(
        self, first: torch.Tensor, second: torch.Tensor, distance: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Energy of pairs and its derivative with respect to their distance."""
        radii = self.get_buffer("radii")
        ratio = (distance / (radii[first] + radii[second])).clamp(max=1.0)
        length = SCREENING_LENGTH / (first.double() ** 0.23 + second.double() ** 0.23)
        waves = [
            (c * torch.exp(-k * distance / length), k / length)
            for c, k in zip(COEFFICIENTS, EXPONENTS, strict=True)
        ]
        screening = torch.stack([wave for wave, _ in waves]).sum(0)
        screening_slope = -torch.stack([wave * rate for wave, rate in waves]).sum(0)
        envelope = 1.0 - 28.0 * ratio**6 + 48.0 * ratio**7 - 21.0 * ratio**8
        envelope_slope = -168.0 * ratio**5 * (1.0 - ratio).square() / (radii[first] + radii[second])
        bare = self.get_buffer("coulomb") * first * second / distance
        energy = bare * screening * envelope
        slope = bare * (
            screening_slope * envelope
            + screening * envelope_slope
            - screening * envelope / distance
        )
        return energy, slope


class _Pairs(NamedTuple):
    """Pairs of atoms: ``(n_pairs,)`` atoms, systems and distances, ``(n_pairs, 3)`` vectors."""

    first: torch.Tensor
    second: torch.Tensor
    system: torch.Tensor
    vector: torch.Tensor
    distance: torch.Tensor


def _tensormap(
    n_atoms: torch.Tensor,
    of_systems: torch.Tensor,
    of_atoms: torch.Tensor,
    of_strain: torch.Tensor,
) -> TensorMap:
    device = of_systems.device
    system = torch.arange(len(n_atoms), device=device)
    owner = system.repeat_interleave(n_atoms)
    atom = torch.arange(len(owner), device=device) - (n_atoms.cumsum(0) - n_atoms)[owner]
    xyz = [
        [Labels.range(name, 3).to(device) for name in names]
        for names in (["xyz"], ["xyz_1", "xyz_2"])
    ]
    properties = Labels.range("energy", 1).to(device)
    block = TensorBlock(of_systems[:, None], Labels("system", system[:, None]), [], properties)
    rows = Labels(["sample", "system", "atom"], torch.stack([owner, owner, atom], 1))
    block.add_gradient("positions", TensorBlock(of_atoms[..., None], rows, xyz[0], properties))
    structures = Labels("sample", system[:, None])
    block.add_gradient("strain", TensorBlock(of_strain[..., None], structures, xyz[1], properties))
    return TensorMap(Labels.single().to(device), [block])
