"""The layouts of declared targets: known without being compared, unless they are others."""

import copy

import pytest
import torch

from lightning_scaler import PerAtom, PerStructure, ScaleAccumulator, Scaler
from lightning_scaler.plain_tensors import Declaration

DECLARED = {
    "energy": PerStructure(gradients={"positions": "-forces"}),
    "charges": PerAtom(properties=2),
}


def batch(n_properties=2):
    draws = torch.Generator().manual_seed(0)
    return {
        "z": torch.tensor([8, 1, 1, 6, 1]),
        "n_atoms": torch.tensor([3, 2]),
        "energy": torch.randn(2, generator=draws),
        "forces": torch.randn(5, 3, generator=draws),
        "charges": torch.randn(5, n_properties, generator=draws),
    }


def fitted(declared=DECLARED):
    accumulator = ScaleAccumulator(declared, baseline=None)
    accumulator.update(batch())
    return accumulator, accumulator.compute()


def loaded(scaler, tmp_path):
    scaler.save(tmp_path / "scaler.safetensors")
    return Scaler.load(tmp_path / "scaler.safetensors")


def updated(scaler, tmp_path):
    other = Scaler()
    other.update(scaler)
    return other


def copied(scaler, tmp_path):
    return copy.deepcopy(scaler)


def refitted(scaler, tmp_path):
    return fitted()[0].refit(scaler, "scales")


@pytest.mark.parametrize("change", [copied, loaded, refitted, updated])
def test_layouts_of_declared_targets_are_those_of_the_declaration(change, tmp_path):
    scaler = fitted()[1]
    for one in (scaler, change(scaler, tmp_path)):
        assert one.layouts.keys() == {"energy", "charges"}
        assert all(one.layouts[n] is one.declaration.layouts[n] for n in one.layouts)


def test_targets_declared_otherwise_than_fitted_are_refused():
    scaler = fitted()[1]
    scaler.declare(Declaration.parse({**DECLARED, "charges": PerAtom(properties=3)}, None))
    assert scaler.layouts["charges"] is not scaler.declaration.layouts["charges"]
    with pytest.raises(ValueError, match=r"target 'charges'.*expected properties.*got properties"):
        scaler.convert(batch(3), batch(3), "physical", "loss")


def test_a_gradient_declared_later_is_one_of_the_data():
    scaler = fitted({"energy": PerStructure()})[1]
    scaler.declare(Declaration.parse({"energy": DECLARED["energy"]}, None))
    given = batch()
    converted = scaler.convert(given, given, "physical", "loss")
    scale = scaler.scales["energy"].block().values.item()
    torch.testing.assert_close(converted["forces"], given["forces"] / scale)
