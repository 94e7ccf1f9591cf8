"""The exported file in TorchSim, against ASE and ``Trainer.predict``."""

import sys

import ase
import numpy as np
import pytest
import torch
from ase.units import fs, kB
from deployable import EV
from metatomic_ase import MetatomicCalculator

if sys.version_info < (3, 12):
    pytest.skip("TorchSim needs Python 3.12 or newer", allow_module_level=True)

import torch_sim
from metatomic_torchsim import MetatomicModel


def atoms_of(systems):
    return [ase.Atoms(one.types.numpy(), one.positions.numpy()) for one in systems]


def state_of(atoms, dtype):
    return torch_sim.io.atoms_to_state(atoms, torch.device("cpu"), dtype)


def test_a_batch_of_molecules_has_the_energies_of_predict(trained, predictions):
    """TorchSim evaluates the molecules together; metatomic gives it eV."""
    model = MetatomicModel(trained.path, device="cpu", compute_stress=False, neighbor_skin=0.0)
    for batch, expected in zip(trained.batches, predictions, strict=True):
        found = model(state_of(atoms_of(batch["system"]), model.dtype))
        near = expected["energy"].block().values[:, 0].numpy() * EV
        # The network adds in float32, in the order of the neighbor list.
        np.testing.assert_allclose(found["energy"].numpy(), near, rtol=0, atol=1e-6)


def test_forces_are_those_of_ase(trained, float64_model):
    calculator = MetatomicCalculator(float64_model, device="cpu")
    model = MetatomicModel(float64_model, device="cpu", compute_stress=False)
    atoms = [one for batch in trained.batches[:3] for one in atoms_of(batch["system"])]
    found = model(state_of(atoms, model.dtype))
    forces = np.concatenate([calculator.get_forces(one) for one in atoms])
    energies = [calculator.get_potential_energy(one) for one in atoms]
    assert np.abs(forces).max() > 0.01  # eV/Å
    np.testing.assert_allclose(found["forces"].numpy(), forces, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(found["energy"].numpy(), energies, rtol=1e-13)


@pytest.mark.slow
def test_energy_is_conserved_in_a_simulation_of_several_molecules(trained, float64_model):
    """200 steps of NVE; the total energies are about -5000 eV and more."""
    model = MetatomicModel(float64_model, device="cpu", compute_stress=False)
    state = state_of(atoms_of(trained.batches[0]["system"]), model.dtype)
    state = torch_sim.nve_init(state, model, kT=50 * kB)
    totals = []
    for _ in range(200):
        state = torch_sim.nve_step(state, model, dt=0.5 * fs)
        kinetic = torch_sim.calc_kinetic_energy(
            masses=state.masses, momenta=state.momenta, system_idx=state.system_idx
        )
        totals.append(state.energy + kinetic)
    energies = torch.stack(totals)
    assert (energies < -1000).all()
    assert (kinetic > 0.001).all()  # they move
    assert (energies.amax(0) - energies.amin(0)).max() < 1e-4
