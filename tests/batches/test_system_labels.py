"""What the ``system`` labels of a batch's targets mean."""

import itertools

import pytest
import torch
from builders import (
    atom_target,
    block,
    fit,
    labels,
    pair_target,
    scale,
    structure_target,
    system,
)
from metatensor.torch import TensorMap

from lightning_scaler import ScaleAccumulator
from lightning_scaler.batches import index_targets, read_atoms, unpack
from lightning_scaler.tensors import TargetLayout

# O, H2O (oxygen in the middle) and CO: other sizes, other types, other orders. The first atoms of
# the systems are atoms 0, 1 and 4 of the batch.
BATCH = [system(8), system(1, 8, 1), system(6, 8)]


def index(systems, setting="auto", exact=False, **targets):
    """The meaning of the labels, and the rows of the one block of each target."""
    layouts = {name: TargetLayout.of(name, tensor) for name, tensor in targets.items()}
    _, indexing, found = index_targets(read_atoms(systems), targets, layouts, setting, exact)
    return indexing, {name: [rows.tolist() for rows in of.rows] for name, of in found.items()}


def meaning(systems, setting="auto", exact=False, **targets):
    return index(systems, setting, exact, **targets)[0].labels


def with_sample_id(systems, sample_id):
    return unpack({"system": systems, "sample_id": sample_id}).systems


@pytest.mark.parametrize("setting", ["auto", "position"])
def test_rows_of_per_atom_targets_are_atoms_of_the_batch(setting):
    charges = atom_target([1.0] * 4, [[2, 1], [0, 0], [1, 2], [2, 0]])
    assert index(BATCH, setting, charges=charges)[1] == {"charges": [[5, 0, 3, 4]]}


@pytest.mark.parametrize("row", [[3, 0], [-1, 0], [0, 1], [2, 2], [1, -1]])
def test_rows_outside_the_batch_are_refused(row):
    charges = atom_target([1.0, 2.0], [[1, 1], row])
    words = rf"target 'q': the sample \(system={row[0]}, atom={row[1]}\) is not in the batch of 3"
    with pytest.raises(ValueError, match=words):
        index(BATCH, "position", q=charges)


def test_labels_in_batch_order_mean_the_same_both_ways():
    indexing, rows = index(BATCH, energy=structure_target([1.0, 2.0, 3.0]))
    assert (indexing.labels, indexing.ids) == ("auto", None)
    assert rows == {"energy": []}


@pytest.mark.parametrize("setting", ["auto", "id"])
def test_ids_follow_the_order_of_a_block_that_covers_all_systems(setting):
    energy = structure_target([1.0, 2.0, 3.0], systems=[17, 4, 9])
    charges = atom_target([1.0, 2.0, 3.0], [[9, 1], [9, 0], [4, 2]])
    indexing, rows = index(BATCH, setting, charges=charges, energy=energy)
    assert indexing.labels == "id"
    assert indexing.ids.tolist() == [17, 4, 9]
    # Atoms 1 and 0 of the third system, 2 of the second.
    assert rows == {"energy": [[0, 1, 2]], "charges": [[5, 4, 3]]}


@pytest.mark.parametrize("setting", ["auto", "id"])
def test_blocks_with_ids_in_different_orders_are_refused(setting):
    # Whichever block came first would decide what the other one means.
    isomers = [system(1, 8, 1), system(1, 1, 8)]
    energy = structure_target([1.0, 2.0], systems=[17, 4])
    charges = atom_target([1.0, 2.0], [[4, 0], [17, 0]])
    with pytest.raises(ValueError, match="system_labels"):
        index(isomers, setting, exact=True, charges=charges, energy=energy)


@pytest.mark.parametrize("exact", [False, True])
def test_shuffled_atoms_beside_structures_in_batch_order_have_positions(exact):
    # As ids, the two targets would give the systems different orders: only positions fit.
    energy = structure_target([1.0, 2.0])
    charges = atom_target([1.0, 2.0, 3.0, 4.0], [[1, 1], [1, 0], [0, 0], [1, 2]])
    systems = [system(8), system(1, 8, 1)]
    indexing, rows = index(systems, exact=exact, charges=charges, energy=energy)
    assert indexing.ids is None
    # The first atoms of the systems are atoms 0 and 1.
    assert rows == {"charges": [[2, 1, 0, 3]], "energy": []}


def test_ids_are_numbered_by_first_appearance_not_by_size():
    charges = atom_target(torch.arange(6.0), [[8, 0], [5, 0], [5, 1], [5, 2], [6, 0], [6, 1]])
    indexing, rows = index(BATCH, charges=charges)
    assert indexing.ids.tolist() == [8, 5, 6]
    assert rows == {"charges": [[0, 1, 2, 3, 4, 5]]}


def test_ids_are_numbered_by_the_first_of_their_rows():
    # The last rows of the systems 8, 5 and 6 come in the order 8, 6, 5.
    charges = atom_target(torch.arange(6.0), [[8, 0], [5, 0], [6, 0], [5, 1], [6, 1], [5, 2]])
    indexing, rows = index(BATCH, charges=charges)
    assert indexing.ids.tolist() == [8, 5, 6]
    assert rows == {"charges": [[0, 1, 4, 2, 5, 3]]}


def test_shuffled_labels_that_could_be_positions_or_ids_are_refused():
    energy = structure_target([1.0, 2.0, 3.0], systems=[2, 0, 1])
    with pytest.raises(ValueError, match=r"different results .*\[2, 0, 1\].*set system_labels="):
        index(BATCH, energy=energy)
    assert index(BATCH, "position", energy=energy)[1] == {"energy": [[2, 0, 1]]}
    assert index(BATCH, "id", energy=energy)[1] == {"energy": [[0, 1, 2]]}


def test_the_error_names_the_target_whose_labels_give_different_results():
    """Swapped isomers have the same composition, so only the rows of atoms differ."""
    isomers = [system(1, 8, 1), system(1, 1, 8)]
    energy = structure_target([1.0, 2.0], systems=[1, 0])
    charges = atom_target([1.0, 2.0], [[1, 1], [0, 1]])
    with pytest.raises(ValueError, match=r"different results \(target 'charges', first labels"):
        index(isomers, energy=energy, charges=charges)
    fits, fits_not = structure_target([1.0], systems=[1]), structure_target([1.0], systems=[7])
    with pytest.raises(ValueError, match=r"neither .* \(target 'gap', first labels \[7\]\)"):
        index(BATCH, energy=fits, gap=fits_not)


def test_swapped_systems_of_other_types_and_the_same_size_are_refused():
    energy = structure_target([1.0, 2.0], systems=[1, 0])
    with pytest.raises(ValueError, match=r"different results .*\[1, 0\].*set system_labels="):
        index([system(8, 1), system(6, 8)], energy=energy)


def test_isomers_may_be_swapped_unless_exact_rows_are_needed():
    # Both meanings give the same composition, so the same baseline and scale.
    isomers = [system(1, 8, 1), system(1, 1, 8)]
    energy = structure_target([1.0, 2.0], systems=[1, 0])
    assert meaning(isomers, energy=energy) == "auto"
    with pytest.raises(ValueError, match="system_labels"):
        index(isomers, exact=True, energy=energy)
    # Per atom the first atom is H in both, the second is not.
    first = atom_target([1.0, 2.0], [[1, 0], [0, 0]])
    assert meaning(isomers, charges=first) == "auto"
    second = atom_target([1.0, 2.0], [[1, 1], [0, 1]])
    with pytest.raises(ValueError, match="system_labels"):
        index(isomers, charges=second)


def test_atom_counts_decide_what_the_labels_mean():
    pair = [system(8), system(1, 8, 1)]
    # As ids, the first of these would be O with three atoms.
    shuffled = atom_target(torch.arange(4.0), [[1, 0], [1, 1], [1, 2], [0, 0]])
    assert meaning(pair, charges=shuffled) == "position"
    # As positions, system 0 would be O with three atoms.
    ids = atom_target(torch.arange(4.0), [[1, 0], [0, 0], [0, 1], [0, 2]])
    assert meaning(pair, charges=ids) == "id"


def test_labels_of_some_of_the_systems_are_positions():
    energy = structure_target([1.0, 2.0], systems=[0, 2])
    assert meaning(BATCH, energy=energy) == "position"
    assert meaning(BATCH, charges=atom_target([1.0], [[1, 2]])) == "position"


def test_labels_that_are_neither_positions_nor_ids_are_refused():
    with pytest.raises(ValueError, match=r"neither positions .* nor ids .*\[7, 9\]"):
        index(BATCH, energy=structure_target([1.0, 2.0], systems=[7, 9]))


def test_ids_without_a_block_that_covers_all_systems_are_refused():
    message = r"system_labels='id': .* each of the batch's 3 systems.*there is none"
    with pytest.raises(ValueError, match=message):
        index(BATCH, "id", energy=structure_target([1.0, 2.0], systems=[7, 9]))


def test_the_setting_position_refuses_ids():
    energy = structure_target([1.0, 2.0, 3.0], systems=[17, 4, 9])
    with pytest.raises(ValueError, match="read as a position in it; see the setting system_labels"):
        index(BATCH, "position", energy=energy)


def test_atom_pairs_do_not_decide_what_the_labels_mean():
    pairs = pair_target([1.0, 2.0], [[9, 0, 1, 0, 0, 0], [4, 2, 1, 0, 0, 0]])
    energy = structure_target([1.0, 2.0, 3.0], systems=[17, 4, 9])
    indexing, rows = index(BATCH, hopping=pairs, energy=energy)
    assert rows == {"hopping": [], "energy": [[0, 1, 2]]}
    samples = pairs.block().samples
    assert indexing.positions("hopping", samples, read_atoms(BATCH)).tolist() == [2, 1]


@pytest.mark.parametrize("n_systems", [0, 3])
def test_the_setting_id_reads_labels_in_batch_order(n_systems):
    energy = structure_target(torch.ones(n_systems))
    indexing, rows = index(BATCH[:n_systems], "id", energy=energy)
    assert indexing.labels == "id"
    assert indexing.ids.tolist() == list(range(n_systems))
    assert rows == {"energy": [list(range(n_systems))]}


def test_unknown_settings_are_refused():
    with pytest.raises(ValueError, match=r"system_labels: expected one of .*, got 'ids'"):
        index(BATCH, "ids", energy=structure_target([1.0, 2.0, 3.0]))


@pytest.mark.parametrize("setting", ["auto", "id"])
def test_sample_ids_of_the_batch_give_the_order_of_the_systems(setting):
    """No block covers all three systems."""
    charges = atom_target([1.0, 2.0], [[9, 1], [4, 2]])
    indexing, rows = index(with_sample_id(BATCH, [17, 4, 9]), setting, charges=charges)
    assert indexing.labels == "id"
    # The second atom of CO, the last one of water.
    assert rows == {"charges": [[5, 3]]}


def test_labels_in_order_that_differ_from_the_sample_ids_are_refused():
    """Labels 0, 1, 2 in order, of systems with the ids 2, 0, 1: both meanings fit."""
    systems = with_sample_id(BATCH, [2, 0, 1])
    energy = structure_target([1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="set system_labels='position' or 'id'"):
        index(systems, energy=energy)
    assert index(systems, "id", energy=energy)[1] == {"energy": [[1, 2, 0]]}


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
