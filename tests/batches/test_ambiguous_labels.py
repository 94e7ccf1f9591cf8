"""Batches in which ``system`` could be a position or an id, in some of their targets only."""

import itertools

import pytest
import torch
from builders import atom_target, block, fit, labels, scale, structure_target, system
from metatensor.torch import TensorMap

from lightning_scaler import ScaleAccumulator

# Labels 1, 0: as positions they swap the systems, as ids (numbered as they appear) they do not.
# Swapping isomers changes no composition and no type of a first atom, but that of a second atom.
ISOMERS = [system(1, 8, 1), system(1, 1, 8)]
FIRST_ATOMS, SECOND_ATOMS = [[1, 0], [0, 0]], [[1, 1], [0, 1]]
DIFFERENT_RESULTS = r"different results.*set system_labels='position' or 'id'"


def energies():
    return structure_target([1.0, 2.0], systems=[1, 0])


def charges(rows):
    return atom_target([1.0, 2.0], rows)


def blocks_with(*rows):
    """A per-atom target with the given rows in each block."""
    blocks = [
        block(
            torch.ones(len(of_block), 2 * k + 1, 1),
            labels(["system", "atom"], of_block),
            [labels("o3_mu", range(-k, k + 1))],
        )
        for k, of_block in enumerate(rows)
    ]
    return TensorMap(labels(["o3_lambda", "o3_sigma"], [[k, 1] for k in range(len(rows))]), blocks)


# Every block but the one with `rows` gives the same types in both readings.
TARGETS = {
    "later target": lambda rows: {"energy": energies(), "charges": charges(rows)},
    "first target": lambda rows: {"charges": charges(rows), "energy": energies()},
    "target between": lambda rows: {
        "first": charges(FIRST_ATOMS),
        "charges": charges(rows),
        "energy": energies(),
    },
    "last of three targets": lambda rows: {
        "energy": energies(),
        "first": charges(FIRST_ATOMS),
        "charges": charges(rows),
    },
    "first block": lambda rows: {"q": blocks_with(rows, FIRST_ATOMS)},
    "later block": lambda rows: {"q": blocks_with(FIRST_ATOMS, rows)},
    "last of three blocks": lambda rows: {"q": blocks_with(FIRST_ATOMS, FIRST_ATOMS, rows)},
    "later block of a later target": lambda rows: {
        "energy": energies(),
        "q": blocks_with(FIRST_ATOMS, rows),
    },
    "one row among others": lambda rows: {
        "energy": energies(),
        "q": blocks_with(FIRST_ATOMS, [rows[0], [0, 0]]),
    },
}


@pytest.mark.parametrize("where", TARGETS)
def test_every_block_is_checked_for_ambiguous_labels(where):
    with pytest.raises(ValueError, match=DIFFERENT_RESULTS):
        ScaleAccumulator().update(ISOMERS, TARGETS[where](SECOND_ATOMS))


@pytest.mark.parametrize("where", TARGETS)
def test_every_block_is_checked_for_ambiguous_labels_in_conversions(where):
    # Both readings of the data of the fit were the same, so "auto" stays undecided.
    scaler = fit(ISOMERS, TARGETS[where](FIRST_ATOMS), unseen_types="pooled")
    with pytest.raises(ValueError, match=DIFFERENT_RESULTS):
        scaler.convert(ISOMERS, TARGETS[where](SECOND_ATOMS))


def test_systems_of_other_compositions_after_atoms_of_the_same_types():
    """The first atoms are of the same type either way, the systems are not."""
    systems = [system(1, 8), system(1, 8, 1)]
    for names in itertools.permutations(("first", "energy")):
        targets = {"first": charges(FIRST_ATOMS), "energy": energies()}
        with pytest.raises(ValueError, match=DIFFERENT_RESULTS):
            ScaleAccumulator().update(systems, {name: targets[name] for name in names})


def test_blocks_that_give_the_same_types_in_both_readings_are_accepted():
    targets = {
        "energy": energies(),
        "first": charges(FIRST_ATOMS),
        "q": blocks_with(FIRST_ATOMS, FIRST_ATOMS),
    }
    scaler = fit(ISOMERS, targets)
    assert set(scaler.scales) == set(targets)
    # Both charges, 1 and 2, belong to H; O has no data.
    assert scale(scaler, "first") == [[pytest.approx((5 / 2) ** 0.5)], [1.0]]


@pytest.mark.parametrize(
    ("system_labels", "of_types"),
    # The value 1 belongs to the second atom of system 1 (H), or of the first system (O).
    [("position", {1: 1.0, 8: 2.0}), ("id", {1: 2.0, 8: 1.0})],
)
@pytest.mark.parametrize("energy_first", [True, False])
def test_the_setting_decides_for_every_target(system_labels, of_types, energy_first):
    targets = {"energy": energies(), "charges": charges(SECOND_ATOMS)}
    if not energy_first:
        targets = dict(reversed(targets.items()))
    scaler = fit(ISOMERS, targets, system_labels=system_labels)
    assert scale(scaler, "charges") == [[of_types[1]], [of_types[8]]]
    converted = scaler.convert(ISOMERS, targets)
    assert converted["charges"].block().values.flatten().tolist() == [1.0, 1.0]
