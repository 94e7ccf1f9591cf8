"""How the ``system`` labels are read."""

import pytest
import torch
from builders import (
    atom_target,
    labels,
    pair_target,
    structure_target,
    system,
)

from lightning_scaler.batches.atoms import Atoms
from lightning_scaler.batches.system_labels import SystemIndexing, infer_system_indexing
from lightning_scaler.batches.systems import IdentifiedSystems

# O, H2O (oxygen in the middle) and CO: other sizes, other types, other orders.
BATCH = [system(8), system(1, 8, 1), system(6, 8)]


def atoms_of(systems):
    return Atoms.from_systems(systems)


def read(systems, setting="auto", exact=False, **targets):
    return infer_system_indexing(atoms_of(systems), targets, setting, exact)


def test_rows_of_atoms_come_from_labels():
    rows = labels(["system", "atom"], [[2, 1], [0, 0], [1, 2], [2, 0]])
    # Offsets 0, 1, 4: atoms 5, 0, 3 and 4.
    assert SystemIndexing("position").atom_rows("q", rows, atoms_of(BATCH)).tolist() == [5, 0, 3, 4]


@pytest.mark.parametrize("row", [[3, 0], [-1, 0], [0, 1], [2, 2], [1, -1]])
def test_rows_outside_the_batch(row):
    rows = labels(["system", "atom"], [[1, 1], row])
    words = rf"target 'q': the sample \(system={row[0]}, atom={row[1]}\) is not in the batch of 3"
    with pytest.raises(ValueError, match=words):
        SystemIndexing("position").positions("q", rows, atoms_of(BATCH))


def test_usual_order_reads_the_same_both_ways():
    reading = read(BATCH, energy=structure_target([1.0, 2.0, 3.0]))
    assert (reading.labels, reading.ids) == ("auto", None)


@pytest.mark.parametrize("setting", ["auto", "id"])
def test_ids_of_the_data_set(setting):
    energy = structure_target([1.0, 2.0, 3.0], systems=[17, 4, 9])
    charges = atom_target([1.0, 2.0, 3.0], [[9, 1], [9, 0], [4, 2]])
    reading = read(BATCH, setting, charges=charges, energy=energy)
    assert reading.labels == "id"
    atoms = atoms_of(BATCH)
    assert reading.positions("energy", energy.block().samples, atoms).tolist() == [0, 1, 2]
    # Offsets 0, 1, 4: atoms 1 and 0 of the third system, 2 of the second.
    assert reading.atom_rows("charges", charges.block().samples, atoms).tolist() == [5, 4, 3]


@pytest.mark.parametrize("setting", ["auto", "id"])
def test_blocks_that_give_the_ids_another_order(setting):
    # Whichever block came first would decide what the other one means.
    isomers = [system(1, 8, 1), system(1, 1, 8)]
    energy = structure_target([1.0, 2.0], systems=[17, 4])
    charges = atom_target([1.0, 2.0], [[4, 0], [17, 0]])
    with pytest.raises(ValueError, match="system_labels"):
        read(isomers, setting, exact=True, charges=charges, energy=energy)


def test_shuffled_atoms_beside_structures_in_the_usual_order():
    # As ids, the two targets would give the systems different orders: only positions fit.
    energy = structure_target([1.0, 2.0])
    charges = atom_target([1.0, 2.0, 3.0, 4.0], [[1, 1], [1, 0], [0, 0], [1, 2]])
    systems = [system(8), system(1, 8, 1)]
    for exact in (False, True):
        reading = read(systems, exact=exact, charges=charges, energy=energy)
        assert reading.ids is None
    # Offsets 0 and 1.
    rows = reading.atom_rows("charges", charges.block().samples, atoms_of(systems))
    assert rows.tolist() == [2, 1, 0, 3]


def test_ids_numbered_by_first_appearance_not_by_size():
    charges = atom_target(torch.arange(6.0), [[8, 0], [5, 0], [5, 1], [5, 2], [6, 0], [6, 1]])
    reading = read(BATCH, charges=charges)
    assert reading.ids.tolist() == [8, 5, 6]


def test_shuffled_rows_could_be_both():
    energy = structure_target([1.0, 2.0, 3.0], systems=[2, 0, 1])
    with pytest.raises(ValueError, match=r"different results .*\[2, 0, 1\].*set system_labels="):
        read(BATCH, energy=energy)
    atoms = atoms_of(BATCH)
    as_position, as_id = read(BATCH, "position", energy=energy), read(BATCH, "id", energy=energy)
    assert as_position.positions("energy", energy.block().samples, atoms).tolist() == [2, 0, 1]
    assert as_id.positions("energy", energy.block().samples, atoms).tolist() == [0, 1, 2]


def test_isomers_may_change_places_but_not_where_rows_matter():
    # Both readings give the same composition, so the same baseline and scale; matching needs more.
    isomers = [system(1, 8, 1), system(1, 1, 8)]
    energy = structure_target([1.0, 2.0], systems=[1, 0])
    assert read(isomers, energy=energy).labels == "auto"
    with pytest.raises(ValueError, match="system_labels"):
        read(isomers, exact=True, energy=energy)
    # Per atom the first atom is H in both, the second is not.
    first = atom_target([1.0, 2.0], [[1, 0], [0, 0]])
    assert read(isomers, charges=first).labels == "auto"
    second = atom_target([1.0, 2.0], [[1, 1], [0, 1]])
    with pytest.raises(ValueError, match="system_labels"):
        read(isomers, charges=second)


def test_other_atom_counts_settle_the_reading():
    pair = [system(8), system(1, 8, 1)]
    # As ids, the first of these would be O with three atoms.
    shuffled = atom_target(torch.arange(4.0), [[1, 0], [1, 1], [1, 2], [0, 0]])
    assert read(pair, charges=shuffled).labels == "position"
    # As positions, system 0 would be O with three atoms.
    ids = atom_target(torch.arange(4.0), [[1, 0], [0, 0], [0, 1], [0, 2]])
    assert read(pair, charges=ids).labels == "id"


def test_some_systems_only():
    assert read(BATCH, energy=structure_target([1.0, 2.0], systems=[0, 2])).labels == "position"
    assert read(BATCH, charges=atom_target([1.0], [[1, 2]])).labels == "position"


def test_neither_reading_fits():
    with pytest.raises(ValueError, match=r"neither positions .* nor ids .*\[7, 9\]"):
        read(BATCH, energy=structure_target([1.0, 2.0], systems=[7, 9]))


def test_ids_without_a_block_that_covers_all():
    with pytest.raises(
        ValueError, match=r"system_labels='id': .* each of the batch's 3 systems.*there is none"
    ):
        read(BATCH, "id", energy=structure_target([1.0, 2.0], systems=[7, 9]))


def test_position_setting_refuses_ids():
    energy = structure_target([1.0, 2.0, 3.0], systems=[17, 4, 9])
    reading = read(BATCH, "position", energy=energy)
    with pytest.raises(ValueError, match="read as a position in it; see the setting system_labels"):
        reading.positions("energy", energy.block().samples, atoms_of(BATCH))


def test_pairs_do_not_take_part_but_can_be_read():
    pairs = pair_target([1.0, 2.0], [[9, 0, 1, 0, 0, 0], [4, 2, 1, 0, 0, 0]])
    energy = structure_target([1.0, 2.0, 3.0], systems=[17, 4, 9])
    reading = read(BATCH, hopping=pairs, energy=energy)
    atoms = atoms_of(BATCH)
    assert reading.positions("hopping", pairs.block().samples, atoms).tolist() == [2, 1]


def test_id_setting_in_the_usual_order():
    for energy in (structure_target([1.0, 2.0, 3.0]), structure_target([], systems=[])):
        reading = read(BATCH[: len(energy.block().samples)], "id", energy=energy)
        assert reading.labels == "id"
        assert reading.ids.tolist() == list(range(len(energy.block().samples)))


def test_unknown_setting():
    with pytest.raises(ValueError, match=r"system_labels: expected one of .*, got 'ids'"):
        read(BATCH, "ids", energy=structure_target([1.0, 2.0, 3.0]))


def test_the_batch_says_which_systems_it_has():
    """No block covers all three systems; the batch's own ids tell the order."""
    systems = IdentifiedSystems(BATCH, sample_id=[17, 4, 9])
    charges = atom_target([1.0, 2.0], [[9, 1], [4, 2]])
    for setting in ("auto", "id"):
        reading = read(systems, setting, charges=charges)
        assert reading.labels == "id"
        # Offsets 0, 1, 4: the second atom of CO, the last one of water.
        rows = reading.atom_rows("charges", charges.block().samples, atoms_of(systems))
        assert rows.tolist() == [5, 3]


def test_joined_rows_that_were_sorted_by_id():
    """Labels 0, 1, 2 in order, of systems that are numbers 2, 0, 1: neither reading is sure."""
    systems = IdentifiedSystems(BATCH, sample_id=[2, 0, 1])
    energy = structure_target([1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="set system_labels='position' or 'id'"):
        read(systems, energy=energy)
    reading = read(systems, "id", energy=energy)
    positions = reading.positions("energy", energy.block().samples, atoms_of(systems))
    assert positions.tolist() == [1, 2, 0]
