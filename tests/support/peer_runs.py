"""Runs of other projects by their own commands, on some of the embedded molecules."""

import csv
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from lightning_scaler.molecules.dataset import MOLECULES_FILE

PEERS = Path(__file__).parents[1] / "peers"


def molecules(n_molecules=100):
    """Atoms of ASE with energies in eV and forces in eV/Å."""
    import ase
    from ase.calculators.singlepoint import SinglePointCalculator

    found = []
    with np.load(MOLECULES_FILE) as data:
        last = np.cumsum(data["n_atoms"])
        chosen = np.flatnonzero(data["split"] == 0)
        for i in np.random.default_rng(0).permutation(chosen)[:n_molecules]:
            rows = slice(last[i] - data["n_atoms"][i], last[i])
            atoms = ase.Atoms(data["types"][rows], data["positions"][rows].astype(float))
            forces = data["forces"][rows].astype(float)
            energy = float(data["energy"][i])
            atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
            found.append(atoms)
    return found


def run(folder, command, *arguments, **environment):
    """Run a command of the environment in a folder; its output if it fails."""
    paths = [str(PEERS / "on_path"), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [str(Path(sys.executable).with_name(command)), *map(str, arguments)],
        cwd=folder,
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(paths),
            **{name: str(value) for name, value in environment.items()},
        },
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout + done.stderr


def logged(folder, name):
    """The last value of a metric that a CSVLogger has written."""
    (path,) = folder.rglob("metrics.csv")
    with path.open() as file:
        found = [row[name] for row in csv.DictReader(file) if row.get(name)]
    return float(found[-1])


def scale_and_weights(types, energies):
    """The scale and the weights of H, C, N, O and F by numpy and math.fsum."""
    counts = np.array([[np.sum(z == one) for one in (1, 6, 7, 8, 9)] for z in types], dtype=float)
    energies, n_atoms = np.array(energies), counts.sum(1)
    weights = np.linalg.lstsq(counts, energies, rcond=None)[0]
    per_atom = (energies - counts @ weights) / n_atoms
    return math.sqrt(math.fsum(per_atom**2) / len(per_atom)), weights


def callback_lines(path):
    """The lines of a config that make up the callback."""
    lines = path.read_text().splitlines()
    first = next(i for i, line in enumerate(lines) if "lightning_scaler.TargetScaler" in line)
    outside = [i for i, line in enumerate(lines) if _depth(line) < _depth(lines[first + 1])]
    last = next((i for i in outside if i > first), len(lines))
    named = lines[first - 1].strip() == "target_scaler:"
    return lines[first - named : last]


def _depth(line):
    return len(line) - len(line.lstrip())
