"""Forces that are a target of their own beside an energy without gradients."""

import re

import metatensor.torch
import numpy as np
import pytest
import torch
from builders import (
    atom_samples,
    atom_target,
    cartesian,
    fit,
    forces,
    labels,
    single,
    structure_target,
    system,
)
from metatensor.torch import TensorBlock

from lightning_scaler import CompositionBaseline, ScaleAccumulator
from lightning_scaler.fitting import describe_force_targets
from lightning_scaler.molecules.dataset import MOLECULES_FILE, MoleculesDataset, collate

FITTED = CompositionBaseline()
SYSTEMS = [system(8), system(1, 8, 1)]
ENERGY = structure_target([1.0, 2.0])
FORCES = np.arange(12.0).reshape(4, 3).tolist()
VECTORS = atom_target(FORCES, atom_samples(1, 3), "forces", cartesian())


def words_about(**targets):
    return describe_force_targets(fit(SYSTEMS, targets).layouts)


@pytest.mark.parametrize("name", ["forces", "force", "dft_forces", "mtt::forces", "Forces"])
@pytest.mark.parametrize("energy", ["energy", "mtt::energy_pbe"])
def test_forces_beside_an_energy_without_gradients_are_found(name, energy):
    words = rf"'{name}' and the energy '{energy}'.* gradient 'positions', with its sign \(minus\)"
    assert re.search(words, words_about(**{energy: ENERGY, name: VECTORS}))


def test_following_the_warning_gives_forces_that_are_the_derivative_of_the_energy():
    """F = -dE/dx: dividing both by the one scale of the energy keeps the relation."""
    energy_block = structure_target([1.0, 2.0]).block().copy()
    rows = labels(["sample", "atom"], [[0, 0], [1, 0], [1, 1], [1, 2]])
    (xyz,), values = cartesian(), torch.tensor(FORCES).double().unsqueeze(-1)
    energy_block.add_gradient(
        "positions", TensorBlock(-values, rows, [xyz], energy_block.properties)
    )
    energy = single(energy_block)
    scaler = fit(SYSTEMS, {"energy": energy})
    assert describe_force_targets(scaler.layouts) is None
    in_loss = scaler.convert(SYSTEMS, {"energy": energy})["energy"].block()
    sigma = scaler.per_target_scales["energy"].block().values.item()
    torch.testing.assert_close(in_loss.gradient("positions").values, -values / sigma)


def test_scales_of_forces_of_the_molecules_are_four_to_eight_times_that_of_the_energy():
    """By these factors, predicted forces would differ from -dE/dx of the predicted energy."""
    with np.load(MOLECULES_FILE) as data:
        train = data["split"] == 0
        of_atoms = np.repeat(train, data["n_atoms"])
        sizes = data["n_atoms"][train].astype(int)
        energies = data["energy"][train].astype(float).ravel()
        types, vectors = data["types"][of_atoms], data["forces"][of_atoms].astype(float)
    starts = np.cumsum(sizes) - sizes
    counts = np.stack([np.add.reduceat(types == z, starts, dtype=int) for z in np.unique(types)], 1)
    residuals = energies - counts @ np.linalg.lstsq(counts, energies, rcond=None)[0]
    energy_scale = np.sqrt(np.mean((residuals / sizes) ** 2))
    ratios = [np.sqrt(np.mean(vectors[types == z] ** 2)) / energy_scale for z in np.unique(types)]
    assert [min(ratios), max(ratios)] == pytest.approx([3.55, 7.56], abs=0.01)
    dataset, accumulator = MoleculesDataset("train", 5.0), ScaleAccumulator(baseline=FITTED)
    batch = collate([dataset[i] for i in range(len(dataset))])
    energy = metatensor.torch.remove_gradients(batch["energy"])
    samples = batch["charges"].block().samples
    own = single(
        TensorBlock(torch.from_numpy(vectors)[..., None], samples, cartesian(), labels("f", [0]))
    )
    accumulator.update(batch["system"], {"energy": energy, "forces": own})
    scaler = accumulator.compute()
    assert describe_force_targets(scaler.layouts) is not None
    scales = [scaler.per_target_scales[name].block().values[:, 0] for name in ("forces", "energy")]
    torch.testing.assert_close(scales[0] / scales[1], torch.tensor(ratios), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    "targets",
    [
        {"energy": ENERGY, "non_conservative_forces": VECTORS},
        {"energy": ENERGY, "direct_forces": VECTORS},
        {"energy": ENERGY, "velocities": VECTORS},
        {"energy": ENERGY, "reinforcement": VECTORS},
        {"energy": ENERGY, "forces": atom_target([1.0] * 4, atom_samples(1, 3))},
        {"gap": ENERGY, "forces": VECTORS},
        {"forces": VECTORS},
        {
            "energy": structure_target([1.0, 2.0], gradient={"positions": [[[1, 2, 3]]] * 2}),
            "forces": forces(FORCES, 1, 3),
        },
    ],
    ids=lambda targets: "+".join(targets),
)
def test_other_targets_are_left_alone(targets):
    assert words_about(**targets) is None
