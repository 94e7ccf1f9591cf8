"""The Scaler as a module: what it shows, how it is cast, copied, saved and restored."""

import copy
import pickle
from collections import OrderedDict

import pytest
import torch
from builders import (
    fit,
    four_targets,
    labels,
    structure_target,
    system,
)
from by_hand import rms

from lightning_scaler import CompositionBaseline, ScaleAccumulator, Scaler

SYSTEMS, _ = four_targets()


def data():
    return four_targets()[1]


def fitted(**options):
    options = {"baseline": CompositionBaseline(), "intensive_targets": ["alpha"]} | options
    return fit(SYSTEMS, data(), **options)


def all_numbers(scaler):
    shown = (scaler.per_target_scales, scaler.per_property_scales, scaler.scales)
    scales = [b.values.flatten() for tensors in shown for t in tensors.values() for b in t.blocks()]
    converted = scaler.convert(SYSTEMS, data(), "physical", "model")
    scales += [b.values.flatten() for tensor in converted.values() for b in tensor.blocks()]
    return torch.cat(scales)


def assert_identical(first, second):
    assert torch.equal(all_numbers(first), all_numbers(second))
    assert list(first.targets) == list(second.targets)
    assert first.settings == second.settings


def test_not_fitted():
    scaler = Scaler()
    assert not scaler.fitted
    assert scaler.scales == scaler.per_target_scales == scaler.per_property_scales == {}
    energy = data()["energy"]
    assert scaler.convert(SYSTEMS, {"energy": energy})["energy"] is energy
    plain = {"z": torch.tensor([8]), "n_atoms": torch.tensor([1]), "energy": torch.tensor([-3.0])}
    with pytest.raises(RuntimeError, match="expected a Scaler with scales, got one that is not"):
        scaler.convert(plain, plain)
    assert repr(scaler) == "Scaler(not fitted)"


def test_displayed_scales():
    scaler, targets = fitted(), data()
    assert scaler.fitted
    shown = "Scaler(energy, alpha, charges: types [1, 6, 8], basis: types [1, 6, 8])"
    assert repr(scaler) == shown
    for shown in (scaler.scales, scaler.per_target_scales, scaler.per_property_scales):
        assert list(shown) == list(targets)
        for name, tensor in shown.items():
            assert tensor.keys == targets[name].keys
            types = [-1] if name in ("energy", "alpha") else [1, 6, 8]
            for block, like in zip(tensor.blocks(), targets[name].blocks(), strict=True):
                assert block.samples == labels("atomic_type", types)
                assert block.properties == like.properties
                assert block.components == []
                assert block.values.dtype == torch.float64
                assert (block.values > 0).all()


def entries(name):
    """Numbers of the data, per atom where extensive, by block, property and type."""
    types = [s.types.tolist() for s in SYSTEMS]
    found = {}
    for row, block in enumerate(data()[name].blocks()):
        for sample, values in zip(block.samples.values.tolist(), block.values, strict=True):
            z = types[sample[0]][sample[1]] if len(sample) == 2 else -1
            n_atoms = len(types[sample[0]]) if name == "energy" else 1
            for column, of_property in enumerate((values / n_atoms).unbind(-1)):
                found.setdefault((row, column, z), []).extend(of_property.flatten().tolist())
    return found


@pytest.mark.parametrize("name", ["energy", "alpha", "charges", "basis"])
def test_scales_are_the_rms_of_the_data(name):
    """Without a baseline, by plain loops: of each property (full), and of each type (per target).

    A type without data has 1; in an atomic basis, that is what a block has for the other types.
    """
    scaler, by_group = fitted(baseline=None), entries(name)
    blocks = zip(
        scaler.scales[name].blocks(),
        scaler.per_target_scales[name].blocks(),
        scaler.per_property_scales[name].blocks(),
        strict=True,
    )
    n_compared = 0
    for row, (full, per_target, per_property) in enumerate(blocks):
        for i, z in enumerate(full.samples.column("atomic_type").tolist()):
            of_type = [x for group, numbers in by_group.items() if group[2] == z for x in numbers]
            sigma = rms(*of_type) if of_type else 1.0
            for column in range(full.values.shape[1]):
                numbers = by_group.get((row, column, z))
                wanted = rms(*numbers) if numbers else 1.0
                assert full.values[i, column].item() == pytest.approx(wanted, rel=1e-13)
                assert per_target.values[i, column].item() == pytest.approx(sigma, rel=1e-13)
                relative = per_property.values[i, column].item()
                assert relative == pytest.approx(wanted / sigma, rel=1e-13)
                n_compared += 1
    # One number; three properties; three types of two; a block each of one and two, three types.
    assert n_compared == {"energy": 1, "alpha": 3, "charges": 6, "basis": 9}[name]


def test_neither_parameters_nor_buffers():
    scaler = fitted()
    assert list(scaler.parameters()) == list(scaler.buffers()) == []
    assert list(scaler.state_dict()) == ["_extra_state"]


@pytest.mark.parametrize(
    "cast",
    [
        lambda module: module.half(),
        lambda module: module.to(torch.bfloat16),
        lambda module: module.float(),
        lambda module: module.to("cpu", torch.float32),
    ],
)
def test_casts_never_round_the_scales(cast):
    holder = torch.nn.ModuleDict({"layer": torch.nn.Linear(2, 2), "scaler": fitted()})
    before = all_numbers(holder["scaler"])
    assert holder["layer"].weight.dtype == torch.float32
    cast(holder)
    assert torch.equal(all_numbers(holder["scaler"]), before)
    assert all(
        b.values.dtype == torch.float64
        for t in holder["scaler"].scales.values()
        for b in t.blocks()
    )


def test_scales_follow_the_device():
    scaler = fitted().to("meta")
    assert scaler.scales["energy"].block().values.device.type == "meta"
    assert scaler.to_empty(device="cpu").scales["energy"].block().values.device.type == "cpu"


def test_copies():
    scaler = fitted()
    assert_identical(copy.deepcopy(scaler), scaler)
    assert_identical(pickle.loads(pickle.dumps(scaler)), scaler)


def test_copy_goes_its_own_way():
    scaler = fitted()
    other = copy.deepcopy(scaler)
    other.load_state_dict(Scaler().state_dict())
    assert scaler.fitted
    assert not other.fitted


@pytest.mark.parametrize("unseen", ["error", "pooled", "identity"])
def test_save_and_load(tmp_path, unseen):
    fixed = CompositionBaseline({"energy": {1: -0.5, 6: -38, 8: -75}})
    scaler = fitted(
        fixed_scales={"energy": 2, "charges": {1: 1, 6: 2, 8: 3}},
        baseline=fixed,
        unseen_types=unseen,
        system_labels="position",
    )
    scaler.save(tmp_path / "scaler.pt")
    again = Scaler.load(tmp_path / "scaler.pt")
    assert_identical(again, scaler)
    assert again.settings.unseen_types == unseen
    assert again.settings.system_labels == "position"
    assert again.targets["energy"].fixed == 2.0
    assert again.targets["charges"].fixed == {1: 1.0, 6: 2.0, 8: 3.0}
    assert again.targets["energy"].fixed_weights == {1: -0.5, 6: -38.0, 8: -75.0}
    assert again.targets["energy"].extensive
    assert not again.targets["alpha"].extensive


def test_state_dict_of_a_module_that_holds_it(tmp_path):
    def module(scaler):
        return torch.nn.ModuleDict({"layer": torch.nn.Linear(2, 2), "scaler": scaler})

    torch.save(module(fitted()).state_dict(), tmp_path / "model.pt")
    again = module(Scaler())
    again.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    assert_identical(again["scaler"], fitted())


def without_scales(model):
    return OrderedDict((k, v) for k, v in model.state_dict().items() if "scaler" not in k)


@pytest.mark.parametrize("strict", [True, False])
def test_a_state_dict_without_scales_never_changes_the_scaler(strict):
    """Weights of adapters, averaged or filtered weights, and weights from before the plugin."""
    model = torch.nn.ModuleDict({"layer": torch.nn.Linear(2, 2), "scaler": fitted()})
    old = without_scales(model)
    names = list(old)
    assert model.load_state_dict(old, strict=strict) == ([], [])
    assert_identical(model["scaler"], fitted())
    fresh = torch.nn.ModuleDict({"layer": torch.nn.Linear(2, 2), "scaler": Scaler()})
    assert fresh.load_state_dict(old, strict=strict) == ([], [])
    assert not fresh["scaler"].fitted
    assert list(old) == names


def test_an_unknown_entry_of_the_scaler_in_a_state_dict_is_still_unexpected():
    with pytest.raises(RuntimeError, match=r"Unexpected key.*\"scale\""):
        fitted().load_state_dict({"scale": torch.ones(1)})


def test_state_of_the_first_version():
    state = fitted().state()
    state["version"] = 1
    del state["additive"]
    for scales in state["targets"].values():
        del scales["additive"], scales["explained"]
    old = Scaler()
    old.set_extra_state(state)
    assert_identical(old, fitted())


def test_state_of_a_later_version():
    state = fitted().state()
    state["version"] += 1
    with pytest.raises(ValueError, match=r"version 3 or older, got version 4; update"):
        Scaler().set_extra_state(state)


def test_state_shares_nothing_that_changes():
    scaler = fitted()
    before = all_numbers(scaler)
    other = Scaler()
    other.set_extra_state(copy.deepcopy(scaler.get_extra_state()))
    for tensor in other.scales.values():
        for block in tensor.blocks():
            block.values.fill_(7.0)
    assert torch.equal(all_numbers(other), before)


def test_unknown_spaces():
    with pytest.raises(ValueError, match=r"source: expected one of .*'loss'.* got 'physic'"):
        fitted().convert(SYSTEMS, data(), "physic", "loss")
    with pytest.raises(ValueError, match=r"target: expected one of .*, got 'latent'"):
        fitted().convert(SYSTEMS, data(), "physical", "latent")


def test_reading_of_labels_is_kept(tmp_path):
    systems = [system(8), system(1, 8, 1)]
    accumulator = ScaleAccumulator(baseline=CompositionBaseline({"e": {1: -1.0, 8: -10.0}}))
    accumulator.update(systems, {"e": structure_target([-11.0, -15.0], [7, 3])})
    accumulator.compute().save(tmp_path / "scaler.pt")
    scaler = Scaler.load(tmp_path / "scaler.pt")
    assert scaler.settings.system_labels == "id"
    # Ids now: O has -11 + 10, H2O has -15 + 12; per atom -1 and -1.
    swapped = structure_target([-11.0, -15.0], [1, 0])
    values = scaler.convert(systems, {"e": swapped})["e"].block().values
    assert values.flatten().tolist() == pytest.approx([-1, -3])


def test_later_updates_do_not_reach_a_scaler():
    accumulator = ScaleAccumulator(baseline=CompositionBaseline(), intensive_targets=["alpha"])
    accumulator.update(SYSTEMS, data())
    scaler = accumulator.compute()
    before = all_numbers(scaler)
    accumulator.update(SYSTEMS[::-1], {"energy": structure_target([4.0, 3.0, 2.0, 1.0])})
    accumulator.compute()
    assert torch.equal(all_numbers(scaler), before)
