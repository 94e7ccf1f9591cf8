"""Energies per atom that are declared as totals, and totals as energies per atom."""

import warnings

import numpy as np
import pytest
import torch

from lightning_scaler import PerStructure, ScaleAccumulator
from lightning_scaler.molecules.dataset import MOLECULES_FILE

TOTALS, PER_ATOM = PerStructure(), PerStructure(per_atom=True)


@pytest.fixture(scope="module")
def molecules():
    """The embedded molecules, in random order: types of each, and energies in eV."""
    with np.load(MOLECULES_FILE) as data:
        types = np.split(data["types"].astype(int), data["n_atoms"].astype(int).cumsum()[:-1])
        order = np.random.default_rng(0).permutation(len(types))
        return [types[i] for i in order], data["energy"].astype(float)[order]


def batch_of(types, energies):
    return {
        "z": torch.tensor(np.concatenate(types)),
        "n_atoms": torch.tensor([len(t) for t in types]),
        "energy": torch.tensor(energies),
    }


def update(declared, types, energies):
    ScaleAccumulator({"energy": declared}).update(batch_of(types, energies))


@pytest.mark.parametrize("size", [24, 32, 300])
def test_either_without_its_flag_is_warned_of(molecules, size):
    types, energies = (part[:size] for part in molecules)
    n_atoms = np.array([len(t) for t in types])
    with pytest.warns(UserWarning, match=r"'energy': totals are.*PerStructure\(per_atom=True\)"):
        update(TOTALS, types, energies / n_atoms)
    with pytest.warns(UserWarning, match=r"with per_atom=True.* declare them without per_atom"):
        update(PER_ATOM, types, energies)
    # As the warnings say, so that a second one would be an error.
    update(PER_ATOM, types, energies / n_atoms)
    update(TOTALS, types, energies)


@pytest.mark.slow
def test_energies_without_the_large_contributions_of_atoms_show_nothing(molecules):
    types, energies = molecules
    counts = np.stack([np.bincount(t, minlength=10) for t in types]).astype(float)
    rest = energies - counts @ np.linalg.lstsq(counts, energies, rcond=None)[0]
    for start in range(0, len(types) - 32, 32):
        for values in (rest, rest / counts.sum(1)):
            chosen = slice(start, start + 32)
            update(TOTALS, types[chosen], values[chosen])
            update(PER_ATOM, types[chosen], values[chosen])


def test_a_batch_of_few_structures_or_of_one_composition_shows_nothing(molecules):
    types, energies = (part[:10] for part in molecules)
    update(TOTALS, types, energies / [len(t) for t in types])
    noise = np.random.default_rng(1).normal(size=32)
    update(PER_ATOM, [np.array([8, 1, 1])] * 32, -2079.0 + noise)
    # Both fits are exact; their rounding errors are 0 and 5e-13.
    update(TOTALS, [np.array([8, 1, 1])] * 32, np.full(32, -2079.0))


@pytest.mark.parametrize(("size", "n_batches"), [(1, 14), (4, 4), (10, 2)])
def test_small_batches_are_collected_until_they_show_it(molecules, size, n_batches):
    """A first batch without fluorine, whose types are fewer than those of later ones."""
    types, energies = molecules
    # Three types: 14 structures are needed.
    kept = [i for i, t in enumerate(types) if {*t.tolist()} <= {1, 6, 8}][: size * n_batches]
    assert len(kept) == size * n_batches
    batches = [
        batch_of([types[i] for i in part], [energies[i] / len(types[i]) for i in part])
        for part in (kept[start : start + size] for start in range(0, len(kept), size))
    ]
    accumulator = ScaleAccumulator({"energy": TOTALS})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for batch in batches[:-1]:
            accumulator.update(batch)
    with pytest.warns(UserWarning, match="in the first .. structures.*per_atom=True"):
        accumulator.update(batches[-1])


def test_the_warning_is_given_once_and_missing_values_are_left_out(molecules):
    types, energies = (part[:64] for part in molecules)
    per_atom = energies / [len(t) for t in types]
    per_atom[::9] = np.nan
    accumulator = ScaleAccumulator({"energy": TOTALS})
    with pytest.warns(UserWarning, match="totals are expected") as given:
        accumulator.update(batch_of(types, per_atom))
    assert len(given) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        accumulator.update(batch_of(types, per_atom))
