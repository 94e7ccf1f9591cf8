"""A network in physical units in Python, and the calculator of the documentation."""

import re
from pathlib import Path

import ase
import numpy as np
import pytest
import torch
from builders import Springs, fit, structure_target
from deployable import TARGETS, SmallNetwork, add_neighbors, molecules
from metatomic.torch import ModelOutput
from metatomic_ase import MetatomicCalculator

from lightning_scaler import CompositionBaseline, PhysicalModel

PAGE = (Path(__file__).parents[2] / "docs" / "deployment.md").read_text()


class Network(torch.nn.Module):
    """The small network as it is called in training, with the neighbor lists that it needs."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, systems):
        systems = add_neighbors(systems, self.network)
        return self.network(systems, {name: ModelOutput() for name in TARGETS})


def test_the_documented_calculator_agrees_with_the_exported_file(trained, float64_model):
    code = next(
        c for c in re.findall(r"```python\n(.*?)```", PAGE, re.S) if "class PhysicalCalculator" in c
    )
    names: dict = {}
    exec(code, names)
    network = Network(SmallNetwork())
    network.network.load_state_dict(trained.module.network.state_dict())
    molecule = molecules((8, 6, 1, 1), seed=5)[0]
    atoms = ase.Atoms(numbers=molecule.types.numpy(), positions=molecule.positions.numpy())
    atoms.calc = names["PhysicalCalculator"](PhysicalModel(network, trained.module.scaler))
    engine = atoms.copy()
    engine.calc = MetatomicCalculator(float64_model, device="cpu")
    kcal_mol = 0.0433641042418009  # eV
    energy, forces = atoms.get_potential_energy() * kcal_mol, atoms.get_forces() * kcal_mol
    assert energy == pytest.approx(engine.get_potential_energy(), rel=1e-14)
    np.testing.assert_allclose(forces, engine.get_forces(), rtol=1e-10, atol=1e-12)


def test_all_targets_are_those_of_predict(trained, predictions):
    model = PhysicalModel(trained.module, trained.module.scaler)
    for batch, expected in zip(trained.batches, predictions, strict=True):
        found = model(batch["system"])
        for name in TARGETS:
            for one, other in zip(found[name].blocks(), expected[name].blocks(), strict=True):
                assert torch.equal(one.values, other.values)


def test_forces_contain_the_part_of_an_additive_module():
    network = Network(SmallNetwork())
    systems = molecules((1, 8, 1), (1, 8))
    data = {"energy": structure_target([-76.0, -75.5], name="property")}
    fixed = CompositionBaseline({"energy": {1: -0.5, 8: -74.0}})
    springs = Springs(0.3, names=("energy",))
    scaler = fit(systems, data, baseline=fixed, additive=springs)
    molecule = molecules((1, 8, 1), seed=4)[0]
    molecule.positions.requires_grad_()
    energy = PhysicalModel(network, scaler)([molecule])["energy"].block().values
    (gradient,) = torch.autograd.grad(energy.sum(), molecule.positions)

    def moved(by):
        other = molecules((1, 8, 1), seed=4)[0]
        other.positions[0, 1] += by
        return PhysicalModel(network, scaler)([other])["energy"].block().values.item()

    numerical = (moved(1e-4) - moved(-1e-4)) / 2e-4
    assert gradient[0, 1].item() == pytest.approx(numerical, rel=1e-6)
