"""Additive modules in the exported file: totals, shares of atoms, selections, forces."""

# ruff: noqa: UP006, UP035, UP045 (metatomic compares the annotations of `forward` with its own)

from typing import Dict, List, Optional

import pytest
import torch
from builders import Springs, fit, labels, structure_target
from deployable import SmallNetwork, add_neighbors, molecules
from metatensor.torch import Labels, TensorBlock, TensorMap
from metatomic.torch import ModelEvaluationOptions, ModelOutput, System, load_atomistic_model

from lightning_scaler import CompositionBaseline, Scaler, export

MOLECULES = [(1, 8, 1), (6, 1, 1, 1, 1), (6, 8)]
FIXED = CompositionBaseline({"energy": {1: -13.0, 6: -1030.0, 8: -2040.0}})


class SpringsForEngines(torch.nn.Module):
    """Energies k r² of the atoms."""

    def __init__(self, k: float) -> None:
        super().__init__()
        self.k = k

    def forward(
        self,
        systems: List[System],
        outputs: Dict[str, ModelOutput],
        selected_atoms: Optional[Labels] = None,
    ) -> Dict[str, TensorMap]:
        result: Dict[str, TensorMap] = {}
        if "energy" not in outputs:
            return result
        energies: List[torch.Tensor] = []
        rows: List[torch.Tensor] = []
        for i, one in enumerate(systems):
            of_atoms = self.k * one.positions.square().sum(1, keepdim=True)
            atom = torch.arange(len(one))
            kept = torch.ones_like(atom) == 1
            if selected_atoms is not None:
                for a in range(len(one)):
                    kept[a] = selected_atoms.position([i, a]) is not None
            if outputs["energy"].sample_kind == "atom":
                rows.append(torch.stack([torch.full_like(atom, i), atom], 1)[kept])
                energies.append(of_atoms[kept])
            elif bool(kept.any()):
                rows.append(torch.tensor([[i]]))
                energies.append(of_atoms[kept].sum(0, keepdim=True))
        # In reverse order, which engines and this package must not mind.
        names = ["system", "atom"] if rows[0].size(1) == 2 else ["system"]
        samples = Labels(names, torch.cat(rows).flip(0))
        properties = Labels("energy", torch.tensor([[0]]))
        block = TensorBlock(torch.cat(energies).flip(0), samples, [], properties)
        result["energy"] = TensorMap(Labels("_", torch.tensor([[0]])), [block])
        return result


class ScriptableSprings(Springs):
    def scriptable(self, types):
        self.types = types
        return SpringsForEngines(self.k.item())


def energies_with_gradients(systems):
    slopes = [[[0.1, 0.0, 0.2]] * len(one) for one in systems]
    energies = [-2070.0, -1085.0, -3075.0]
    return structure_target(energies, name="property", gradient={"positions": slopes})


@pytest.fixture(scope="module")
def scaler():
    systems = molecules(*MOLECULES)
    data = {"energy": energies_with_gradients(systems)}
    springs = ScriptableSprings(0.3, names=("energy",))
    return fit(systems, data, baseline=FIXED, additive=springs)


@pytest.fixture(scope="module")
def network():
    return SmallNetwork(torch.float32)


@pytest.fixture(scope="module")
def path(scaler, network, tmp_path_factory):
    path = tmp_path_factory.mktemp("additive") / "model.pt"
    units = {"length_unit": "A", "interaction_range": 4.0}
    export(network, scaler, path, outputs={"energy": "eV"}, **units)
    return path


def run(path, kind="system", rows=None, differentiate=False):
    model = load_atomistic_model(str(path))
    systems = molecules(*MOLECULES, seed=1)
    if differentiate:
        for one in systems:
            one.positions.requires_grad_()
    add_neighbors(systems, model)
    selected = None if rows is None else labels(["system", "atom"], rows)
    outputs = {"energy": ModelOutput(unit="eV", sample_kind=kind)}
    options = ModelEvaluationOptions("A", outputs, selected)
    return systems, model(systems, options, check_consistency=True)["energy"].block()


def test_totals_have_the_bits_of_convert(path, scaler, network):
    systems = add_neighbors(molecules(*MOLECULES, seed=1), network)
    in_float32 = [one.to(torch.float32) for one in systems]
    prediction = network(in_float32, {"energy": ModelOutput()})
    expected = scaler.convert(systems, prediction, "model", "physical")["energy"].block()
    _, found = run(path)
    assert torch.equal(found.values, expected.values)


@pytest.mark.slow
def test_shares_and_selections_add_up(path):
    _, total = run(path)
    _, shares = run(path, "atom")
    owner = shares.samples.column("system").long()
    summed = torch.zeros_like(total.values).index_add_(0, owner, shares.values)
    torch.testing.assert_close(summed, total.values, rtol=1e-9, atol=0)
    every = shares.samples.values.tolist()
    # Systems without selected atoms count as 0.
    one, other = every[:4], every[4:]
    parts = [run(path, "system", rows)[1].values for rows in (one, other)]
    assert parts[0][2].item() == 0.0
    torch.testing.assert_close(parts[0] + parts[1], total.values, rtol=1e-9, atol=0)


def test_forces_contain_the_part_of_the_module(path, scaler, network):
    """2 k r of the springs, beside what autograd gives for the network alone."""
    systems, energies = run(path, differentiate=True)
    energies.values.sum().backward()
    bare = molecules(*MOLECULES, seed=1)
    for one in bare:
        one.positions.requires_grad_()
    add_neighbors(bare, network)
    prediction = network([one.to(torch.float32) for one in bare], {"energy": ModelOutput()})
    sigma = scaler.scales["energy"].block().values.item()
    (sigma * prediction["energy"].block().values).sum().backward()
    for one, other in zip(systems, bare, strict=True):
        springs = 2 * 0.3 * other.positions.detach()
        expected = other.positions.grad + springs
        torch.testing.assert_close(one.positions.grad, expected, rtol=1e-5, atol=1e-6)


# What is refused.


def test_a_module_that_torchscript_cannot_have_is_named(network, tmp_path):
    systems = molecules(*MOLECULES)
    data = {"energy": energies_with_gradients(systems)}
    scaler = fit(systems, data, baseline=FIXED, additive=Springs(0.3, names=("energy",)))
    with pytest.raises(TypeError, match=r"method scriptable\(types\).*got Springs, which has none"):
        refused(network, scaler, tmp_path)


def test_a_module_without_its_code_is_asked_for(scaler, network, tmp_path):
    scaler.save(tmp_path / "scaler")
    loaded = Scaler.load(tmp_path / "scaler")
    with pytest.raises(RuntimeError, match=r"set_additive\(ScriptableSprings\(...\)\)"):
        refused(network, loaded, tmp_path)


def refused(network, scaler, folder):
    units = {"length_unit": "A", "interaction_range": 4.0}
    export(network, scaler, folder / "model.pt", outputs={"energy": "eV"}, **units)
