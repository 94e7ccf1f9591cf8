"""Scales and baselines from checkpoints that metatrain wrote.

``tests/parity/make_fixture.py`` writes the files in ``metatrain_fixture``; the other modules of
``tests/parity`` compare with metatrain itself.
"""

import json
import math
import re
from pathlib import Path

import metatensor.torch as mts
import pytest
import torch
from builders import (
    atom_samples,
    atom_target,
    atomic_basis,
    block,
    cartesian,
    labels,
    pair_target,
    single,
    structure_target,
    system,
)
from lightning import LightningModule
from metatensor.torch import Labels, TensorBlock, TensorMap
from small_training import quiet_trainer
from torch.utils.data import DataLoader

from lightning_scaler import Scaler, TargetScaler, TargetScalingMixin

FIXTURE = Path(__file__).parent / "metatrain_fixture"
FILES = (FIXTURE / "scaler.ckpt", FIXTURE / "composition_model.ckpt")
EXPECTED = json.loads((FIXTURE / "expected.json").read_text())
SYSTEMS = [system(*types) for types in EXPECTED["types"]]
COUNTS = [len(types) for types in EXPECTED["types"]]
ORBITALS = [(0, 1), (0, 6), (1, 6), (0, 8), (1, 8)]


def tensor(name, space):
    values = [torch.tensor(one[space], dtype=torch.float64) for one in EXPECTED[name]]
    if name == "energy":
        return structure_target(values[0])
    if name == "forces":
        return atom_target(values[0], atom_samples(*COUNTS), components=cartesian())
    samples = {
        z: [
            [i, atom]
            for i, types in enumerate(EXPECTED["types"])
            for atom, found in enumerate(types)
            if found == z
        ]
        for z in (1, 6, 8)
    }
    return atomic_basis(dict(zip(ORBITALS, values, strict=True)), samples)


def buffer(tensor):
    return mts.save_buffer(mts.make_contiguous(tensor))


def scales_of(target, values, n_types=None, keys=None):
    """The scales of a target as metatrain stores them, ``(n_types, n_properties)`` by block."""
    rows = [-1] if n_types is None else range(n_types)
    blocks = [
        TensorBlock(
            torch.tensor(numbers, dtype=torch.float64),
            labels("atomic_type", rows),
            [],
            of.properties,
        )
        for of, numbers in zip(target.blocks(), values, strict=True)
    ]
    return TensorMap(keys or target.keys, blocks)


def state_dict(name, target, full, per_target, per_property=None, n_types=None):
    ones = [[[1.0] * len(row) for row in one] for one in full]
    numbers = {"": full, "_per_target": per_target, "_per_property": per_property or ones}
    return {
        f"{name}{kind}_scaler_buffer": buffer(scales_of(target, values, n_types))
        for kind, values in numbers.items()
    }


def composition(name, target, values, types):
    """Composition weights of a target, ``(n_types, *components, n_properties)`` by block."""
    samples = labels("center_type", types)
    blocks = [
        TensorBlock(torch.as_tensor(v, dtype=torch.float64), samples, of.components, of.properties)
        for of, v in zip(target.blocks(), values, strict=True)
    ]
    return {f"{name}_composition_buffer": buffer(TensorMap(target.keys, blocks))}


ENERGY = structure_target([0.0])
ENERGY_STATE = state_dict("energy", ENERGY, [[[0.5]]], [[[0.5]]])
CHARGES = atom_target([0.0], [[0, 0]])
CHARGES_STATE = state_dict("charges", CHARGES, [[[0.2], [0.4]]], [[[0.2], [0.4]]], n_types=2)


@pytest.mark.parametrize("name", ["energy", "forces", "orbitals"])
def test_physical_predictions_equal_those_of_metatrain(name):
    scaler = Scaler.from_metatrain(*FILES)
    converted = scaler.convert(SYSTEMS, {name: tensor(name, "model")}, "model", "physical")[name]
    for one, other in zip(converted.blocks(), tensor(name, "physical").blocks(), strict=True):
        torch.testing.assert_close(one.values, other.values, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", ["energy", "forces", "orbitals"])
def test_conversions_and_their_inverses_return_the_prediction(name):
    scaler, model = Scaler.from_metatrain(*FILES), {name: tensor(name, "model")}
    physical = scaler.convert(SYSTEMS, model, "model", "physical")
    loss = scaler.convert(SYSTEMS, physical, "physical", "loss")
    again = scaler.convert(SYSTEMS, loss, "loss", "model")[name]
    for one, other in zip(again.blocks(), model[name].blocks(), strict=True):
        torch.testing.assert_close(one.values, other.values)


def test_settings_of_the_checkpoint():
    scaler = Scaler.from_metatrain(*FILES)
    assert list(scaler.targets) == ["energy", "forces", "orbitals"]
    assert (scaler.settings.baseline, scaler.settings.unseen_types) == ("composition", "error")
    assert scaler.targets["energy"].extensive
    assert not scaler.targets["forces"].extensive
    assert math.isnan(scaler.targets["energy"].rms_before)
    intensive = Scaler.from_metatrain(*FILES, intensive_targets=["energy"])
    assert not intensive.targets["energy"].extensive


class ConstantNet(TargetScalingMixin, LightningModule):
    """Predicts the fixture's energies, times a weight."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(1.5))
        self.scaler = Scaler.from_metatrain(*FILES)

    def forward(self, systems):
        values = self.weight * tensor("energy", "model").block().values
        return {"energy": structure_target(values, dtype=values.dtype)}

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


@pytest.mark.slow
def test_training_keeps_the_scales_unless_settings_contradict(tmp_path):
    batch = {"system": SYSTEMS, "energy": tensor("energy", "physical")}
    loader = DataLoader([batch], batch_size=None)
    net = ConstantNet()
    before = net.scaler.scales["energy"].block().values
    quiet_trainer(tmp_path).fit(net, loader, loader)
    assert torch.equal(net.scaler.scales["energy"].block().values, before)
    assert net.weight != 1.5
    contradicting = TargetScaler(intensive_targets=["energy"])
    with pytest.raises(ValueError, match="intensive_targets: energy was False and is True"):
        quiet_trainer(tmp_path, callbacks=[contradicting]).fit(net, loader, loader)
    quiet_trainer(tmp_path, callbacks=[TargetScaler()]).fit(net, loader, loader)
    assert torch.equal(net.scaler.scales["energy"].block().values, before)


def test_checkpoints_without_per_target_scales_are_refused():
    old = {"energy_scaler_buffer": ENERGY_STATE["energy_scaler_buffer"]}
    with pytest.raises(ValueError, match=r"'energy': expected per-target .* only \['full'\]"):
        Scaler.from_metatrain(old, {}, layouts={"energy": ENERGY})


def test_checkpoints_without_scales_are_refused():
    with pytest.raises(
        ValueError, match="expected buffers named '<target>_scaler_buffer', got none"
    ):
        Scaler.from_metatrain(FILES[1])


def test_scales_of_metatrain_are_saved_and_loaded(tmp_path):
    scaler = Scaler.from_metatrain(*FILES)
    scaler.save(tmp_path / "scaler.pt")
    model = {"energy": tensor("energy", "model")}
    one, other = (
        each.convert(SYSTEMS, model, "model", "physical")["energy"].block().values
        for each in (scaler, Scaler.load(tmp_path / "scaler.pt"))
    )
    assert torch.equal(one, other)


def test_scales_fitted_after_a_baseline_need_its_checkpoint():
    with pytest.raises(
        ValueError, match=r"after subtracting \['CompositionModel'\].*thousands of eV"
    ):
        Scaler.from_metatrain(FILES[0])
    with pytest.raises(ValueError, match=r"after subtracting \['CompositionModel'\]"):
        Scaler.from_metatrain(FILES[0], {})


def test_composition_weights_of_other_targets_are_refused():
    forces_only = composition("charges", CHARGES, [[[0.0], [0.0]]], [1, 8])
    with pytest.raises(ValueError, match=r"target 'energy': expected composition weights.*charges"):
        Scaler.from_metatrain(FILES[0], forces_only)


def test_composition_checkpoint_without_weights_is_refused():
    with pytest.raises(ValueError, match="expected buffers named '<target>_composition_buffer'"):
        Scaler.from_metatrain(FILES[0], FILES[0])


def test_state_dict_without_baseline():
    with pytest.raises(ValueError, match="does not say whether additive models were subtracted"):
        Scaler.from_metatrain(ENERGY_STATE)
    scaler = Scaler.from_metatrain(ENERGY_STATE, {}, layouts={"energy": ENERGY})
    assert scaler.settings.baseline == "none"
    assert scaler.scales["energy"].block().values.tolist() == [[0.5]]
    physical = scaler.convert([system(8)], {"energy": structure_target([3.0])}, "model", "physical")
    assert physical["energy"].block().values.tolist() == [[1.5]]


def test_state_dict_with_baseline():
    # 3 · 0.5 + 2 · (−13.5) − 2000 of water; the order of the types is that of the buffer.
    weights = composition("energy", ENERGY, [[[-2000.0], [-13.5]]], [8, 1])
    scaler = Scaler.from_metatrain(ENERGY_STATE, weights)
    model = {"energy": structure_target([3.0])}
    physical = scaler.convert([system(1, 8, 1)], model, "model", "physical")
    assert physical["energy"].block().values.tolist() == [[-2025.5]]


def test_state_dict_of_a_whole_model_includes_its_composition():
    nested = {f"model.scaler.{name}": value for name, value in ENERGY_STATE.items()}
    weights = composition("energy", ENERGY, [[[-13.5], [-2000.0]]], [1, 8])
    nested |= {f"model.additive_models.0.{name}": value for name, value in weights.items()}
    scaler = Scaler.from_metatrain(nested)
    assert scaler.targets["energy"].baseline_types.tolist() == [1, 8]
    with pytest.raises(ValueError, match="contains its composition weights; leave composition out"):
        Scaler.from_metatrain(nested, weights)
    nested["model.additive_models.1.dummy_buffer"] = torch.zeros(1)
    with pytest.raises(ValueError, match=r"additive models .*'additive_models\.1'"):
        Scaler.from_metatrain(nested)


@pytest.mark.parametrize("best", [0.25, None])
def test_scales_are_those_of_the_best_model_if_the_checkpoint_has_one(best):
    """As in metatrain's export; the best model is None before the first validation."""
    checkpoint = {"model_state_dict": ENERGY_STATE, "best_model_state_dict": None}
    checkpoint["training_additive_models"] = []
    if best is not None:
        checkpoint["best_model_state_dict"] = state_dict("energy", ENERGY, [[[best]]], [[[best]]])
    scaler = Scaler.from_metatrain(checkpoint, layouts={"energy": ENERGY})
    assert scaler.scales["energy"].block().values.tolist() == [[best or 0.5]]


def test_checkpoint_fitted_without_baseline():
    checkpoint = {"model_state_dict": ENERGY_STATE, "training_additive_models": []}
    scaler = Scaler.from_metatrain(checkpoint, layouts={"energy": ENERGY})
    assert scaler.settings.baseline == "none"
    with pytest.raises(ValueError, match="had no additive models; leave composition out"):
        Scaler.from_metatrain(checkpoint, FILES[1])


def test_additive_models_other_than_the_composition_are_refused():
    checkpoint = {
        "model_state_dict": ENERGY_STATE,
        "training_additive_models": ["CompositionModel", "ZBL"],
    }
    with pytest.raises(
        ValueError, match=r"models \['CompositionModel', 'ZBL'\], of which .*fit again"
    ):
        Scaler.from_metatrain(checkpoint, FILES[1])


def test_a_state_dict_needs_the_atomic_types():
    with pytest.raises(ValueError, match=r"'charges': expected the 2 atomic types .*atomic_types="):
        Scaler.from_metatrain(CHARGES_STATE, {}, layouts={"charges": CHARGES})
    scaler = Scaler.from_metatrain(
        CHARGES_STATE, {}, layouts={"charges": CHARGES}, atomic_types=[8, 1]
    )
    assert scaler.targets["charges"].types.tolist() == [1, 8]
    assert scaler.scales["charges"].block().values.tolist() == [[0.2], [0.4]]
    with pytest.raises(ValueError, match=r"no scale for the atomic types \[6\]"):
        scaler.convert([system(6)], {"charges": CHARGES})


def test_a_state_dict_needs_the_layout_of_cartesian_targets():
    with pytest.raises(ValueError, match=r"'charges': the state dict does not say .*layouts="):
        Scaler.from_metatrain(CHARGES_STATE, {}, atomic_types=[1, 8])
    vectors = atom_target(torch.ones(3, 3, 1), atom_samples(3), components=cartesian())
    scaler = Scaler.from_metatrain(
        state_dict("f", vectors, [[[2.0], [4.0]]], [[[2.0], [4.0]]], n_types=2),
        {},
        layouts={"f": vectors},
        atomic_types=[1, 8],
    )
    loss = scaler.convert([system(1, 8, 1)], {"f": vectors})["f"].block().values
    assert loss[:, 0, 0].tolist() == [0.5, 0.25, 0.5]


def test_components_of_spherical_targets_are_derived_from_the_keys():
    mu = [labels("o3_mu_1", [0]), labels("o3_mu_2", [-1, 0, 1])]
    keys = labels(["o3_lambda_1", "o3_lambda_2", "o3_sigma_1", "o3_sigma_2"], [[0, 1, 1, 1]])
    target = TensorMap(keys, [block(torch.ones(1, 1, 3, 2), labels("system", [0]), mu)])
    state = state_dict("t", target, [[[6.0, 1.5]]], [[[3.0, 3.0]]], [[[2.0, 0.5]]])
    scaler = Scaler.from_metatrain(state, {})
    model = scaler.convert([system(8)], {"t": target}, "physical", "model")["t"]
    assert model.block().values[0, 0].tolist() == [[1 / 6, 1 / 1.5]] * 3


def test_properties_without_data_have_scales_whose_product_is_one():
    # metatrain: full scale 1, per-target 4, per-property 1. Here 1 = 4 · 0.25.
    target = structure_target([[0.0, 0.0]])
    state = state_dict("t", target, [[[8.0, 1.0]]], [[[4.0, 4.0]]], [[[2.0, 1.0]]])
    scaler = Scaler.from_metatrain(state, {}, layouts={"t": target})
    assert scaler.per_property_scales["t"].block().values.tolist() == [[2.0, 0.25]]
    assert scaler.scales["t"].block().values.tolist() == [[8.0, 1.0]]


def test_properties_whose_data_are_zero_are_predicted_as_zero(tmp_path):
    target = structure_target([[0.0, 0.0]])
    state = state_dict("t", target, [[[8.0, 0.0]]], [[[4.0, 4.0]]], [[[2.0, 0.0]]])
    scaler = Scaler.from_metatrain(state, {}, layouts={"t": target})
    scaler.save(tmp_path / "scaler")
    ones = {"t": structure_target([[1.0, 1.0]])}
    for each in (scaler, Scaler.load(tmp_path / "scaler")):
        physical = each.convert([system(8)], ones, "model", "physical")["t"].block().values
        assert physical.tolist() == [[8.0, 0.0]]


@pytest.mark.parametrize("scale", [0.0, torch.finfo(torch.float64).max, math.nan, -1.0])
def test_scales_that_are_not_finite_and_positive_are_refused(scale):
    state = state_dict("energy", ENERGY, [[[scale]]], [[[scale]]])
    with pytest.raises(ValueError, match="target 'energy': expected finite positive scales, got"):
        Scaler.from_metatrain(state, {}, layouts={"energy": ENERGY})


def test_baseline_of_the_trace_of_a_rank_2_block():
    mu = [labels("o3_mu_1", [-1, 0, 1]), labels("o3_mu_2", [-1, 0, 1])]
    names = ["o3_lambda_1", "o3_lambda_2", "o3_sigma_1", "o3_sigma_2"]
    values = torch.zeros(1, 3, 3, 1)
    proper, improper = (
        TensorMap(labels(names, [[1, 1, s, s]]), [block(values, labels("system", [0]), mu)])
        for s in (1, -1)
    )
    isotropic = 5.0 * torch.eye(3)[None, :, :, None]
    scaler = Scaler.from_metatrain(
        state_dict("t", proper, [[[2.0]]], [[[2.0]]]), composition("t", proper, [isotropic], [8])
    )
    assert scaler.targets["t"].weights[(1, 1, 1, 1)].tolist() == [[5.0]]
    physical = scaler.convert([system(8, 8)], {"t": proper}, "model", "physical")["t"]
    assert physical.block().values[0, :, :, 0].tolist() == (10.0 * torch.eye(3)).tolist()
    with pytest.raises(ValueError, match="expected composition weights of invariant blocks only"):
        Scaler.from_metatrain(
            state_dict("t", improper, [[[2.0]]], [[[2.0]]]),
            composition("t", improper, [isotropic], [8]),
        )


def test_atom_pairs_have_identity_scales():
    target = pair_target([[1.0]], [[0, 0, 1, 0, 0, 0]])
    samples = Labels(["first_atomic_type", "second_atomic_type"], torch.tensor([[0, 0]]))
    ones = TensorBlock(torch.ones(1, 1).double(), samples, [], target.block().properties)
    ones = buffer(TensorMap(target.keys, [ones]))
    state = {f"p{kind}_scaler_buffer": ones for kind in ("", "_per_target", "_per_property")}
    scaler = Scaler.from_metatrain(state, {}, layouts={"p": target})
    converted = scaler.convert([system(1, 1)], {"p": target}, "physical", "model")["p"]
    assert converted.block().values.tolist() == [[1.0]]
    with pytest.raises(ValueError, match="does not say whether this target is a scalar"):
        Scaler.from_metatrain(state, {})


def test_properties_that_differ_from_the_layout_are_refused():
    with pytest.raises(ValueError, match=re.escape("a block (_=0) with the properties")):
        Scaler.from_metatrain(ENERGY_STATE, {}, layouts={"energy": structure_target([[0.0, 1.0]])})
    other = single(block([0.0], labels("system", [0]), property_name="u"))
    with pytest.raises(ValueError, match=re.escape("a block (_=0) with the properties")):
        Scaler.from_metatrain(ENERGY_STATE, {}, layouts={"energy": other})


def test_unknown_target_names_suggest_the_nearest():
    with pytest.raises(ValueError, match=r"intensive_targets names the target 'enrgy'.*'energy'"):
        Scaler.from_metatrain(*FILES, intensive_targets=["enrgy"])
    with pytest.raises(ValueError, match=r"layouts names the target 'enrgy'.*did you mean"):
        Scaler.from_metatrain(*FILES, layouts={"enrgy": ENERGY})


def test_fixed_scales_fixed_baseline_and_disabled_scaling_are_read():
    weights = composition("energy", ENERGY, [[[-13.5], [-2000.0]]], [1, 8])
    checkpoint = {
        "model_state_dict": {
            **{f"scaler.{name}": value for name, value in ENERGY_STATE.items()},
            **{f"additive_models.0.{name}": value for name, value in weights.items()},
        },
        "train_hypers": {
            "scale_targets": False,
            "fixed_scaling_weights": {"energy": 0.5, "other": 1.0},
            "atomic_baseline": {"energy": {1: -13.5, 8: -2000.0}},
            "per_structure_targets": ["energy", "other"],
        },
    }
    scaler = Scaler.from_metatrain(checkpoint)
    assert (scaler.settings.enabled, scaler.settings.baseline) == (False, "composition")
    energy = scaler.targets["energy"]
    assert energy.fixed == 0.5
    assert energy.fixed_weights == {1: -13.5, 8: -2000.0}
    assert not energy.extensive
    checkpoint["train_hypers"] |= {"fixed_scaling_weights": "scaler.ckpt", "atomic_baseline": {}}
    assert Scaler.from_metatrain(checkpoint).targets["energy"].fixed is None
