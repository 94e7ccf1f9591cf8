"""Fine-tuning of scales that came from metatrain: new types and a new baseline."""

import math
from dataclasses import replace

import pytest
import torch
from builders import (
    atom_samples,
    atom_target,
    atomic_basis,
    cartesian,
    structure_target,
    system,
)
from fine_tuning import with_nitrogen
from small_training import SmallNet, baseline_weights, per_target_scales, quiet_trainer
from test_metatrain import (
    COUNTS,
    FILES,
    SYSTEMS,
    composition,
    state_dict,
    tensor,
)

from lightning_scaler import CompositionBaseline, ScaleAccumulator, Scaler, TargetScaler

TARGETS = ("energy", "forces", "orbitals")


def with_ammonia():
    """Ammonia and nitrogen, with targets in the layouts of the fixture."""
    systems = [system(7, 1, 1, 1), system(7, 7)]
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(*shape, generator=generator).double()

    nitrogen = [[0, 0], [1, 0], [1, 1]]
    return systems, {
        "energy": structure_target([-5.0, 3.0]),
        "forces": atom_target(random(6, 3), atom_samples(4, 2), components=cartesian()),
        "orbitals": atomic_basis({(0, 7): random(3, 1, 2), (1, 7): random(3, 3, 1)}, {7: nitrogen}),
    }


def refit(scaler, systems, targets, part="types", **settings):
    accumulator = ScaleAccumulator(**{"baseline": CompositionBaseline(), **settings})
    accumulator.update(systems, targets)
    return accumulator.refit(scaler, part)


def test_new_types_are_added_and_predictions_of_known_ones_stay_to_the_bit():
    old = Scaler.from_metatrain(*FILES)
    systems, targets = with_ammonia()
    scaler = refit(old, systems, targets)
    model = {name: tensor(name, "model") for name in TARGETS}
    ours = scaler.convert(SYSTEMS, model, "model", "physical")
    theirs = old.convert(SYSTEMS, model, "model", "physical")
    for name in TARGETS:
        for one, other in zip(ours[name].blocks(), theirs[name].blocks(), strict=True):
            assert torch.equal(one.values, other.values)
    # N2 has the energy 3 and NH3 has -5, of which three H are known.
    weights = scaler.targets["energy"].weights[(0,)][:, 0].tolist()
    hydrogen = weights[scaler.targets["energy"].baseline_types.tolist().index(1)]
    nitrogen = weights[scaler.targets["energy"].baseline_types.tolist().index(7)]
    assert nitrogen == pytest.approx(((-5.0 - 3 * hydrogen) + 2 * 3.0) / 5)
    loaded = Scaler()
    loaded.set_extra_state(scaler.get_extra_state())
    in_model = loaded.convert(systems, targets, target="model")
    back = loaded.convert(systems, in_model, "model", "physical")["orbitals"]
    key = {"o3_lambda": 1, "atom_type": 7}
    values = targets["orbitals"].block(key).values
    torch.testing.assert_close(back.block(key).values, values)


def test_scales_over_all_types_come_from_the_new_data():
    systems, targets = with_ammonia()
    scaler = refit(Scaler.from_metatrain(*FILES), systems, {"forces": targets["forces"]})
    scaler.settings = replace(scaler.settings, unseen_types="pooled")
    ones = {"forces": atom_target(torch.ones(1, 3), atom_samples(1), components=cartesian())}
    found = scaler.convert([system(9)], ones, "model", "physical")["forces"].block().values
    expected = targets["forces"].block().values.square().mean().sqrt()
    torch.testing.assert_close(found.flatten(), expected.expand(3))


def test_a_new_baseline_keeps_the_scales():
    old = Scaler.from_metatrain(*FILES)
    physical = old.convert(SYSTEMS, {"energy": tensor("energy", "model")}, "model", "physical")
    moved = structure_target(
        physical["energy"].block().values + 10.0 * torch.tensor(COUNTS)[:, None].double()
    )
    scaler = refit(old, SYSTEMS, {"energy": moved}, "baseline")
    assert torch.equal(
        scaler.targets["energy"].per_target[:1], old.targets["energy"].per_target[:1]
    )
    left = scaler.convert(SYSTEMS, {"energy": moved})["energy"].block().values
    assert left.abs().max() < 5.0
    again = Scaler()
    again.set_extra_state(scaler.get_extra_state())


def test_weights_of_intensive_targets_stay_on_counts():
    gap = structure_target([0.0])
    scales = state_dict("gap", gap, [[[0.5]]], [[[0.5]]])
    weights = composition("gap", gap, [[[1.0], [3.0]]], [1, 8])
    old = Scaler.from_metatrain(scales, weights, {"gap": gap}, [1, 8], ["gap"])
    settings = {
        "intensive_targets": ["gap"],
        "baseline": CompositionBaseline(counted=("gap",)),
    }
    scaler = refit(old, [system(7, 8)], {"gap": structure_target([14.0])}, **settings)
    zero = {"gap": structure_target([0.0])}
    found = scaler.convert([system(7, 8, 1)], zero, "model", "physical")["gap"]
    assert found.block().values.item() == pytest.approx(11.0 + 3.0 + 1.0)


@pytest.mark.parametrize("intensive", [False, True])
def test_a_trainer_adds_types_to_scales_of_metatrain(tmp_path, intensive):
    energy = structure_target([0.0], name="property")
    scales = state_dict("energy", energy, [[[0.5]]], [[[0.5]]])
    weights = composition("energy", energy, [[[-990.0], [-1990.0], [-2990.0]]], [1, 6, 8])
    names = ["energy"] if intensive else []
    net, data = SmallNet(), with_nitrogen(total=-1e3)
    net.scaler = Scaler.from_metatrain(scales, weights, {"energy": energy}, [1, 6, 8], names)
    callback = TargetScaler(targets=["energy"], intensive_targets=names, refit="types")
    options = {"max_epochs": 0, "limit_val_batches": 0}
    quiet_trainer(tmp_path, callbacks=[callback], **options).fit(net, data)
    (found,) = baseline_weights(net.scaler, "energy")
    assert {z: found[z] for z in (1, 6, 8)} == {1: -990.0, 6: -1990.0, 8: -2990.0}
    # The counts of N, and what the other types leave of the energies.
    counts, left = [], []
    for molecule, numbers in data.train.items:
        types = molecule.types.tolist()
        counts.append(types.count(7))
        others = math.fsum(found[z] for z in types if z != 7)
        left.append(numbers["energy"].item() - others)
    products = [n * x for n, x in zip(counts, left, strict=True)]
    assert found[7] == pytest.approx(math.fsum(products) / sum(n * n for n in counts), rel=1e-9)
    assert per_target_scales(net.scaler, "energy") == [0.5]
