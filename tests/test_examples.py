"""The scripts in docs/examples, each run as a user runs it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"

pytestmark = pytest.mark.slow


def run(name: str, folder: Path) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    done = subprocess.run(
        [sys.executable, EXAMPLES / name],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def errors_of_the_baseline_alone(counts, energies, is_training, is_test):
    """Residuals of a least-squares fit of energies to the number of atoms of each type."""
    solution = np.linalg.lstsq(counts[is_training], energies[is_training], rcond=None)[0]
    return energies[is_test] - counts[is_test] @ solution


@pytest.fixture(scope="module")
def molecules():
    """Energies and numbers of atoms of the embedded molecules, and their baseline's errors."""
    from lightning_scaler.molecules.dataset import MOLECULES_FILE

    with np.load(MOLECULES_FILE) as data:
        n_atoms, split = data["n_atoms"].astype(int), data["split"]
        types = np.split(data["types"], n_atoms.cumsum()[:-1])
        counts = np.array([np.bincount(t, minlength=10) for t in types])
        in_test = np.repeat(split == 2, n_atoms)
        errors = errors_of_the_baseline_alone(counts, data["energy"], split == 0, split == 2)
        return {
            "n_atoms": n_atoms[split == 2],
            "errors": errors,
            "charges": data["charges"][in_test].astype(float),
            "forces": data["forces"][in_test].astype(float),
            "dipole": data["dipole"][split == 2].astype(float),
        }


def rms(values) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


def test_schnet_learns_energies_forces_and_dipoles(tmp_path, molecules):
    printed = run("schnet_energy_forces_dipole.py", tmp_path)
    rmse = {name: float(value) for name, value in re.findall(r"test/(\S+)\s+│\s+(\S+)", printed)}
    baseline = rms(molecules["errors"] / molecules["n_atoms"])
    assert rmse["energy/rmse_per_atom"] < baseline / 3
    assert rmse["energy/positions/rmse"] < rms(molecules["forces"]) / 1.5
    assert rmse["dipole/rmse"] < rms(molecules["dipole"]) / 3
    # The errors are in eV per atom, and the terms of the loss are their squares over those of
    # the baseline alone, which has nearly the same error in training and test.
    relative = (rmse["energy/rmse_per_atom"] / baseline) ** 2
    assert rmse["loss/energy"] == pytest.approx(relative, rel=0.2)


def test_energies_written_to_extxyz_are_near_those_that_were_read(tmp_path):
    import ase.io

    run("extxyz_in_and_out.py", tmp_path)
    alloys = ase.io.read(tmp_path / "alloys.extxyz", ":")
    written = ase.io.read(tmp_path / "predicted.extxyz", ":")
    assert len(alloys) == 250
    assert len(written) == 50
    for one, other in zip(written, alloys[200:], strict=True):
        assert one.get_potential_energy() == other.get_potential_energy()
        np.testing.assert_array_equal(one.positions, other.positions)
    energies = np.array([atoms.get_potential_energy() for atoms in alloys])
    numbers = np.array([atoms.numbers for atoms in alloys])
    counts = np.stack([(numbers == z).sum(axis=1) for z in (29, 47, 79)], axis=1)
    is_test = np.arange(250) >= 200
    baseline = errors_of_the_baseline_alone(counts, energies, ~is_test, is_test)
    errors = [atoms.info["predicted_energy"] for atoms in written] - energies[is_test]
    assert rms(errors) < rms(baseline) / 2
    assert rms(errors) < 0.4  # eV, of energies between 6 and 13
    forces = np.concatenate([atoms.get_forces() for atoms in written])
    predicted = np.concatenate([atoms.arrays["predicted_forces"] for atoms in written])
    assert rms(predicted - forces) < rms(forces) / 1.5


def test_scales_are_fitted_and_predictions_converted_without_lightning(tmp_path, molecules):
    printed = run("fit_and_convert.py", tmp_path)
    rmse = {name: float(value) for name, value in re.findall(r"of the (\w+) in .*: (\S+)", printed)}
    assert rmse["energy"] < rms(molecules["errors"]) / 3
    assert rmse["charges"] < rms(molecules["charges"]) / 4
    assert "Target scales" in printed
    assert "-1029" in printed  # eV, the contribution of a carbon atom


def test_examples_are_short_and_use_no_labels():
    names = sorted(path.name for path in EXAMPLES.glob("*.py"))
    assert names == ["extxyz_in_and_out.py", "fit_and_convert.py", "schnet_energy_forces_dipole.py"]
    for name in names:
        text = (EXAMPLES / name).read_text()
        assert len(text.splitlines()) <= 60
        assert "Labels" not in text
