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
from plain_module import DECLARED, OtherModule, batches

from lightning_scaler import CompositionBaseline, PhysicalModel, ScaleAccumulator, ScaledSteps

PAGE = (Path(__file__).parents[2] / "docs" / "deployment.md").read_text()


class Network(torch.nn.Module):
    """The small network as it is called in training, with the neighbor lists that it needs."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, systems):
        systems = add_neighbors(systems, self.network)
        return self.network(systems, {name: ModelOutput() for name in TARGETS})


def documented(*classes):
    """The names that the code blocks of the page define which have these classes."""
    names: dict = {}
    for code in re.findall(r"```python\n(.*?)```", PAGE, re.S):
        if any(f"class {name}(" in code for name in classes):
            exec(code, names)
    return names


@pytest.fixture
def plain():
    """A module of plain tensors in float32 with the scaler of its batches."""
    module, data = OtherModule().eval(), batches()
    accumulator = ScaleAccumulator(targets=DECLARED, baseline="composition")
    module.scaler = accumulator.fit(data)
    return module, data


def test_the_documented_calculator_agrees_with_the_exported_file(trained, float64_model):
    names = documented("PhysicalCalculator")
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


def test_an_output_of_plain_tensors_is_in_physical_units(plain):
    module, data = plain
    found = PhysicalModel(module, module.scaler)(data[0])
    expected = module.scaler.convert(data[0], module(data[0]), source="model", target="physical")
    assert list(found) == ["energy", "forces", "populations"]
    for name, tensor in found.items():
        assert torch.equal(tensor, expected[name])


def test_the_documented_calculator_of_plain_tensors(plain):
    """Energies by hand: scale times what the network gives, and a contribution of each atom."""
    module, _ = plain
    names = documented("PhysicalCalculator", "PlainCalculator")
    atoms = ase.Atoms("OHH", positions=[[0.1, 0.2, 0.3], [1.0, 0.5, 0.0], [0.0, 1.0, -0.5]])
    atoms.calc = names["PlainCalculator"](module)
    scales = module.scaler.targets["energy"]
    sigma, known = float(scales.per_target[0]), scales.baseline_types.tolist()
    contributions = dict(zip(known, scales.weights[(0,)][:, 0].tolist(), strict=True))
    weights = module.weights.weight.detach().double().numpy()[atoms.numbers]
    in_model_space = weights[:, 0] + weights[:, 1] * np.square(atoms.positions).sum(1)
    energy = sigma * in_model_space.sum() + sum(contributions[z] for z in atoms.numbers)
    assert atoms.get_potential_energy() == pytest.approx(energy, rel=0, abs=1e-6 * sigma)
    forces = -2 * sigma * weights[:, 1:2] * atoms.positions
    np.testing.assert_allclose(atoms.get_forces(), forces, rtol=1e-6)


def test_an_output_that_is_the_batch_itself_holds_predictions(plain):
    module, data = plain

    class Writes(torch.nn.Module):
        def forward(self, batch):
            batch.update(module(batch))
            return batch

    found = PhysicalModel(Writes(), module.scaler)(dict(data[0]))
    assert torch.equal(found["energy"], PhysicalModel(module, module.scaler)(data[0])["energy"])


def test_what_is_neither_systems_nor_a_declared_batch(plain):
    module, data = plain
    scaler = fit(molecules((1, 8, 1)), {"energy": structure_target([-76.0], name="property")})
    with pytest.raises(TypeError, match=r"expected a list of metatomic systems.*got dict"):
        PhysicalModel(module, scaler)(data[0])
    with pytest.raises(TypeError, match=r"got list; metatomic\.torch\.systems_to_torch"):
        PhysicalModel(module, scaler)([ase.Atoms("H")])


def test_a_module_that_converts_by_itself_is_refused(plain):
    class Ours(ScaledSteps, OtherModule): ...

    with pytest.raises(TypeError, match=r"expected a network in model space, got Ours"):
        PhysicalModel(Ours(), plain[0].scaler)
