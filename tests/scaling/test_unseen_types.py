"""Scales of types that were not in the data of the fit: policies, fixed numbers, rows, state."""

import copy
import itertools
import math
import pickle

import pytest
import torch
from builders import (
    atom_samples,
    atom_target,
    atomic_basis,
    block,
    fit,
    forces,
    labels,
    spherical,
    system,
)
from metatensor.torch import TensorMap

from lightning_scaler import CompositionBaseline, Scaler

DIRECTIONS = list(itertools.permutations(("physical", "loss", "model"), 2))
POLICIES = ("error", "pooled", "identity")


def near(numbers):
    return pytest.approx(numbers, rel=1e-13)


def converted(scaler, systems, tensor, source, space, name="q"):
    """The values of each block, flattened."""
    blocks = scaler.convert(systems, {name: tensor}, source, space)[name].blocks()
    return [of.values.flatten().tolist() for of in blocks]


# O and H have 2 and 4 in the block λ=0, and 6 and 8 in all three components of the block λ=1.
TWO_BLOCKS = spherical({0: [[[2.0]], [[4.0]]], 1: [[[6.0]] * 3, [[8.0]] * 3]}, atom_samples(2))
# Full scales in the two blocks, and per-target scales: per type, or over all types.
FULL = {
    8: (2.0, 6.0),
    1: (4.0, 8.0),
    "pooled": (math.sqrt((4 + 16) / 2), math.sqrt((36 + 64) / 2)),
    "identity": (1.0, 1.0),
}
PER_TARGET = {
    8: math.sqrt((4 + 3 * 36) / 4),
    1: math.sqrt((16 + 3 * 64) / 4),
    "pooled": math.sqrt((4 + 3 * 36 + 16 + 3 * 64) / 8),
    "identity": 1.0,
}


def factor(of_type, block_index, source, space):
    """What 1 becomes: 1 in physical space is 1 / σ in loss space and 1 / full in model space."""
    size = {
        "physical": 1.0,
        "loss": 1 / PER_TARGET[of_type],
        "model": 1 / FULL[of_type][block_index],
    }
    return size[space] / size[source]


def ones_in(*rows):
    """Ones in the layout of the two blocks, for the given rows of each block."""
    blocks = [
        block(
            torch.ones(len(of_block), 2 * k + 1, 1),
            labels(["system", "atom"], of_block),
            [labels("o3_mu", range(-k, k + 1))],
        )
        for k, of_block in enumerate(rows)
    ]
    return TensorMap(TWO_BLOCKS.keys, blocks)


# Rows and their atomic types in [C H] [O H C].
BATCH = [system(6, 1), system(8, 1, 6)]
ROWS = {
    "in another order": (
        ([[1, 2], [0, 1], [1, 0]], [6, 1, 8]),
        ([[1, 0], [0, 0], [1, 1]], [8, 6, 1]),
    ),
    "of other atoms": (
        ([[1, 0], [1, 1]], [8, 1]),
        ([[0, 0], [1, 2]], [6, 6]),
    ),
    "of more atoms": (
        ([[1, 1]], [1]),
        ([[0, 0], [0, 1], [1, 0], [1, 1], [1, 2]], [6, 1, 8, 1, 6]),
    ),
    "of none in the first block": (
        ([], []),
        ([[1, 0], [0, 0]], [8, 6]),
    ),
}


@pytest.mark.parametrize(("source", "space"), DIRECTIONS)
@pytest.mark.parametrize("policy", ["pooled", "identity"])
@pytest.mark.parametrize("rows", ROWS)
def test_every_block_takes_the_types_of_its_own_rows(rows, policy, source, space):
    """The batch holds carbon, which was not in the data of the fit."""
    scaler = fit([system(8, 1)], {"q": TWO_BLOCKS}, unseen_types=policy, system_labels="position")
    first, second = ROWS[rows]
    found = converted(scaler, BATCH, ones_in(first[0], second[0]), source, space)
    for k, (_, types) in enumerate((first, second)):
        of_rows = [factor(policy if z == 6 else z, k, source, space) for z in types]
        assert found[k] == near([number for number in of_rows for _ in range(2 * k + 1)])


@pytest.mark.parametrize("policy", POLICIES)
def test_an_unseen_type_without_rows_needs_no_policy(policy):
    """Carbon is in the systems and in no row of either block."""
    scaler = fit([system(8, 1)], {"q": TWO_BLOCKS}, unseen_types=policy, system_labels="position")
    ones = ones_in([[0, 1], [1, 0]], [[1, 0], [1, 1], [0, 1]])  # H O, O H H
    found = converted(scaler, BATCH, ones, "model", "physical")
    assert found == [near([4.0, 2.0]), near([6.0] * 3 + [8.0] * 6)]


@pytest.mark.parametrize("policy", POLICIES)
def test_blocks_of_an_atomic_basis_beside_an_unseen_type(policy):
    # O 1 and 2: mean 1.5, RMS of the residuals 0.5. H 3 and 7: 5 and 2.
    target = atomic_basis(
        {(0, 8): [[[1.0]], [[2.0]]], (0, 1): [[[3.0]], [[7.0]]]},
        {8: [[0, 1], [1, 0]], 1: [[0, 0], [0, 2]]},
    )
    scaler = fit(
        [system(1, 8, 1), system(8)],
        {"q": target},
        baseline=CompositionBaseline(),
        unseen_types=policy,
    )
    other = atomic_basis(
        {(0, 8): [[[2.0]]], (0, 1): [[[3.0]], [[9.0]]]}, {8: [[0, 1]], 1: [[1, 2], [1, 0]]}
    )
    systems = [system(6, 8), system(1, 6, 1)]
    found = converted(scaler, systems, other, "physical", "model")
    assert found == [near([1.0]), near([-1.0, 2.0])]
    model = scaler.convert(systems, {"q": other}, "physical", "model")["q"]
    assert converted(scaler, systems, model, "model", "physical") == [near([2.0]), near([3.0, 9.0])]


# Fixed numbers.


def single_property(kind):
    """Two atoms with the charges 2 and 4, or with forces of these components."""
    if kind == "charges":
        return atom_target([2.0, 4.0], atom_samples(2)), 1
    return forces([[2.0] * 3, [4.0] * 3], 2), 3


# One number serves loss space and model space.
FACTORS = {"physical": 0, "loss": -1, "model": -1}


@pytest.mark.parametrize(("source", "space"), DIRECTIONS)
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("kind", ["charges", "forces"])
def test_one_fixed_number_holds_for_unseen_types_under_every_policy(kind, policy, source, space):
    target, n_components = single_property(kind)
    scaler = fit([system(8, 1)], {"q": target}, fixed_scales={"q": 7}, unseen_types=policy)
    expected = 7.0 ** (FACTORS[space] - FACTORS[source])
    ones = target.copy()
    ones.block().values.fill_(1.0)
    # One unseen type beside a seen one; two unseen types.
    for systems in ([system(6, 1)], [system(7, 6)]):
        found = converted(scaler, systems, ones, source, space)
        assert found == [near([expected] * 2 * n_components)]


@pytest.mark.parametrize("policy", POLICIES)
def test_fixed_scale_and_baseline_hold_for_an_unseen_type_under_every_policy(policy):
    scaler = fit(
        [system(8, 1)],
        {"q": atom_target([2.0, 4.0], atom_samples(2))},
        fixed_scales={"q": 7},
        baseline=CompositionBaseline({"q": {1: 1.0, 6: 10.0, 8: 1.0}}),
        unseen_types=policy,
    )
    charges = atom_target([24.0, 8.0], atom_samples(2))
    # (24 - 10) / 7 and (8 - 1) / 7.
    assert converted(scaler, [system(6, 1)], charges, "physical", "loss") == [near([2.0, 1.0])]


@pytest.mark.parametrize("policy", POLICIES)
def test_fixed_numbers_per_type_hold_for_unseen_types_under_every_policy(policy):
    target = atom_target([2.0, 4.0], atom_samples(2))
    fixed = {"q": {1: 3, 6: 5, 8: 7}}
    scaler = fit([system(8, 1)], {"q": target}, fixed_scales=fixed, unseen_types=policy)
    ones = atom_target([1.0] * 3, [[0, 1], [0, 0], [0, 2]])
    found = converted(scaler, [system(6, 1, 8)], ones, "model", "physical")
    assert found == [near([3.0, 5.0, 7.0])]


def test_a_type_without_a_fixed_number_follows_the_policy():
    target = atom_target([2.0, 4.0], atom_samples(2))
    ones = atom_target([1.0] * 3, atom_samples(3))
    # The RMS of the data over all types; and 1.
    for policy, stand_in in (("pooled", math.sqrt((4 + 16) / 2)), ("identity", 1.0)):
        fixed = {"q": {1: 3, 6: 5, 8: 7}}
        scaler = fit([system(8, 1)], {"q": target}, fixed_scales=fixed, unseen_types=policy)
        found = converted(scaler, [system(6, 7, 1)], ones, "model", "physical")
        assert found == [near([5.0, stand_in, 3.0])]
    scaler = fit([system(8, 1)], {"q": target}, fixed_scales=fixed)
    with pytest.raises(ValueError, match=r"'q': no scale for .* types \[7\].*in fixed_scales, "):
        converted(scaler, [system(6, 7, 1)], ones, "model", "physical")


def test_one_fixed_number_of_several_properties_leaves_unseen_types_to_the_policy():
    """The fixed number does not say how the properties of an unseen type compare."""
    target = atom_target([[2.0, 1.0], [4.0, 7.0]], atom_samples(2))
    ones = atom_target([[1.0, 1.0]], atom_samples(1))
    scaler = fit([system(8, 1)], {"q": target}, fixed_scales={"q": 7}, unseen_types="identity")
    assert converted(scaler, [system(6)], ones, "model", "physical") == [near([1.0, 1.0])]
    scaler = fit([system(8, 1)], {"q": target}, fixed_scales={"q": 7})
    with pytest.raises(ValueError, match=r"target 'q': no scale for the atomic types \[6\]"):
        converted(scaler, [system(6)], ones, "model", "physical")


# Restored state.


def from_file(scaler, folder):
    scaler.save(folder / "scaler")
    return Scaler.load(folder / "scaler")


def from_state_dict(scaler, folder):
    torch.save(torch.nn.ModuleDict({"scaler": scaler}).state_dict(), folder / "model.pt")
    module = torch.nn.ModuleDict({"scaler": Scaler()})
    module.load_state_dict(torch.load(folder / "model.pt", weights_only=True))
    return module["scaler"]


def from_extra_state(scaler, folder):
    again = Scaler()
    again.set_extra_state(scaler.get_extra_state())
    return again


RESTORED = {
    "file": from_file,
    "file of a loaded scaler": lambda scaler, folder: from_file(from_file(scaler, folder), folder),
    "state_dict": from_state_dict,
    "extra state": from_extra_state,
    "deepcopy": lambda scaler, folder: copy.deepcopy(scaler),
    "pickle": lambda scaler, folder: pickle.loads(pickle.dumps(scaler)),
}


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("way", RESTORED)
def test_restored_scales_treat_unseen_types_as_before(tmp_path, way, policy):
    charges = atom_target([2.0, 4.0], atom_samples(2))
    scaler = fit(
        [system(8, 1)],
        {"q": TWO_BLOCKS, "fitted": charges, "number": charges, "per type": charges},
        fixed_scales={"number": 7, "per type": {1: 3, 6: 5, 8: 9}},
        unseen_types=policy,
    )
    restored = RESTORED[way](scaler, tmp_path)
    systems, ones = [system(6, 1)], atom_target([1.0, 1.0], atom_samples(2))
    rows = [[0, 0], [0, 1]]
    for source, space in DIRECTIONS:
        power = FACTORS[space] - FACTORS[source]
        expected = {"number": (7.0, 7.0), "per type": (5.0, 3.0)}
        if policy != "error":
            expected["fitted"] = (FULL[policy][0], 4.0)
            found = converted(restored, systems, ones_in(rows, rows), source, space)
            for k in range(2):
                of_rows = [factor(z, k, source, space) for z in (policy, 1)]
                assert found[k] == near([number for number in of_rows for _ in range(2 * k + 1)])
        for name, scales in expected.items():
            found = converted(restored, systems, ones, source, space, name)
            assert found == [near([sigma**power for sigma in scales])]
    if policy == "error":
        for name, tensor in (("q", ones_in(rows, rows)), ("fitted", ones)):
            with pytest.raises(ValueError, match=rf"'{name}': no scale for .* types \[6\]"):
                restored.convert(systems, {name: tensor})
