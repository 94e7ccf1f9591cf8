"""Batches taken apart into systems, targets and masks."""

from collections import namedtuple
from typing import NamedTuple

import numpy as np
import pytest
import torch
from builders import mask_of, structure_target, system

from lightning_scaler import ScaleAccumulator
from lightning_scaler.batches import check_plain_values, check_unpacked, unpack

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
    ways_out = (
        r".*declare targets that are plain tensors: .*\bPerStructure\(.* override unpack_batch"
    )
    with pytest.raises(TypeError, match=rf"(?s)expected a batch .*{got}{ways_out}"):
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


@pytest.mark.parametrize(
    "ids", [[7, 3], (7, 3), torch.tensor([7, 3]), torch.tensor([[7], [3]]), np.array([7, 3])]
)
@pytest.mark.parametrize("place", ["mapping", "targets", "extra"])
def test_sample_ids_may_be_sequences_tensors_and_arrays(ids, place):
    batch = {
        "mapping": {"system": SYSTEMS, "energy": ENERGY, "sample_id": ids},
        "targets": (SYSTEMS, {"energy": ENERGY, "sample_id": ids}),
        "extra": (SYSTEMS, {"energy": ENERGY}, {"sample_id": ids}),
    }[place]
    assert unpack(batch).systems.sample_id == (7, 3)


@pytest.mark.parametrize("ids", [["a", "b"], torch.tensor([0.5, 1.5]), "ab", None])
def test_ids_that_are_not_integers_are_ignored(ids):
    systems = unpack({"system": SYSTEMS, "energy": ENERGY, "sample_id": ids}).systems
    assert not hasattr(systems, "sample_id")


def test_targets_in_a_tuple_may_be_a_named_tuple():
    pair = namedtuple("pair", ["energy", "energy_mask"])
    _, targets, masks = unpack((SYSTEMS, pair(ENERGY, MASK)))
    assert (targets["energy"], masks["energy"]) == (ENERGY, MASK)


def test_names_need_not_be_strings():
    assert list(unpack({"system": SYSTEMS, "energy": ENERGY, 0: [1, 2], 1: ENERGY}).masks) == []


@pytest.mark.parametrize(
    "batch",
    [
        {"system": SYSTEMS, "energy": ENERGY, "energy_mask": torch.tensor([True, False])},
        {"system": SYSTEMS, "energy": ENERGY, "energy_mask": np.array([1.0, 0.0])},
        (SYSTEMS, {"energy": ENERGY}, {"energy_mask": torch.tensor([True, False])}),
    ],
)
def test_masks_that_are_no_tensormaps_are_refused(batch):
    with pytest.raises(TypeError, match=r"'energy_mask': expected the mask of the target 'energy'"):
        unpack(batch)


def test_masks_of_something_else_may_be_plain():
    other = torch.ones(2, 5, dtype=torch.bool)
    targets = unpack({"system": SYSTEMS, "energy": ENERGY, "attention_mask": other}).targets
    check_plain_values(targets)


def test_masks_under_the_name_of_their_target_are_refused():
    with pytest.raises(TypeError, match=r"target 'energy': got boolean values .* 'energy_mask'"):
        unpack((SYSTEMS, {"energy": ENERGY}, {"energy": MASK}))


PLAIN = {
    "tensor": (torch.ones(2), r"'gap' \(Tensor of shape \(2,\), float32\)"),
    "scalar": (torch.tensor(1.0), r"'gap' \(Tensor of shape \(\), float32\)"),
    "half": (torch.ones(2, 3).half(), r"'gap' \(Tensor of shape \(2, 3\), float16\)"),
    "complex": (torch.ones(2) + 1j, r"'gap' \(Tensor of shape \(2,\), complex64\)"),
    "array": (np.ones(2), r"'gap' \(ndarray of shape \(2,\), float64\)"),
    "numbers": ([1.0, 2.0], r"'gap' \(list of float\)"),
    "tensors": ([torch.ones(1)] * 2, r"'gap' \(list of Tensor of shape \(1,\), float32\)"),
    "block": (ENERGY.block(), r"'gap' \(TensorBlock\)"),
    "not joined": ([ENERGY, ENERGY], r"'gap' \(list of TensorMap\)"),
    "nested": ({"energy": ENERGY}, r"'gap' \(dict of TensorMap\)"),
}


@pytest.mark.parametrize(("value", "words"), PLAIN.values(), ids=PLAIN)
@pytest.mark.parametrize("kind", ["mapping", "named tuple", "pair"])
def test_floating_point_values_beside_tensormaps_are_refused(kind, value, words):
    named = namedtuple("batch", ["system", "energy", "gap"])
    batch = {
        "mapping": {"system": SYSTEMS, "energy": ENERGY, "gap": value},
        "named tuple": named(SYSTEMS, ENERGY, value),
        "pair": (SYSTEMS, {"energy": ENERGY, "gap": value}),
    }[kind]
    targets = unpack(batch).targets
    assert list(targets) == ["energy"]
    ways = r".* convert it to a TensorMap, .* TargetScaler\(targets=\['energy'\]\)"
    with pytest.raises(TypeError, match=words + ways):
        ScaleAccumulator(baseline=None).update(SYSTEMS, targets)
    accumulator = ScaleAccumulator(["energy"], baseline=None)
    accumulator.update(SYSTEMS, targets)
    assert list(accumulator.compute().targets) == ["energy"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n_atoms", torch.tensor([1, 3])),
        ("charge", [0, -1]),
        ("name", ["a", "b"]),
        ("is_test", torch.tensor([True, False])),
        ("sample_id", torch.tensor([0.5, 1.5])),
        ("positions", torch.ones(4, 3)),
        ("pos", np.ones((4, 3))),
        ("cell", torch.ones(2, 3, 3)),
        ("edge_vectors", torch.ones(7, 3)),
        ("node_attrs", torch.ones(4, 5)),
        ("energy_weight", torch.ones(2)),
        ("weight", torch.ones(2)),
        ("energy_mask", None),
        ("forces_mask", torch.ones(2)),
        ("path", "a"),
        ("nothing", None),
        ("empty", []),
    ],
)
def test_inputs_integers_weights_and_words_are_no_targets(name, value):
    targets = unpack({"system": SYSTEMS, "energy": ENERGY, name: value}).targets
    ScaleAccumulator(baseline=None).update(SYSTEMS, targets)


def test_values_in_the_third_part_of_a_tuple_are_no_targets():
    extra = {"gap": torch.ones(2), "other": ENERGY}
    targets = unpack((SYSTEMS, {"energy": ENERGY}, extra)).targets
    ScaleAccumulator(baseline=None).update(SYSTEMS, targets)
    assert list(targets) == ["energy"]


@pytest.mark.parametrize(
    "returned",
    [
        (SYSTEMS, {"energy": ENERGY}),
        (SYSTEMS, {"energy": ENERGY}, None),
        [SYSTEMS, {"energy": ENERGY}, {}],
    ],
)
def test_an_unpack_batch_may_leave_out_the_masks(returned):
    assert check_unpacked("Net.unpack_batch", returned) == (SYSTEMS, {"energy": ENERGY}, {})


@pytest.mark.parametrize(
    ("returned", "got"),
    [
        (SYSTEMS, "expected a list of systems with .types first, .* got System in the place"),
        ((SYSTEMS,), r"expected to return \(systems, targets, masks\), .* got tuple of 1 \(list\)"),
        (None, "got NoneType"),
        ({"energy": ENERGY}, "got dict"),
        ((SYSTEMS, {}, {}, 1), r"got tuple of 4 \(list, dict, dict, int\)"),
        (({"energy": ENERGY}, SYSTEMS), "got dict in the place of the systems"),
        ((SYSTEMS, ENERGY), "expected targets that are a dict of TensorMaps .* got TensorMap"),
        ((SYSTEMS, {}, [MASK]), "expected masks that are a dict of TensorMaps .* got list"),
    ],
)
def test_anything_else_from_an_unpack_batch_is_refused(returned, got):
    with pytest.raises(TypeError, match=rf"Net.unpack_batch: .*{got}"):
        check_unpacked("Net.unpack_batch", returned)
