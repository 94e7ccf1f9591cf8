"""Generate the dataset of small molecules.

Closed-shell molecules of H, C, N, O and F from the ``g2`` collection of ASE are relaxed with
GFN2-xTB (C. Bannwarth, S. Ehlert and S. Grimme, J. Chem. Theory Comput. 2019, 15, 1652), displaced
along their normal modes, randomly rotated, and labelled with `lightning_scaler.molecules.label`.

    python -m lightning_scaler.molecules.generate --output molecules.npz
"""

import argparse
import itertools
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from ..settings import check_installed

try:
    import numpy as np
    from ase import units
    from ase.collections import g2
    from ase.optimize import BFGS
    from numpy.typing import NDArray
    from tblite.ase import TBLite

    from .label import label
except ModuleNotFoundError:
    check_installed("new molecules", "generate", ("ase", "numpy", "pyscf", "tblite"))
    raise

Array = NDArray[np.float64]

HBAR = units._hbar * units.J * units.second
"""In the units of ASE, amu^1/2 Å eV^1/2."""

ELEMENTS = {"H", "C", "N", "O", "F"}
MAX_HEAVY_ATOMS = 4
MAX_ATOMS = {4: 7}
"""Maximum number of atoms by number of heavy atoms; no limit for other numbers."""
NOT_SINGLE_REFERENCE = {"CH2_s1A1d", "O3"}
"""Singlets that a single closed-shell determinant describes poorly."""
HELD_OUT = ("HCN", "H2CO", "HCOOH", "H2CCHF", "N2H4", "CH2OCH2")
"""Molecules with no conformer in the training split."""
TRAIN, VALIDATION, TEST_KNOWN, TEST_HELD_OUT = range(4)
SPLIT_PATTERN = (TRAIN,) * 7 + (VALIDATION, TEST_KNOWN)

TEMPERATURE = 500.0
"""Kelvin."""
SOFTEST_MODE = 200 * units.invcm
"""Minimum vibrational quantum, eV: soft modes are anharmonic over their thermal width."""
LARGEST_AMPLITUDE = 2.5
"""Standard deviations of the mode."""
DISTANCE_RATIO = (0.7, 1.4)
"""Allowed range of every interatomic distance divided by its value in the relaxed molecule."""
HESSIAN_STEP = 0.005
"""Å."""


class Geometry(NamedTuple):
    """A sampled geometry: name of the molecule, atomic numbers, and positions in Å."""

    name: str
    types: NDArray[np.uint8]
    positions: NDArray[np.float32]


def molecule_names() -> list[str]:
    """The closed-shell molecules of the collection within the limits on size and elements."""
    return sorted(filter(is_eligible, g2.names), key=lambda name: (len(g2[name]), name))


def is_eligible(name: str) -> bool:
    """Whether a molecule of the collection is in the dataset."""
    molecule = g2[name]
    heavy = int(np.count_nonzero(molecule.numbers > 1))
    return (
        len(molecule) > 1
        and set(molecule.get_chemical_symbols()) <= ELEMENTS
        and heavy <= MAX_HEAVY_ATOMS
        and len(molecule) <= MAX_ATOMS.get(heavy, len(molecule))
        and not molecule.get_initial_magnetic_moments().any()
        and molecule.numbers.sum() % 2 == 0
        and name not in NOT_SINGLE_REFERENCE
    )


def structures_per_molecule(names: list[str], n_structures: int) -> list[int]:
    """The number of structures of each molecule, in proportion to its number of atoms."""
    sizes = np.array([len(g2[name]) for name in names])
    edges = np.rint(n_structures * np.cumsum(sizes) / sizes.sum()).astype(int)
    return [int(count) for count in np.diff(edges, prepend=0)]


def sample(name: str, n_structures: int, seed: int) -> list[Geometry]:
    """Sample vibrating and randomly oriented copies of one molecule.

    The mass-weighted displacement along a mode of frequency ω is Gaussian with the Wigner variance
    ``ħ / (2 ω) coth(ħ ω / 2 k T)`` of a quantum harmonic oscillator (E. Wigner, Phys. Rev. 1932,
    40, 749). Geometries that leave `DISTANCE_RATIO` are drawn again.

    Args:
        name: A name of the collection.
        n_structures: Number of geometries.
        seed: Seed of the random numbers, the same for all molecules.

    Returns:
        Geometries with their centroid at 0, in single precision.
    """
    generator = np.random.default_rng([seed, *name.encode()])
    molecule = relax(g2[name])
    quanta, modes = normal_modes(molecule)
    widths = wigner_widths(np.maximum(quanta, SOFTEST_MODE))
    types = molecule.numbers.astype(np.uint8)
    geometries: list[Geometry] = []
    while len(geometries) < n_structures:
        amplitudes = generator.standard_normal(len(widths))
        amplitudes = np.clip(amplitudes, -LARGEST_AMPLITUDE, LARGEST_AMPLITUDE)
        positions = molecule.positions + np.tensordot(amplitudes * widths, modes, axes=1)
        if is_intact(positions, molecule.positions):
            positions = (positions - positions.mean(axis=0)) @ random_rotation(generator).T
            geometries.append(Geometry(name, types, positions.astype(np.float32)))
    return geometries


def relax(molecule: Any) -> Any:
    """Return a copy of an `ase.Atoms` relaxed with GFN2-xTB, with the calculator attached."""
    relaxed = molecule.copy()
    relaxed.calc = TBLite(method="GFN2-xTB", accuracy=0.01, verbosity=0)
    optimizer: Any = BFGS(relaxed, logfile=None)
    if not optimizer.run(fmax=0.001, steps=500):
        raise RuntimeError(f"{molecule.symbols} does not relax")
    return relaxed


def normal_modes(molecule: Any) -> tuple[Array, Array]:
    """Compute the vibrations of a relaxed molecule from finite differences of its forces.

    Rotations and translations are projected out exactly, whether the molecule is linear or not.

    Args:
        molecule: A relaxed `ase.Atoms` with a calculator.

    Returns:
        The vibrational quanta ``ħ ω`` in eV, shape ``(n_modes,)``, zero for an unstable mode; and
        the displacements per unit of mass-weighted coordinate in amu^-1/2, shape
        ``(n_modes, n_atoms, 3)``.
    """
    n_atoms = len(molecule)
    root_masses = np.sqrt(np.repeat(molecule.get_masses(), 3))
    hessian = np.empty((3 * n_atoms, 3 * n_atoms))
    for coordinate, step in enumerate(HESSIAN_STEP * np.eye(3 * n_atoms)):
        forward, backward = molecule.copy(), molecule.copy()
        forward.positions += step.reshape(-1, 3)
        backward.positions -= step.reshape(-1, 3)
        change = molecule.calc.get_forces(forward) - molecule.calc.get_forces(backward)
        hessian[coordinate] = -change.ravel() / (2 * HESSIAN_STEP)
    hessian = (hessian + hessian.T) / (2 * np.outer(root_masses, root_masses))

    centred = molecule.positions - molecule.get_center_of_mass()
    rotations = np.cross(np.eye(3)[:, None], centred).reshape(3, -1)
    rigid = np.vstack([np.tile(np.eye(3), n_atoms), rotations]) * root_masses
    _, lengths, basis = np.linalg.svd(rigid)
    # A relaxed linear molecule is linear only to about the tolerance on its forces.
    vibrations = basis[np.count_nonzero(lengths > 0.01 * lengths[0]) :]
    eigenvalues, vectors = np.linalg.eigh(vibrations @ hessian @ vibrations.T)
    quanta = HBAR * np.sqrt(np.maximum(eigenvalues, 0))
    return quanta, (vectors.T @ vibrations / root_masses).reshape(-1, n_atoms, 3)


def wigner_widths(quanta: Array) -> Array:
    """Compute the standard deviations of the modes at `TEMPERATURE`.

    Args:
        quanta: Vibrational quanta ``ħ ω`` in eV, shape ``(n_modes,)``.

    Returns:
        Standard deviations of the mass-weighted coordinates in amu^1/2 Å, shape ``(n_modes,)``.
    """
    thermal = np.tanh(quanta / (2 * units.kB * TEMPERATURE))
    widths: Array = HBAR / np.sqrt(2 * quanta * thermal)
    return widths


def is_intact(positions: Array, relaxed: Array) -> bool:
    """Whether all interatomic distances are within `DISTANCE_RATIO` of the relaxed ones."""
    first, second = np.triu_indices(len(relaxed), k=1)
    ratios = np.linalg.norm(positions[first] - positions[second], axis=1)
    ratios /= np.linalg.norm(relaxed[first] - relaxed[second], axis=1)
    low, high = DISTANCE_RATIO
    return bool(low < ratios.min() and ratios.max() < high)


def random_rotation(generator: np.random.Generator) -> Array:
    """A random rotation matrix, uniform over SO(3), from a uniform unit quaternion."""
    quaternion = generator.standard_normal(4)
    w, *v = quaternion / np.linalg.norm(quaternion)
    cross = np.cross(np.eye(3), v)
    rotation: Array = np.eye(3) + 2 * w * cross + 2 * cross @ cross
    return rotation


def try_label(geometry: Geometry) -> dict[str, Array] | None:
    """Label a rounded geometry in double precision; None if it does not converge."""
    try:
        return label(geometry.types, geometry.positions.astype(np.float64))
    except RuntimeError:
        return None


def assemble(geometries: list[Geometry], labels: list[dict[str, Array]]) -> dict[str, Any]:
    """Concatenate the structures and assign them to the splits.

    Args:
        geometries: The structures, sorted by molecule.
        labels: Their labels; see `lightning_scaler.molecules.label.label`.

    Returns:
        The arrays of ``molecules.npz``, which ``molecules.md`` describes.
    """
    names = list(dict.fromkeys(geometry.name for geometry in geometries))
    index_of_known = itertools.count()
    split = [
        TEST_HELD_OUT
        if geometry.name in HELD_OUT
        else SPLIT_PATTERN[next(index_of_known) % len(SPLIT_PATTERN)]
        for geometry in geometries
    ]
    per_atom = {
        key: np.concatenate([np.asarray(each[key], np.float32) for each in labels])
        for key in ("forces", "charges", "populations", "atomic_dipoles")
    }
    per_structure = {
        key: np.array([each[key] for each in labels], np.float32)
        for key in ("dipole", "polarizability")
    }
    return {
        "molecule_names": np.array(names),
        "molecule": np.array([names.index(geometry.name) for geometry in geometries], np.uint8),
        "n_atoms": np.array([len(geometry.types) for geometry in geometries], np.uint8),
        "split": np.array(split, np.uint8),
        "types": np.concatenate([geometry.types for geometry in geometries]),
        "positions": np.concatenate([geometry.positions for geometry in geometries]),
        "energy": np.array([each["energy"] for each in labels]),
        **per_atom,
        **per_structure,
    }


def main() -> None:
    """Generate the dataset from the command line."""
    parser = argparse.ArgumentParser(description="Generate the dataset of small molecules.")
    parser.add_argument("--output", type=Path, required=True, help="the .npz file to write")
    parser.add_argument("--structures", type=int, default=1200, help="number of structures")
    parser.add_argument("--workers", type=int, default=2, help="number of processes")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random numbers")
    arguments = parser.parse_args()

    # Spawned workers read this when they load the numerical libraries: one thread each.
    os.environ["OMP_NUM_THREADS"] = "1"
    names = molecule_names()
    counts = structures_per_molecule(names, arguments.structures)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(arguments.workers, mp_context=context) as pool:
        seeds = [arguments.seed] * len(names)
        sampled = [each for group in pool.map(sample, names, counts, seeds) for each in group]
        attempts = zip(sampled, pool.map(try_label, sampled), strict=True)
        labelled = [(geometry, labels) for geometry, labels in attempts if labels is not None]
    geometries, labels = (list(column) for column in zip(*labelled, strict=True))
    np.savez_compressed(arguments.output, **assemble(geometries, labels))
    print(f"{len(geometries)} of {len(sampled)} structures written to {arguments.output}")


if __name__ == "__main__":
    main()
