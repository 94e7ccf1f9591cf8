"""The ZBL nuclear repulsion, an additive module for energies."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from metatensor.torch import Labels, TensorBlock, TensorMap
from metatomic.torch import System
from typing_extensions import override
from vesin import NeighborList

from ..batches import Atoms, is_system, read_atoms, sample_values
from ..settings import kind_of, number
from .zbl_for_engines import ZBLForEngines, pair_repulsion

COULOMB = 14.399645  # e²/(4πε0) in eV Å (CODATA 2018)

# Å, hydrogen to curium: B. Cordero et al., Dalton Trans. 2008, 2832, table 2 (sp3 carbon; low-spin
# Mn, Fe and Co).
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
    r"""Screened nuclear repulsion of Ziegler, Biersack and Littmark, zero beyond the bond length.

    .. math::

        V(r) = \frac{e^2}{4 \pi \epsilon_0} \frac{Z_i Z_j}{r} \, \phi(r / a) \, f(r / r_c), \qquad
        a = \frac{0.4685\,\text{Å}}{Z_i^{0.23} + Z_j^{0.23}}

    with :math:`r_c` the sum of the covalent radii and :math:`f` a polynomial that is zero at
    :math:`r_c` with its first two derivatives. It keeps atoms apart where training data are
    missing, such as at close contacts in a simulation. It also acts on bonds shorter than a single
    bond: for molecules near their equilibrium, subtracting it may increase the RMS of energies and
    forces.

    Sources: J. F. Ziegler, J. P. Biersack, U. Littmark, The Stopping and Range of Ions in Matter,
    1985; J. Gasteiger et al., Directional Message Passing for Molecular Graphs, 2020, eq. 8 (f).

    Args:
        target: name of the energy, a per-structure target with a single property.
        energy_unit: unit of the energy in eV. Positions are in Å, which cannot be checked (in bohr,
            the repulsion of bonded atoms would be zero), types are atomic numbers.

    Raises:
        TypeError: for a target other than a name.
        ValueError: for a unit other than a positive number.

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
        if not isinstance(target, str):
            raise TypeError(f"ZBL: expected the name of one energy as target, got {target!r}")
        if number("ZBL, energy_unit", energy_unit) <= 0:
            raise ValueError(f"ZBL, energy_unit: expected a positive number, got {energy_unit}")
        self.target = target
        self.energy_unit = energy_unit
        constants = {"coulomb": COULOMB / energy_unit, "radii": (0.0, *COVALENT_RADII)}
        for name, values in constants.items():
            self.register_buffer(name, torch.tensor(values, dtype=torch.float64))

    @override
    def extra_repr(self) -> str:
        """The arguments."""
        unit = "" if self.energy_unit == 1.0 else f", energy_unit={self.energy_unit!r}"
        return f"target={self.target!r}{unit}"

    @override
    def forward(self, systems: Sequence[System], names: Sequence[str]) -> dict[str, TensorMap]:
        """The repulsion of every system, with its gradients ``positions`` and ``strain``.

        Autograd can follow all of them back to the positions and the cell.

        Args:
            systems: systems with positions in Å.
            names: names of the requested targets.

        Returns:
            The energy under its name, or an empty dict if it is not requested.

        Raises:
            TypeError: for anything but a list of systems.
            ValueError: for types that are not atomic numbers from hydrogen to curium.
        """
        if not isinstance(systems, Sequence) or not all(map(is_system, systems)):
            raise TypeError(
                f"ZBL: expected a list of metatomic systems, got {kind_of(systems)}; "
                "metatomic.torch.systems_to_torch makes them of a list of ASE Atoms"
            )
        if self.target not in names:
            return {}
        radii = self.get_buffer("radii")
        atoms = read_atoms(systems).to(radii.device)
        types = atoms.types
        self._check_types(atoms.unique_types)
        pairs = self._pairs(systems, atoms)
        energy, slope = pair_repulsion(
            types[pairs.first].double(),
            types[pairs.second].double(),
            radii[types[pairs.first]] + radii[types[pairs.second]],
            pairs.distance,
            float(self.get_buffer("coulomb")),
        )
        per_system = energy.new_zeros(len(systems)).index_add_(0, pairs.system, energy)
        # Gradient with respect to the vector from the first atom to the second, (n_pairs, 3).
        gradient = (slope / pairs.distance)[:, None] * pairs.vector
        positions = energy.new_zeros(len(types), 3)
        positions.index_add_(0, pairs.second, gradient).index_add_(0, pairs.first, -gradient)
        outer = gradient[:, :, None] * pairs.vector[:, None, :]
        strain = energy.new_zeros(len(systems), 3, 3).index_add_(0, pairs.system, outer)
        return {self.target: _tensormap(atoms, per_system, positions, strain)}

    def scriptable(self, types: Sequence[int]) -> ZBLForEngines:
        """The same repulsion for simulation engines, which give the neighbor lists.

        Args:
            types: all atomic types that can occur.

        Raises:
            ValueError: for types that are not atomic numbers from hydrogen to curium.
        """
        self._check_types(torch.tensor(types))
        return ZBLForEngines(
            self.target, float(self.get_buffer("coulomb")), (0.0, *COVALENT_RADII), types
        )

    def _check_types(self, types: torch.Tensor) -> None:
        wrong = types[(types < 1) | (types > len(COVALENT_RADII))].unique().tolist()
        if wrong:
            raise ValueError(
                f"ZBL: expected atomic numbers from 1 to {len(COVALENT_RADII)} as types, got "
                f"{wrong}"
            )

    def _pairs(self, systems: Sequence[System], atoms: Atoms) -> "_Pairs":
        """All pairs of atoms within twice the largest covalent radius of their system."""
        radii = self.get_buffer("radii")
        firsts, seconds, owners = ([torch.empty(0, dtype=torch.int64)] for _ in range(3))
        vectors = [torch.empty((0, 3), dtype=radii.dtype, device=radii.device)]
        first_atoms = atoms.first_atom.tolist()
        for index, (system, first_atom) in enumerate(zip(systems, first_atoms, strict=True)):
            if len(system) == 0:
                continue
            cutoff = 2.0 * float(radii[system.types.long()].max())
            neighbors = NeighborList(cutoff=cutoff, full_list=False)
            positions, cell = system.positions.to(radii), system.cell.to(radii)
            points, box = (tensor.detach().cpu().numpy() for tensor in (positions, cell))
            found = neighbors.compute(points, box, system.pbc.tolist(), quantities="ijS")
            i, j, shift = (torch.from_numpy(part.astype("int64")) for part in found)
            firsts.append(i + first_atom)
            seconds.append(j + first_atom)
            owners.append(torch.full((len(i),), index))
            # Not the vectors of the neighbor list, which autograd cannot follow.
            i, j, shift = (part.to(radii.device) for part in (i, j, shift))
            vectors.append(positions[j] - positions[i] + shift.to(cell) @ cell)
        first, second, owner = (
            torch.cat(parts).to(radii.device) for parts in (firsts, seconds, owners)
        )
        vector = torch.cat(vectors)
        return _Pairs(first, second, owner, vector, vector.norm(dim=1))


class _Pairs(NamedTuple):
    """Pairs of atoms.

    Attributes:
        first: index of the first atom in the batch, ``(n_pairs,)``.
        second: index of the second atom, ``(n_pairs,)``.
        system: index of their system, ``(n_pairs,)``.
        vector: vector from the first to the second atom, ``(n_pairs, 3)``.
        distance: its length, ``(n_pairs,)``.
    """

    first: torch.Tensor
    second: torch.Tensor
    system: torch.Tensor
    vector: torch.Tensor
    distance: torch.Tensor


def _tensormap(
    atoms: Atoms, energy: torch.Tensor, positions: torch.Tensor, strain: torch.Tensor
) -> TensorMap:
    """The energy of every system as a TensorMap with its gradients.

    Args:
        atoms: atoms of the batch.
        energy: ``(n_systems,)``.
        positions: gradient with respect to positions, ``(n_atoms, 3)``.
        strain: gradient with respect to strain, ``(n_systems, 3, 3)``.
    """
    device, owner = energy.device, atoms.system_of_atom
    system, atom = sample_values(atoms.n_atoms, owner, atoms.first_atom)
    axes = [
        [Labels.range(name, 3).to(device) for name in names]
        for names in (["xyz"], ["xyz_1", "xyz_2"])
    ]
    properties = Labels.range("energy", 1).to(device)
    block = TensorBlock(energy[:, None], Labels("system", system), [], properties)
    samples = Labels(["sample", "system", "atom"], torch.cat([atom[:, :1], atom], 1))
    block.add_gradient("positions", TensorBlock(positions[..., None], samples, axes[0], properties))
    samples = Labels("sample", system)
    block.add_gradient("strain", TensorBlock(strain[..., None], samples, axes[1], properties))
    return TensorMap(Labels.single().to(device), [block])
