"""The batches of several loaders joined into one."""

import pytest
import torch
from builders import atom_samples, atom_target, mask_of, structure_target, system

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
