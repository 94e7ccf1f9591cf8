"""The embedded example with ZBL, from training to a simulation engine."""

import ase
import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from metatomic_ase import MetatomicCalculator

from lightning_scaler import ZBL, TargetScaler, export
from lightning_scaler.molecules.datamodule import MoleculesDataModule
from lightning_scaler.molecules.model import MoleculesModel

OUTPUTS = {"energy": "eV", "dipole": "e*A", "polarizability": "bohr^3", "charges": "e"}
OUTPUTS |= {"populations": "1", "atomic_dipoles": "e*A"}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:these data are zero")
def test_the_example_with_zbl_runs_in_ase(tmp_path):
    torch.manual_seed(0)
    data, model = MoleculesDataModule(), MoleculesModel(channels=4).double()
    trainer = Trainer(
        max_epochs=1,
        limit_train_batches=4,
        limit_val_batches=1,
        limit_predict_batches=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        callbacks=[TargetScaler(intensive_targets=["dipole"], baseline=ZBL())],
        default_root_dir=tmp_path,
    )
    trainer.fit(model, data)
    length = {"length_unit": "angstrom", "interaction_range": model.network.interaction_range}
    export(model.network, model.scaler, tmp_path / "model.pt", outputs=OUTPUTS, **length)
    energies = trainer.predict(model, data)[0][0]["energy"].block().values[:, 0].tolist()
    systems = next(iter(data.predict_dataloader()[0]))["system"]
    calculator = MetatomicCalculator(tmp_path / "model.pt", device="cpu", check_consistency=True)
    for one, energy in list(zip(systems, energies, strict=True))[::4]:
        atoms = ase.Atoms(numbers=one.types.numpy(), positions=one.positions.numpy())
        atoms.calc = calculator
        assert atoms.get_potential_energy() == pytest.approx(energy, rel=0, abs=2e-7)  # eV

    # Two atoms on top of each other: most of the force is that of ZBL.
    near = np.argsort(atoms.get_distances(0, range(len(atoms))))[1]
    atoms.set_distance(0, near, 0.6, fix=0)
    forces = atoms.get_forces()
    assert abs(forces[near]).max() > 50  # eV/Å
    step, sides = 1e-4, []
    for sign in (1, -1):
        moved = atoms.copy()
        moved.calc = atoms.calc
        moved.positions[near] += sign * step * np.array([0.6, 0.0, 0.8])
        sides.append(moved.get_potential_energy())
    numerical = (sides[1] - sides[0]) / (2 * step)
    assert forces[near] @ [0.6, 0.0, 0.8] == pytest.approx(numerical, rel=1e-6)
