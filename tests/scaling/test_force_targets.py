"""Forces that are a target of their own beside an energy without gradients."""

import re

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

from lightning_scaler.scaling import describe_force_targets

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
