"""The batches of several loaders, and the predictions of all batches of a loader, joined."""

import pytest
import torch
from builders import (
    atom_samples,
    atom_target,
    atomic_basis,
    block,
    cartesian,
    labels,
    mask_of,
    pair_target,
    single,
    structure_target,
    system,
)
from metatensor.torch import TensorBlock
from small_training import SmallData, SmallNet, quiet_trainer, scaler_callback

from lightning_scaler import join_predictions
from lightning_scaler.batches import read_atoms, unpack

FIRST = {
    "system": [system(8), system(1, 8)],
    "energy": structure_target([1.0, 2.0], gradient={"positions": [[[1.0] * 3], [[2.0] * 3] * 2]}),
}
SECOND = {
    "system": [system(1, 1, 8)],
    "energy": structure_target([3.0], gradient={"positions": [[[3.0] * 3] * 3]}),
    "charges": atom_target([0.1, 0.2, 0.3], atom_samples(3)),
}
PARTS = {
    "dict": {"a": FIRST, "b": SECOND},
    "list": [FIRST, SECOND],
    "tuple of tuples": tuple(
        (part["system"], {k: v for k, v in part.items() if k != "system"})
        for part in (FIRST, SECOND)
    ),
}


@pytest.mark.parametrize("form", PARTS)
def test_systems_follow_each_other_and_rows_keep_their_systems(form):
    systems, targets, masks = unpack(PARTS[form])
    assert [len(one) for one in systems] == [1, 2, 3]
    energy, charges = targets["energy"].block(), targets["charges"].block()
    assert energy.values[:, 0].tolist() == [1.0, 2.0, 3.0]
    assert energy.samples.names == ["system"]
    assert energy.samples.values[:, 0].tolist() == [0, 1, 2]
    gradient = energy.gradient("positions")
    assert gradient.values[:, 0, 0].tolist() == [1.0, 2.0, 2.0, 3.0, 3.0, 3.0]
    assert gradient.samples.values.tolist() == [[0, 0], [1, 0], [1, 1], [2, 0], [2, 1], [2, 2]]
    # The third system of the joined batch, whatever it was called before.
    assert charges.samples.values.tolist() == [[2, 0], [2, 1], [2, 2]]
    assert masks == {}
    assert read_atoms(systems).sample_ids.tolist() == [0, 1, 2]


def test_a_loader_that_has_ended_is_left_out():
    for batch in ([None, SECOND], {"a": None, "b": SECOND}, {"b": SECOND}):
        systems, targets, _ = unpack(batch)
        assert systems is SECOND["system"]
        assert targets["energy"] is SECOND["energy"]


def test_masks_are_joined_and_keep_the_values_of_parts_without_one():
    masked = {**FIRST, "energy_mask": mask_of(FIRST["energy"], [[True, False]])}
    _, _, masks = unpack([SECOND, masked])
    assert masks["energy"].block().values[:, 0].tolist() == [True, True, False]
    assert masks["energy"].block().samples.values[:, 0].tolist() == [0, 1, 2]


def test_ids_of_the_dataset_become_positions():
    """Ids 70 and 30 are the second and the third system of the joined batch."""
    ids = {
        "system": [system(8), system(1)],
        "energy": structure_target([5.0, 6.0], [70, 30]),
        "charges": atom_target([0.5], [[30, 0]]),
    }
    _, targets, _ = unpack({"a": SECOND, "b": ids})
    assert targets["energy"].block().samples.values[:, 0].tolist() == [0, 1, 2]
    # Only the first part has forces.
    gradient = targets["energy"].block().gradient("positions")
    assert gradient.samples.values.tolist() == [[0, 0], [0, 1], [0, 2]]
    charges = targets["charges"].block()
    assert charges.samples.values[3:].tolist() == [[2, 0]]
    assert charges.values[3:, 0].tolist() == [0.5]


def test_other_lists_and_mappings_are_still_not_understood():
    for batch in ([system(8), system(1)], {"x": torch.zeros(2)}, [], {}, [FIRST, 3]):
        with pytest.raises(TypeError, match="override unpack_batch"):
            unpack(batch)


def test_layouts_that_cannot_be_joined_are_an_error_that_names_the_target():
    other = {"system": [system(8)], "energy": structure_target([1.0], name="U")}
    with pytest.raises(ValueError, match=r"target 'energy': .* cannot be joined"):
        unpack([FIRST, other])


def test_joined_predictions_number_the_systems_of_the_dataset():
    """A batch of two systems, then a batch of one; energies have positions gradients."""
    first = {
        "energy": structure_target([1.0, 2.0], gradient={"positions": [[[1, 0, 0]], [[2, 0, 0]]]}),
        "charges": atom_target([0.1, 0.2], atom_samples(1, 1)),
    }
    second = {
        "energy": structure_target([3.0], gradient={"positions": [[[3, 0, 0], [4, 0, 0]]]}),
        "charges": atom_target([0.3, 0.4], atom_samples(2)),
    }
    joined = join_predictions([first, second])
    energy = joined["energy"].block()
    assert energy.samples.values.reshape(-1).tolist() == [0, 1, 2]
    assert energy.values.reshape(-1).tolist() == [1.0, 2.0, 3.0]
    gradient = energy.gradient("positions")
    assert gradient.samples.column("sample").tolist() == [0, 1, 2, 2]
    assert torch.equal(gradient.values[:, 0, 0], torch.tensor([1.0, 2, 3, 4]).double())
    charges = joined["charges"].block()
    assert charges.samples.values.tolist() == [[0, 0], [1, 0], [2, 0], [2, 1]]
    assert charges.values.reshape(-1).tolist() == [0.1, 0.2, 0.3, 0.4]


# Atoms of the systems of each batch.
COUNTS = [[1, 2], [3], [2, 1, 1]]


def with_gradients(counts, named):
    """Energies whose gradients hold 10 · (system in the batch) + atom; with the system named."""
    energy = block([0.0] * len(counts), labels("system", range(len(counts))))
    rows = [[i, i, atom] for i, count in enumerate(counts) for atom in range(count)]
    values = torch.tensor([[10.0 * i + atom] * 3 for i, _, atom in rows]).double()[..., None]
    names = ["sample", "system", "atom"] if named else ["sample", "atom"]
    samples = labels(names, [row if named else [row[0], row[2]] for row in rows])
    energy.add_gradient("positions", TensorBlock(values, samples, cartesian(), energy.properties))
    strain = TensorBlock(
        torch.arange(len(counts)).double().reshape(-1, 1, 1, 1).expand(-1, 3, 3, 1).clone(),
        labels("sample", range(len(counts))),
        cartesian(2),
        energy.properties,
    )
    energy.add_gradient("strain", strain)
    return single(energy)


@pytest.mark.parametrize("named", [False, True])
def test_gradients_name_the_samples_and_systems_of_the_whole(named):
    batches = [{"energy": with_gradients(counts, named)} for counts in COUNTS]
    energy = join_predictions(batches)["energy"].block()
    assert energy.samples.values.flatten().tolist() == [0, 1, 2, 3, 4, 5]
    positions = energy.gradient("positions")
    # Atoms 1 + 2 of the first batch, 3 of the second, 2 + 1 + 1 of the third.
    pairs = [[0, 0], [1, 0], [1, 1], [2, 0], [2, 1], [2, 2], [3, 0], [3, 1], [4, 0], [5, 0]]
    rows = [[s, s, atom] if named else [s, atom] for s, atom in pairs]
    assert positions.samples.names == (
        ["sample", "system", "atom"] if named else ["sample", "atom"]
    )
    assert positions.samples.values.tolist() == rows
    assert positions.values[:, 0, 0].tolist() == [0, 10, 11, 0, 1, 2, 0, 1, 10, 20]
    strain = energy.gradient("strain")
    assert strain.samples.values.flatten().tolist() == [0, 1, 2, 3, 4, 5]
    assert strain.values[:, 0, 0, 0].tolist() == [0, 1, 0, 0, 1, 2]


def charges(*systems):
    """Charges of one atom of each of these systems."""
    return atom_target([float(i) for i in systems], [[i, 0] for i in systems])


def per_structure(*systems):
    return structure_target([float(i) for i in systems], systems)


ORDERS = [("whole", "short"), ("short", "whole")]


@pytest.mark.parametrize("order", ORDERS, ids=["short last", "short first"])
@pytest.mark.parametrize("make", [charges, per_structure])
@pytest.mark.parametrize("there", [(0, 1), (0,), (1, 2), ()], ids=str)
def test_systems_after_a_target_without_the_last_system_keep_their_numbers(order, make, there):
    """Three systems in every batch; of the second one, one target has some of them only."""
    batches = []
    for short in ((0, 1, 2), there, (0, 1, 2)):
        of = {"whole": make(0, 1, 2), "short": make(*short)}
        batches.append({name: of[name] for name in order})
    together = join_predictions(batches)
    systems = {name: together[name].block().samples.column("system").tolist() for name in order}
    assert systems["whole"] == [0, 1, 2, 3, 4, 5, 6, 7, 8]
    assert systems["short"] == [0, 1, 2, *(3 + i for i in there), 6, 7, 8]
    values = together["short"].block().values.flatten().tolist()
    assert values == [0, 1, 2, *there, 0, 1, 2]


@pytest.mark.parametrize("absent", ["first", "second"])
def test_systems_after_a_batch_without_a_target_keep_their_numbers(absent):
    batches = [{"first": charges(0, 1), "second": charges(0, 1)} for _ in range(3)]
    del batches[1][absent]
    together = join_predictions(batches)
    for name in ("first", "second"):
        expected = [0, 1, 4, 5] if name == absent else [0, 1, 2, 3, 4, 5]
        assert together[name].block().samples.column("system").tolist() == expected


@pytest.mark.parametrize("types", [[1, 8], [8, 1]], ids=["short last", "short first"])
def test_systems_after_a_block_without_the_last_system_keep_their_numbers(types):
    """Of three systems, two have an atom of type 8."""
    samples = {1: [[0, 0], [1, 0], [2, 0]], 8: [[0, 1], [1, 1]]}
    values = {(0, z): torch.zeros(len(samples[z]), 1, 1) for z in types}
    batch = {"orbitals": atomic_basis(values, samples)}
    systems = {
        key["atom_type"]: block.samples.column("system").tolist()
        for key, block in join_predictions([batch, batch])["orbitals"].items()
    }
    assert systems == {1: [0, 1, 2, 3, 4, 5], 8: [0, 1, 3, 4]}


def test_systems_of_atom_pairs_are_numbered_through():
    pairs = [[0, 0, 1, 0, 0, 0], [1, 1, 0, 0, 0, 1]]
    batch = {"pairs": pair_target([[1.0], [2.0]], pairs)}
    together = join_predictions([batch, batch])["pairs"].block()
    later = [[2, 0, 1, 0, 0, 0], [3, 1, 0, 0, 0, 1]]
    assert together.samples.values.tolist() == [*pairs, *later]


def test_predictions_of_a_trainer_are_in_the_order_of_the_data(tmp_path):
    """One batch of all systems gives what batches of two give, with all labels."""
    data, net = SmallData(), SmallNet()
    trainer = quiet_trainer(tmp_path, callbacks=[scaler_callback()], max_epochs=0)
    trainer.fit(net, data)
    data.batch_size = 2
    in_batches = join_predictions(trainer.predict(net, data))
    data.batch_size = 9
    (at_once,) = trainer.predict(net, data)
    assert in_batches.keys() == at_once.keys()
    for name, tensor in at_once.items():
        for ours, theirs in zip(in_batches[name].blocks(), tensor.blocks(), strict=True):
            pairs = [(ours, theirs)]
            pairs += [(ours.gradient(g), theirs.gradient(g)) for g in theirs.gradients_list()]
            for one, other in pairs:
                assert one.samples == other.samples
                torch.testing.assert_close(one.values, other.values, rtol=1e-5, atol=1e-5)


def test_rows_of_tensors_follow_each_other():
    batches = [
        {"energy": torch.tensor([1.0, 2.0]), "forces": torch.ones(3, 3)},
        {"energy": torch.tensor([3.0]), "forces": torch.zeros(2, 3)},
    ]
    joined = join_predictions(batches)
    assert joined["energy"].tolist() == [1.0, 2.0, 3.0]
    assert joined["forces"][:, 0].tolist() == [1.0, 1.0, 1.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("batches", "error", "words"),
    [
        ([{"gap": torch.tensor(1.0)}], TypeError, "'gap': expected .* one row for each structure"),
        ([{"gap": [1.0]}], TypeError, "got list; leave 'gap' out"),
        ([[{"gap": torch.ones(1)}]], TypeError, "of the batches of one loader, dicts .*got a list"),
        ([{"gap": torch.ones(1)}, {}], ValueError, "'gap': 1 of 2 batches have them"),
    ],
)
def test_what_cannot_be_joined_is_named(batches, error, words):
    with pytest.raises(error, match=words):
        join_predictions(batches)


def test_no_batches_give_no_predictions():
    assert join_predictions([]) == {}
