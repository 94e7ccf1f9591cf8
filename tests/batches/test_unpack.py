"""Batches taken apart into systems, targets and masks."""

from typing import NamedTuple

import pytest
import torch
from builders import mask_of, structure_target, system

from lightning_scaler.batches import unpack

SYSTEMS = [system(8), system(1, 8, 1)]
ENERGY = structure_target([1.0, 2.0])
MASK = mask_of(ENERGY, [[True, False]])
EXPECTED = (SYSTEMS, {"energy": ENERGY}, {"energy": MASK})


class Named(NamedTuple):
    system: object
    energy: object
    energy_mask: object
    weight: object


@pytest.mark.parametrize(
    "batch",
    [
        {"system": SYSTEMS, "energy": ENERGY, "energy_mask": MASK},
        {"energy_mask": MASK, "energy": ENERGY, "name": ["a", "b"], "system": SYSTEMS},
        Named(SYSTEMS, ENERGY, MASK, torch.ones(2)),
        (SYSTEMS, {"energy": ENERGY, "energy_mask": MASK}),
        [SYSTEMS, {"energy": ENERGY, "energy_mask": MASK}],
        (SYSTEMS, {"energy": ENERGY}, {"energy_mask": MASK, "charge": ENERGY}),
    ],
    ids=["mapping", "other order", "named tuple", "pair", "list", "triple"],
)
def test_mappings_named_tuples_and_tuples_are_unpacked(batch):
    systems, targets, masks = unpack(batch)
    assert list(systems) == SYSTEMS
    assert list(targets) == ["energy"]
    assert targets["energy"] is ENERGY
    assert list(masks) == ["energy"]
    assert masks["energy"] is MASK


def test_systems_may_be_a_tuple():
    # metatensor.learn gives tuples.
    systems, targets, masks = unpack({"system": tuple(SYSTEMS), "energy": ENERGY})
    assert list(systems) == SYSTEMS
    assert list(targets) == ["energy"]
    assert masks == {}


def test_batches_without_targets():
    systems, targets, masks = unpack({"system": SYSTEMS})
    assert (list(systems), targets, masks) == (SYSTEMS, {}, {})


def test_batches_without_systems():
    assert unpack({"system": [], "energy": ENERGY}).systems == []


@pytest.mark.parametrize(
    ("batch", "got"),
    [
        (
            {"systems": SYSTEMS, "energy": ENERGY},
            r"a mapping with the names \['energy', 'systems'\]",
        ),
        ((SYSTEMS, ENERGY), "a tuple of list, "),
        ((SYSTEMS, {"energy": ENERGY}, None), "a tuple of list, dict, NoneType"),
        ((SYSTEMS,), "got tuple"),
        (torch.ones(2), "got Tensor"),
        ({"system": torch.ones(2), "energy": ENERGY}, "Tensor in the place of the systems"),
        ({"system": [1, 2], "energy": ENERGY}, "list of int in the place of the systems"),
        (None, "got NoneType"),
    ],
)
def test_other_batches_are_refused(batch, got):
    with pytest.raises(TypeError, match=rf"(?s)expected a batch .*{got}.*override unpack_batch"):
        unpack(batch)


def test_sample_ids_are_kept_with_the_systems():
    batch = {"system": [system(8), system(1)], "sample_id": (7, 3), "energy": ENERGY}
    systems, targets, _ = unpack(batch)
    assert systems.sample_id == (7, 3)
    assert len(systems) == 2
    assert set(targets) == {"energy"}


def test_every_system_needs_a_sample_id():
    batch = {"system": SYSTEMS, "sample_id": [1, 2, 3], "energy": ENERGY}
    with pytest.raises(ValueError, match=r"sample_id for each of the 2 systems .*, got 3"):
        unpack(batch)
