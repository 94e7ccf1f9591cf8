"""Quantum-chemical labels of small closed-shell molecules.

All labels come from one restricted Hartree-Fock calculation with density fitting in the def2-SVPD
basis, so they belong to the same wave function and rotate with the molecule.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pyscf import gto, lib, lo, scf
from pyscf.data.nist import BOHR, HARTREE2EV

Array = NDArray[np.float64]

BASIS = "def2-svpd"
FITTING_BASIS = "def2-universal-jkfit"
ENERGY_TOLERANCE = 1e-12
"""SCF convergence threshold on the energy, hartree."""
GRADIENT_TOLERANCE = 1e-9
"""SCF convergence threshold on the norm of the orbital gradient, hartree."""


def label(types: NDArray[np.integer[Any]], positions: Array) -> dict[str, NDArray[np.float64]]:
    """Compute all labels of one neutral closed-shell molecule.

    Args:
        types: Atomic numbers, shape ``(n_atoms,)``.
        positions: Positions in Å, shape ``(n_atoms, 3)``.

    Returns:
        In double precision: ``energy`` ``()``, total energy in eV; ``forces`` ``(n_atoms, 3)`` in
        eV/Å; ``dipole`` ``(3,)`` in e·Å; ``polarizability`` ``(6,)`` in a0³, see `to_spherical`;
        ``charges`` ``(n_atoms,)`` in e; ``populations`` ``(n_atoms, 2)``, numbers of s and p
        electrons; ``atomic_dipoles`` ``(n_atoms, 3)`` in e·Å, components in the order y, z, x.

    Raises:
        RuntimeError: If the self-consistent field does not converge.
    """
    mean_field = solve(types, positions)
    gradient = mean_field.nuc_grad_method().kernel()
    return {
        "energy": np.array(mean_field.e_tot * HARTREE2EV),
        "forces": -gradient * HARTREE2EV / BOHR,
        "dipole": mean_field.dip_moment(unit="au", verbose=0) * BOHR,
        "polarizability": to_spherical(polarizability(mean_field)),
        **atomic_labels(mean_field),
    }


def solve(types: NDArray[np.integer[Any]], positions: Array) -> Any:
    """Converge the restricted Hartree-Fock equations.

    Args:
        types: Atomic numbers, shape ``(n_atoms,)``.
        positions: Positions in Å, shape ``(n_atoms, 3)``.

    Returns:
        The converged PySCF mean field.

    Raises:
        RuntimeError: If the self-consistent field does not converge.
    """
    atoms = [(int(z), tuple(map(float, xyz))) for z, xyz in zip(types, positions, strict=True)]
    molecule = gto.M(atom=atoms, basis=BASIS, unit="Angstrom", verbose=0)
    mean_field = scf.RHF(molecule).density_fit(auxbasis=FITTING_BASIS)
    mean_field.conv_tol = ENERGY_TOLERANCE
    mean_field.conv_tol_grad = GRADIENT_TOLERANCE
    mean_field.max_cycle = 100
    mean_field.kernel()
    if not mean_field.converged:
        raise RuntimeError(f"no self-consistent field for {molecule.elements}")
    return mean_field


def polarizability(mean_field: Any) -> Array:
    """Compute the static dipole polarizability by the coupled-perturbed equations.

    With real orbitals the response of a closed shell to a uniform field obeys ``H u = d``, where
    ``d`` are the occupied-virtual dipole integrals and
    ``H[ia, jb] = δ_ij δ_ab (ε_a - ε_i) + 4 (ia|jb) - (ib|ja) - (ij|ab)``
    (J. Gerratt and I. M. Mills, J. Chem. Phys. 1968, 49, 1719); the polarizability is
    ``4 dᵀ H⁻¹ d``. The molecules are small enough to solve it directly, without iteration error.
    The integrals are fitted with the same basis as those of the energy.

    Args:
        mean_field: A converged, density-fitted PySCF restricted Hartree-Fock calculation.

    Returns:
        The symmetric polarizability matrix in a0³, shape ``(3, 3)``.
    """
    n_occupied = int(np.count_nonzero(mean_field.mo_occ))
    occupied, virtual = np.split(mean_field.mo_coeff, [n_occupied], axis=1)
    occupied_energy, virtual_energy = np.split(mean_field.mo_energy, [n_occupied])
    fitted = np.vstack([lib.unpack_tril(block) for block in mean_field.with_df.loop()])
    half = occupied.T @ fitted
    oo, ov, vv = half @ occupied, half @ virtual, virtual.T @ fitted @ virtual

    coulomb = np.tensordot(ov, ov, axes=(0, 0))
    exchange = np.tensordot(oo, vv, axes=(0, 0)).transpose(0, 2, 1, 3)
    response = 4 * coulomb - coulomb.transpose(0, 3, 2, 1) - exchange
    gaps = virtual_energy - occupied_energy[:, None]
    hessian = response.reshape(gaps.size, gaps.size) + np.diag(gaps.ravel())

    dipoles = occupied.T @ mean_field.mol.intor_symmetric("int1e_r") @ virtual
    dipoles = dipoles.reshape(3, gaps.size)
    matrix: Array = 4 * dipoles @ np.linalg.solve(hessian, dipoles.T)
    return (matrix + matrix.T) / 2


def to_spherical(matrix: Array) -> Array:
    """Write a symmetric matrix in orthonormal real spherical components.

    Args:
        matrix: A symmetric matrix, shape ``(3, 3)``.

    Returns:
        Shape ``(6,)``: the component λ = 0, trace/√3, then the components λ = 2, m = -2 ... 2
        (xy, yz, z², xz, x² - y²), in the units of ``matrix``. The sum of their squares is the
        squared Frobenius norm of ``matrix``.
    """
    (xx, xy, xz), (_, yy, yz), (_, _, zz) = matrix
    return np.array(
        [
            (xx + yy + zz) / np.sqrt(3),
            np.sqrt(2) * xy,
            np.sqrt(2) * yz,
            (2 * zz - xx - yy) / np.sqrt(6),
            np.sqrt(2) * xz,
            (xx - yy) / np.sqrt(2),
        ]
    )


def atomic_labels(mean_field: Any) -> dict[str, Array]:
    """Assign the electrons to the atoms with intrinsic atomic orbitals.

    Symmetrically orthogonalised intrinsic atomic orbitals (G. Knizia, J. Chem. Theory Comput.
    2013, 9, 4834) span the occupied orbitals exactly. In them ``P`` is the density matrix;
    atom A with nuclear charge ``Z`` has the charge ``q_A = Z - Σ_{i∈A} P_ii`` and the dipole
    ``μ_A = -Σ_{i∈A} Σ_j P_ij <i|r - R_A|j>``, so that ``Σ_A (q_A R_A + μ_A)`` is the dipole of the
    molecule. The 1s core counts as s; hydrogen has one orbital, hence no p electrons.

    Args:
        mean_field: A converged PySCF restricted Hartree-Fock calculation.

    Returns:
        ``charges`` ``(n_atoms,)`` in e; ``populations`` ``(n_atoms, 2)``, numbers of s and p
        electrons; ``atomic_dipoles`` ``(n_atoms, 3)`` in e·Å, components in the order y, z, x.
    """
    molecule = mean_field.mol
    overlap = molecule.intor_symmetric("int1e_ovlp")
    occupied = mean_field.mo_coeff[:, mean_field.mo_occ > 0]
    orbitals = lo.orth.vec_lowdin(lo.iao.iao(molecule, occupied, minao="minao"), overlap)
    in_orbitals = orbitals.T @ overlap @ occupied
    density = 2 * in_orbitals @ in_orbitals.T
    position = orbitals.T @ molecule.intor_symmetric("int1e_r") @ orbitals

    labels = lo.iao.reference_mol(molecule, "minao").ao_labels(fmt=None)
    owner = np.array([atom for atom, *_ in labels])
    momentum = np.array(["sp".index(shell[-1]) for _, _, shell, _ in labels])

    populations = np.zeros((molecule.natm, 2))
    np.add.at(populations, (owner, momentum), np.diag(density))
    first_moments = np.zeros((molecule.natm, 3))
    np.add.at(first_moments, owner, np.einsum("ij,xij->ix", density, position))
    electrons = populations.sum(axis=1)
    dipoles = (electrons[:, None] * molecule.atom_coords() - first_moments) * BOHR
    return {
        "charges": molecule.atom_charges() - electrons,
        "populations": populations,
        "atomic_dipoles": dipoles[:, [1, 2, 0]],
    }
