"""Systems and TensorMaps of a batch on their way to a device."""

import gc
import warnings
import weakref
from collections import namedtuple

import pytest
import torch
from builders import atom_target, cartesian, labels, structure_target, system
from metatensor.torch import TensorBlock
from metatomic.torch import NeighborListOptions

from lightning_scaler import CompositionBaseline, ScaleAccumulator
from lightning_scaler.batches.atoms import Atoms, read_atoms
from lightning_scaler.batches.device import move_to_device
from lightning_scaler.batches.systems import IdentifiedSystems
from lightning_scaler.batches.unpack import unpack
from lightning_scaler.scaling.loss_space import targets_to_loss

CPU, META = torch.device("cpu"), torch.device("meta")
Named = namedtuple("Named", ["system", "energy", "extra"])


def with_neighbors():
    molecule = system(8, 1)
    distance = molecule.positions[1] - molecule.positions[0]
    names = ["first_atom", "second_atom", "cell_shift_a", "cell_shift_b", "cell_shift_c"]
    pairs = TensorBlock(
        distance.reshape(1, 3, 1),
        labels(names, [[0, 1, 0, 0, 0]]),
        [labels("xyz", [0, 1, 2])],
        labels("distance", [0]),
    )
    molecule.add_neighbor_list(NeighborListOptions(3.0, full_list=False, strict=True), pairs)
    molecule.add_data("example::charge", structure_target([1.0]))
    return molecule


def test_systems_are_cast_and_targets_are_not():
    batch = {"system": [with_neighbors(), system(1)], "energy": structure_target([1.0, 2.0])}
    moved = move_to_device(batch, CPU, torch.float32)
    for before, after in zip(batch["system"], moved["system"], strict=True):
        assert after.positions.dtype == after.cell.dtype == torch.float32
        assert torch.equal(after.types, before.types)
        assert before.positions.dtype == torch.float64
    first = moved["system"][0]
    options = first.known_neighbor_lists()[0]
    assert first.get_neighbor_list(options).values.dtype == torch.float32
    assert moved["energy"].block().values.dtype == torch.float64
    assert moved["energy"].block().values.flatten().tolist() == [1, 2]


def test_device():
    energy = structure_target([1.0], gradient={"positions": [[[1, 2, 3]]]})
    moved = move_to_device({"system": [system(8)], "energy": energy}, META, torch.float64)
    assert moved["energy"].block().values.device == META
    assert moved["energy"].block().gradient("positions").values.device == META
    assert moved["system"][0].positions.device == META


def test_other_members_are_left_alone():
    tensor, words = torch.ones(2), ["a", "b"]
    batch = Named([system(8)], structure_target([1.0]), {"t": tensor, "w": words, "n": None})
    moved = move_to_device(batch, CPU, torch.float32)
    assert type(moved) is Named
    assert moved.extra["t"] is tensor
    assert moved.extra["w"] == words
    assert moved.extra["n"] is None
    assert moved.system[0].positions.dtype == torch.float32


@pytest.mark.parametrize("nested", [tuple, list])
def test_nested_batches(nested):
    batch = nested([[system(8)], {"energy": structure_target([1.0])}])
    moved = move_to_device(batch, CPU, torch.float32)
    assert type(moved) is nested
    assert moved[0][0].positions.dtype == torch.float32


def test_batches_made_in_inference_mode_can_be_used_by_autograd():
    with torch.inference_mode():
        batch = {
            "system": [with_neighbors()],
            "energy": structure_target(
                [1.0],
                gradient={"positions": [[[1, 2, 3], [4, 5, 6]]], "strain": torch.ones(1, 3, 3)},
            ),
        }
        assert batch["energy"].block().values.is_inference()
    moved = move_to_device(batch, CPU, torch.float64)
    molecule, energy = moved["system"][0], moved["energy"].block()
    assert isinstance(molecule, torch.ScriptObject)
    pairs = molecule.get_neighbor_list(molecule.known_neighbor_lists()[0])
    plain = [
        molecule.types,
        molecule.positions,
        molecule.cell,
        molecule.pbc,
        pairs.values,
        pairs.samples.values,
        molecule.get_data("example::charge").block().values,
        moved["energy"].keys.values,
        energy.values,
        energy.samples.values,
        energy.properties.values,
        energy.gradient("positions").values,
        energy.gradient("positions").samples.values,
        energy.gradient("strain").values,
    ]
    assert not any(tensor.is_inference() for tensor in plain)
    positions = molecule.positions.clone().requires_grad_()
    (positions.square().sum() * energy.values.sum()).backward()
    assert positions.grad is not None
    before = batch["energy"].block()
    assert energy.samples == before.samples
    assert torch.equal(energy.gradient("positions").values, before.gradient("positions").values)


def test_systems_cast_in_inference_mode():
    with torch.inference_mode():
        molecule = system(8, 1)
    moved = move_to_device([molecule], CPU, torch.float32)[0]
    assert isinstance(moved.types, torch.Tensor)
    for tensor in (moved.types, moved.positions, moved.cell, moved.pbc):
        assert not tensor.is_inference()


def test_types_and_labels_are_read_before_the_move():
    samples = labels(["system", "atom"], [[0, 0], [0, 1], [1, 0]])
    usual, swapped = structure_target([1.0, 2.0]), structure_target([1.0, 2.0], systems=[1, 0])
    charges = atom_target([1.0, 2.0, 3.0], samples)
    batch = ([system(8, 1), system(6)], {"e": usual, "s": swapped, "q": charges})
    systems, targets = move_to_device(batch, CPU, torch.float32)
    atoms = Atoms.from_systems(systems)
    assert atoms.kinds.tolist() == [1, 6, 8]
    assert atoms.systems is systems
    assert atoms.types is systems.atoms.types
    assert [atoms.known.get(targets[name]).usual for name in "esq"] == [True, False, True]
    assert [atoms.on_host(targets[name]) for name in "eq"] == [usual, charges]
    # On a device without numbers, what would have to ask it cannot be answered.
    systems, targets = move_to_device(batch, META, torch.float32)
    atoms = read_atoms(systems)
    assert atoms.types.device == META
    assert atoms.kinds.tolist() == [1, 6, 8]
    assert atoms.usual_ids
    assert atoms.usual(targets) == {"e", "q"}
    again = IdentifiedSystems(systems, [4, 7])
    assert not Atoms.from_systems(again).usual_ids
    assert Atoms.from_systems(again).kinds.tolist() == [1, 6, 8]


def test_moved_twice():
    energy = structure_target([1.0, 2.0])
    once = move_to_device(([system(8, 1), system(6)], {"e": energy}), CPU, torch.float32)
    systems, targets = move_to_device(once, META, torch.float64)
    atoms = read_atoms(systems)
    assert atoms.host == CPU
    assert atoms.on_host(targets["e"]) is energy
    assert atoms.usual(targets) == {"e"}


def test_a_batch_that_is_dropped_is_freed_at_once():
    """A device has no memory to spare until the garbage collector comes by."""
    batch = {"system": [system(8), system(1)], "energy": structure_target([1.0, 2.0])}
    gc.disable()
    try:
        moved = move_to_device(batch, CPU, torch.float32)
        left = [weakref.ref(moved["energy"]), weakref.ref(moved["system"][0])]
        assert all(reference() is not None for reference in left)
        del moved
        assert all(reference() is None for reference in left)
    finally:
        gc.enable()


def test_a_list_that_has_changed_is_read_again():
    systems = move_to_device([system(8, 1), system(6)], CPU, torch.float64)
    systems[1] = system(7)
    assert Atoms.from_systems(systems).kinds.tolist() == [1, 7, 8]
    systems.pop()
    assert Atoms.from_systems(systems).kinds.tolist() == [1, 8]
    batch = {"system": [system(8, 1), system(1, 8)], "sample_id": [4, 5]}
    systems = unpack(move_to_device(batch, CPU, torch.float64)).systems
    assert Atoms.from_systems(systems).types.tolist() == [8, 1, 1, 8]
    systems.reverse()
    with pytest.raises(ValueError, match="as they came with their sample_id"):
        Atoms.from_systems(systems)


@pytest.mark.parametrize("baseline", [None, CompositionBaseline()])
def test_conversions_of_a_moved_batch_ask_the_device_nothing(baseline):
    """The meta device has no numbers: whoever asks for one raises."""
    structures = [system(8, 1), system(6)]
    rows = labels(["system", "atom"], [[0, 0], [0, 1], [1, 0]])
    given = {
        "energy": structure_target([1.0, 2.0], gradient={"strain": [[[1.0] * 3] * 3] * 2}),
        "charges": atom_target([1.0, 2.0, 3.0], rows),
        "dipole": structure_target([[[1.0], [2.0], [3.0]]] * 2, components=cartesian()),
    }
    accumulator = ScaleAccumulator(baseline=baseline)
    accumulator.update(structures, given)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a baseline leaves nothing of so few numbers
        scaler = accumulator.compute()
    systems, targets = move_to_device((structures, given), META, torch.float32)
    atoms = read_atoms(systems)
    in_loss = targets_to_loss(scaler, atoms, targets)
    assert {tensor.block().values.device for tensor in in_loss.values()} == {META}
    strain = in_loss["energy"].block().gradient("strain").values
    assert (strain.device, strain.dtype) == (META, torch.float32)
