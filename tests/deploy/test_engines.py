"""The exported file in simulation engines, against ``Trainer.predict`` and finite differences."""

import subprocess
import sys

import ase
import numpy as np
import pytest
import torch
from ase.md.verlet import VelocityVerlet
from ase.units import fs
from builders import labels, system
from deployable import EV, add_neighbors, molecules
from metatomic.torch import ModelEvaluationOptions, ModelOutput, System, load_atomistic_model
from metatomic_ase import MetatomicCalculator

FORMALDEHYDE = (8, 6, 1, 1)


def to_ase(one):
    return ase.Atoms(numbers=one.types.numpy(), positions=one.positions.numpy())


def without_neighbors(one):
    return System(one.types, one.positions, one.cell, one.pbc)


@pytest.mark.slow
def test_every_output_has_the_bits_of_predict(trained, predictions):
    """In float64, whatever the dtype of the network, and with all checks of metatomic."""
    model = load_atomistic_model(str(trained.path))
    outputs = {
        "energy": ModelOutput(unit="kcal/mol"),
        "charge": ModelOutput(unit="e", sample_kind="atom"),
        "lightning_scaler::polarizability": ModelOutput(unit="bohr^3"),
    }
    options = ModelEvaluationOptions("angstrom", outputs)
    for batch, expected in zip(trained.batches, predictions, strict=True):
        systems = add_neighbors([without_neighbors(one) for one in batch["system"]], model)
        found = model(systems, options, check_consistency=True)
        for name, target in zip(found, ("energy", "charges", "polarizability"), strict=True):
            for one, other in zip(found[name].blocks(), expected[target].blocks(), strict=True):
                assert one.values.dtype == torch.float64
                assert torch.equal(one.values, other.values.double())


@pytest.mark.slow
def test_ase_gives_the_energies_of_predict_in_ev(trained, predictions):
    calculator = MetatomicCalculator(trained.path, device="cpu")
    for batch, expected in zip(trained.batches, predictions, strict=True):
        energies = expected["energy"].block().values[:, 0].tolist()
        for one, energy in zip(batch["system"], energies, strict=True):
            atoms = to_ase(one)
            atoms.calc = calculator
            # The network adds in float32, in the order of the neighbor list.
            near = pytest.approx(energy * EV, rel=0, abs=2e-7)
            assert atoms.get_potential_energy() == near
            assert atoms.get_potential_energies().sum() == near


@pytest.mark.slow
def test_forces_are_finite_differences_of_the_exported_energy(float64_model):
    atoms = to_ase(molecules(FORMALDEHYDE, seed=5)[0])
    atoms.calc = MetatomicCalculator(float64_model, device="cpu")
    forces = atoms.get_forces()
    step, numerical = 1e-4, np.zeros_like(forces)
    for atom, axis in np.ndindex(*forces.shape):
        sides = []
        for sign in (1, -1):
            moved = atoms.copy()
            moved.positions[atom, axis] += sign * step
            moved.calc = atoms.calc
            sides.append(moved.get_potential_energy())
        numerical[atom, axis] = (sides[1] - sides[0]) / (2 * step)
    np.testing.assert_allclose(forces, numerical, rtol=1e-6, atol=1e-7)
    assert np.abs(forces).max() > 0.01  # eV/Å


@pytest.mark.slow
def test_ipi_gives_the_energies_and_forces_of_ase(trained, tmp_path):
    from ipi.pes.metatomic import MetatomicDriver
    from ipi.utils.units import unit_to_internal, unit_to_user

    atoms = to_ase(molecules(FORMALDEHYDE, seed=5)[0])
    atoms.calc = MetatomicCalculator(trained.path, device="cpu")
    atoms.write(tmp_path / "template.xyz")
    driver = MetatomicDriver(template=tmp_path / "template.xyz", model=trained.path)
    positions = unit_to_internal("length", "angstrom", atoms.positions)
    energy, forces, _, _ = driver.compute_structure(np.zeros((3, 3)), positions)
    expected = atoms.get_potential_energy()
    found = unit_to_user("energy", "electronvolt", energy)
    # i-PI has the Hartree of CODATA 2010.
    assert found == pytest.approx(expected, rel=1e-9)
    found = unit_to_user("force", "ev/ang", forces)
    np.testing.assert_allclose(found, atoms.get_forces(), rtol=1e-6, atol=1e-6)


def total_energies(calculator, step):
    """Total energies of ten atoms in 200 steps of NVE, in eV; the steps are in fs."""
    atoms = to_ase(molecules((6, 6, 8, 8, 1, 1, 1, 1, 1, 1), seed=2)[0])
    atoms.calc = calculator
    dynamics, totals = VelocityVerlet(atoms, step * fs), []
    for _ in range(200):
        dynamics.run(1)
        totals.append(atoms.get_total_energy())
    assert atoms.get_kinetic_energy() > 0.1  # it moves
    return np.array(totals)


@pytest.mark.slow
def test_energy_is_conserved_as_well_as_by_the_network_in_float64(trained, float64_model):
    """The integrator moves the total energy; a network in float32 must not add to that."""
    spreads = [
        np.ptp(total_energies(MetatomicCalculator(path, device="cpu"), step=0.5))
        for path in (trained.path, float64_model)
    ]
    assert spreads[0] == pytest.approx(spreads[1], rel=0.01)
    assert spreads[1] < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "most"), [("float32", 1e-6), ("float64", 1e-10)])
def test_the_scales_add_no_noise_to_total_energies(trained, float64_model, dtype, most):
    """Totals of -5200 eV in float32 would jump by 5e-4 eV.

    The trend cancels in third differences, which multiply independent noise by sqrt(20).
    """
    path = trained.path if dtype == "float32" else float64_model
    totals = total_energies(MetatomicCalculator(path, device="cpu"), step=0.1)
    assert totals[0] < -5000
    assert np.abs(np.diff(totals, 3)).max() / 20**0.5 < most


def test_energies_of_two_domains_add_up_to_the_total(trained):
    model = load_atomistic_model(str(trained.path))
    systems = add_neighbors(molecules(FORMALDEHYDE, (1, 8, 1)), model)

    def energy(rows, kind="system"):
        selected = None if rows is None else labels(["system", "atom"], rows)
        outputs = {"energy": ModelOutput(unit="eV", sample_kind=kind)}
        options = ModelEvaluationOptions("angstrom", outputs, selected)
        return model(systems, options, check_consistency=True)["energy"].block().values

    one = [[0, 0], [0, 3], [1, 1]]
    other = [[0, 1], [0, 2], [1, 0], [1, 2]]
    total = energy(None)
    torch.testing.assert_close(energy(one) + energy(other), total, rtol=1e-7, atol=0)
    shares = torch.cat([energy(one, "atom"), energy(other, "atom")])
    owner = torch.tensor([row[0] for row in one + other])
    sums = torch.zeros_like(total).index_add_(0, owner, shares)
    torch.testing.assert_close(sums, total, rtol=1e-7, atol=0)


def test_a_type_without_a_scale_is_named(trained):
    model = load_atomistic_model(str(trained.path))
    options = ModelEvaluationOptions("angstrom", {"energy": ModelOutput(unit="eV")})
    systems = add_neighbors([system(6, 9)], model)
    with pytest.raises(Exception, match="does not support the atomic type '9'"):
        model(systems, options, check_consistency=False)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_tables_follow_the_device(trained):
    atoms = to_ase(molecules(FORMALDEHYDE, seed=5)[0])
    found = []
    for device in ("cpu", "cuda"):
        atoms.calc = MetatomicCalculator(trained.path, device=device)
        found.append((atoms.get_potential_energy(), atoms.get_forces()))
    assert found[0][0] == pytest.approx(found[1][0], rel=0, abs=1e-5)
    np.testing.assert_allclose(found[0][1], found[1][1], atol=1e-4)


WITHOUT_THE_PACKAGE = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("lightning_scaler", "lightning"):
            raise ImportError(name)
sys.meta_path.insert(0, Refuse())
import ase.io
from metatomic_ase import MetatomicCalculator
atoms = ase.io.read("molecule.xyz")
atoms.calc = MetatomicCalculator("model.pt", device="cpu")
print(atoms.get_potential_energy().hex())
assert not [name for name in sys.modules if name.startswith("lightning")]
"""


@pytest.mark.slow
def test_a_process_without_this_package_loads_the_file(trained, tmp_path):
    atoms = to_ase(molecules(FORMALDEHYDE)[0])
    atoms.write(tmp_path / "molecule.xyz")
    atoms = ase.io.read(tmp_path / "molecule.xyz")  # as rounded in the file
    atoms.calc = MetatomicCalculator(trained.path, device="cpu")
    (tmp_path / "model.pt").write_bytes(trained.path.read_bytes())
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", WITHOUT_THE_PACKAGE],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert float.fromhex(result.stdout.strip()) == atoms.get_potential_energy()
