"""Quantum-chemical labels are reproducible, equivariant and mutually consistent."""

import functools
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("pyscf", reason="generator extra not installed")
pytest.importorskip("ase", reason="generator extra not installed")

from lightning_scaler.molecules.label import label, to_spherical

Array = NDArray[np.float64]
SHIPPED = Path(__file__).parents[2] / "lightning_scaler" / "molecules" / "molecules.npz"
PER_ATOM = ("forces", "charges", "populations", "atomic_dipoles")
TYPES = np.array([6, 8, 1, 1])
POSITIONS = np.array([[0.05, 0, -0.5], [0, 0.1, 0.7], [-0.1, 0.9, -1.1], [0, -0.95, -1.05]])
YZX = [1, 2, 0]


def rotation() -> Array:
    """A proper rotation without special angles."""
    q, r = np.linalg.qr(np.random.default_rng(1).standard_normal((3, 3)))
    q = q * np.sign(np.diag(r))
    return np.asarray(q * np.linalg.det(q))


def to_matrix(components: Array) -> Array:
    """Invert `to_spherical`, whose components are orthonormal."""
    basis = np.eye(9).reshape(9, 3, 3)
    symmetric = (basis + basis.transpose(0, 2, 1)) / 2
    return np.tensordot([to_spherical(each) for each in symmetric], components, 1).reshape(3, 3)


@functools.cache
def formaldehyde() -> dict[str, Array]:
    """Labels of a distorted formaldehyde."""
    return label(TYPES, POSITIONS)


@functools.cache
def rotated_formaldehyde() -> dict[str, Array]:
    """Labels of the same formaldehyde in another orientation."""
    return label(TYPES, POSITIONS @ rotation().T)


@pytest.mark.parametrize("name", ["H2O", "HCN"])
def test_labels_of_shipped_geometries_are_reproduced(name: str) -> None:
    with np.load(SHIPPED) as archive:
        data = dict(archive)
    structure = np.flatnonzero(data["molecule_names"][data["molecule"]] == name)[0]
    stop = int(data["n_atoms"][: structure + 1].sum(dtype=int))
    atoms = slice(stop - int(data["n_atoms"][structure]), stop)

    labels = label(data["types"][atoms], data["positions"][atoms].astype(np.float64))

    for key, value in labels.items():
        shipped = data[key][atoms if key in PER_ATOM else structure]
        np.testing.assert_allclose(value, shipped, rtol=2e-7, atol=1e-6, err_msg=key)


@pytest.mark.slow
@pytest.mark.parametrize("key", ["energy", "charges", "populations"])
def test_scalar_labels_are_invariant(key: str) -> None:
    np.testing.assert_allclose(
        rotated_formaldehyde()[key], formaldehyde()[key], rtol=1e-10, atol=1e-8
    )


@pytest.mark.parametrize("key", ["forces", "dipole"])
def test_vector_labels_rotate_with_the_molecule(key: str) -> None:
    expected = formaldehyde()[key] @ rotation().T
    np.testing.assert_allclose(rotated_formaldehyde()[key], expected, rtol=1e-10, atol=1e-8)


def test_atomic_dipoles_rotate_as_vectors_in_the_order_yzx() -> None:
    expected = formaldehyde()["atomic_dipoles"] @ rotation()[np.ix_(YZX, YZX)].T
    np.testing.assert_allclose(
        rotated_formaldehyde()["atomic_dipoles"], expected, rtol=1e-10, atol=1e-8
    )


def test_polarizability_rotates_as_a_matrix_and_keeps_its_norm() -> None:
    matrix = to_matrix(formaldehyde()["polarizability"])
    expected = to_spherical(rotation() @ matrix @ rotation().T)
    np.testing.assert_allclose(
        rotated_formaldehyde()["polarizability"], expected, rtol=1e-10, atol=1e-8
    )
    np.testing.assert_allclose(np.linalg.norm(matrix), np.linalg.norm(expected), rtol=1e-12)


def test_atomic_charges_dipoles_and_populations_sum_to_those_of_the_molecule() -> None:
    labels = formaldehyde()
    from_charges = labels["charges"] @ POSITIONS
    from_dipoles = labels["atomic_dipoles"].sum(axis=0)
    dipole = from_charges[YZX] + from_dipoles
    np.testing.assert_allclose(dipole, labels["dipole"][YZX], atol=1e-9)
    np.testing.assert_allclose(labels["charges"], TYPES - labels["populations"].sum(axis=1))
    assert (labels["populations"][TYPES == 1, 1] == 0).all()
