"""Systems and TensorMaps of a batch moved to a device."""

import gc
import warnings
import weakref
from collections import namedtuple

import pytest
import torch
from builders import (
    atom_target,
    cartesian,
    fit,
    labels,
    mask_of,
    scale,
    structure_target,
    system,
)
from metatensor.torch import TensorBlock
from metatomic.torch import NeighborListOptions
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_scaler import CompositionBaseline, ScaleAccumulator
from lightning_scaler.batches import (
    Atoms,
    index_batch,
    index_targets,
    move_to_device,
    move_unpacked,
    read_atoms,
    unpack,
)
from lightning_scaler.scaling import (
    predictions_to_loss,
    predictions_to_physical,
    targets_to_loss,
    values_in_physical_units,
)
from lightning_scaler.tensors import TargetLayout

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


def test_systems_are_cast_and_targets_keep_their_dtype():
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


def test_values_and_gradients_are_moved():
    energy = structure_target([1.0], gradient={"positions": [[[1, 2, 3]]]})
    moved = move_to_device({"system": [system(8)], "energy": energy}, META, torch.float64)
    assert moved["energy"].block().values.device == META
    assert moved["energy"].block().gradient("positions").values.device == META
    assert moved["system"][0].positions.device == META


def test_other_members_of_a_batch_are_not_moved():
    tensor, words = torch.ones(2), ["a", "b"]
    batch = Named([system(8)], structure_target([1.0]), {"t": tensor, "w": words, "n": None})
    moved = move_to_device(batch, CPU, torch.float32)
    assert type(moved) is Named
    assert moved.extra["t"] is tensor
    assert moved.extra["w"] == words
    assert moved.extra["n"] is None
    assert moved.system[0].positions.dtype == torch.float32


@pytest.mark.parametrize("nested", [tuple, list])
def test_nested_batches_are_moved(nested):
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


def test_systems_made_in_inference_mode_are_copied():
    with torch.inference_mode():
        molecule = system(8, 1)
    moved = move_to_device([molecule], CPU, torch.float32)[0]
    assert isinstance(moved.types, torch.Tensor)
    for tensor in (moved.types, moved.positions, moved.cell, moved.pbc):
        assert not tensor.is_inference()


def index(atoms, targets, known):
    """Rows of the targets, which read no label on a device."""
    indexed = index_batch(atoms, targets, known, "auto", exact=True).targets
    assert all(indexed[name].layout is known[name] for name in targets)
    return {name: target.rows for name, target in indexed.items()}


@pytest.mark.parametrize("device", [CPU, META])
def test_types_and_labels_are_read_before_the_move(device):
    """The meta device has no values: reading one raises."""
    energy, charges = structure_target([1.0, 2.0]), atom_target([1.0] * 3, [[0, 0], [0, 1], [1, 0]])
    batch = ([system(8, 1), system(6)], {"e": energy, "q": charges})
    known = {name: TargetLayout.of(name, tensor) for name, tensor in batch[1].items()}
    systems, targets = move_to_device(batch, device, torch.float32)
    atoms = read_atoms(systems)
    assert atoms.types is systems.atoms.types
    assert atoms.systems is systems
    assert atoms.types.device == device
    assert atoms.unique_types.tolist() == [1, 6, 8]
    assert atoms.ids_are_positions
    assert atoms.label_record(targets["e"]).original is energy
    assert atoms.label_record(targets["q"]).original is charges
    assert index(atoms, targets, known) == {"e": [], "q": []}


@pytest.mark.parametrize("device", [CPU, META])
def test_rows_of_moved_targets_are_found_before_the_move(device):
    shuffled = {
        "e": structure_target([1.0, 2.0], systems=[7, 4]),
        "q": atom_target([1.0] * 3, [[4, 0], [7, 1], [7, 0]]),
    }
    known = {name: TargetLayout.of(name, tensor) for name, tensor in shuffled.items()}
    batch = {"system": [system(8, 1), system(6)], "sample_id": (7, 4), **shuffled}
    systems, targets, _ = unpack(move_to_device(batch, device, torch.float32))
    atoms = read_atoms(systems)
    assert not atoms.ids_are_positions
    assert atoms.unique_types.tolist() == [1, 6, 8]
    rows = index(atoms, targets, known)
    assert [len(r) for (r,) in rows.values()] == [2, 3]
    assert all(r.device == device for (r,) in rows.values())
    if device == CPU:
        # Atoms 0 and 1 belong to the first system, atom 2 to the second.
        assert {name: r.tolist() for name, (r,) in rows.items()} == {"e": [0, 1], "q": [2, 1, 0]}


def test_batches_moved_twice_are_read_where_they_came_from():
    energy = structure_target([1.0, 2.0])
    known = {"e": TargetLayout.of("e", energy)}
    once = move_to_device(([system(8, 1), system(6)], {"e": energy}), CPU, torch.float32)
    systems, targets = move_to_device(once, META, torch.float64)
    atoms = read_atoms(systems)
    assert atoms.on_host.types.device == CPU
    assert atoms.label_record(targets["e"]).original is energy
    assert index(atoms, targets, known) == {"e": []}


def test_what_was_unpacked_is_moved_unless_it_has_been_already():
    energy, mask = structure_target([1.0, 2.0]), structure_target([1.0, 0.0])
    batch = unpack({"system": [system(8, 1), system(6)], "e": energy, "e_mask": mask})
    moved = move_unpacked(batch, META, torch.float32)
    assert moved.targets["e"].device == moved.masks["e"].device == META
    assert {s.positions.device for s in moved.systems} == {META}
    assert {s.positions.dtype for s in moved.systems} == {torch.float32}
    # Labels were read before.
    assert read_atoms(moved.systems).label_record(moved.targets["e"]).original is energy
    again = move_unpacked(moved, META, torch.float32)
    assert again.systems is moved.systems
    assert again.targets["e"] is moved.targets["e"]
    added = moved._replace(targets={**moved.targets, "f": energy})
    targets = move_unpacked(added, META, torch.float32).targets
    assert targets["f"].device == META
    assert targets["e"] is moved.targets["e"]


def test_a_batch_that_is_dropped_is_freed_at_once():
    """Not only when the garbage collector runs: memory of the device is scarce."""
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


def test_lists_of_systems_that_have_changed_are_read_again():
    systems = move_to_device([system(8, 1), system(6)], CPU, torch.float64)
    systems[1] = system(7)
    assert Atoms.from_systems(systems).unique_types.tolist() == [1, 7, 8]
    systems.pop()
    assert Atoms.from_systems(systems).unique_types.tolist() == [1, 8]
    batch = {"system": [system(8, 1), system(1, 8)], "sample_id": [4, 5]}
    systems = unpack(move_to_device(batch, CPU, torch.float64)).systems
    assert Atoms.from_systems(systems).types.tolist() == [8, 1, 1, 8]
    systems.reverse()
    with pytest.raises(ValueError, match="as they came with their sample_id"):
        Atoms.from_systems(systems)


@pytest.mark.parametrize("baseline", [None, CompositionBaseline()])
def test_conversions_of_a_moved_batch_do_not_wait_for_the_device(baseline):
    """The meta device has no values: reading one raises."""
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
        warnings.simplefilter("ignore")  # a baseline fits two energies exactly
        scaler = accumulator.compute()
    systems, targets = move_to_device((structures, given), META, torch.float32)
    atoms = read_atoms(systems)
    in_loss = targets_to_loss(scaler, atoms, targets)
    assert {tensor.block().values.device for tensor in in_loss.values()} == {META}
    strain = in_loss["energy"].block().gradient("strain").values
    assert (strain.device, strain.dtype) == (META, torch.float32)


class ComparisonsOnOneDevice(TorchDispatchMode):
    """Finds tensors without values equal, and refuses to compare tensors of two devices."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.is_set_to.default and args[0].is_meta:
            return False
        if func is torch.ops.aten.equal.default:
            first, second = args
            if first.device != second.device:
                raise RuntimeError(f"compared tensors on {first.device} and {second.device}")
            if first.is_meta:
                return first.shape == second.shape
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("moved_before", [True, False], ids=["systems moved", "systems not moved"])
def test_labels_of_predictions_are_compared_on_their_own_device(moved_before):
    systems = [system(8, 1), system(6)]
    tensors = {
        "e": structure_target([1.0, 2.0]),
        "q": atom_target([1.0] * 3, [[0, 0], [0, 1], [1, 0]]),
    }
    layouts = {name: TargetLayout.of(name, tensor) for name, tensor in tensors.items()}
    predictions = {name: tensor.to(device=META) for name, tensor in tensors.items()}
    if moved_before:
        systems, _ = move_to_device((systems, tensors), META, torch.float32)
    atoms = read_atoms(systems).to(META)
    with ComparisonsOnOneDevice():
        indexed = index_targets(atoms, predictions, layouts).targets
    assert {name: target.rows for name, target in indexed.items()} == {"e": [], "q": []}


CUDA = pytest.param(
    torch.device("cuda", 0),
    marks=[
        pytest.mark.gpu,
        pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    ],
)


@pytest.mark.parametrize("device", [CPU, CUDA])
def test_masked_and_replaced_targets_and_predictions_of_a_moved_batch_are_converted(device):
    """Labels of all these are on the device alone. The scales of H and O are 5 and 2."""
    systems, ids = [system(8), system(1, 1, 8)], [30, 40]
    charges = atom_target([2.0, 1.0, 7.0, 2.0], [[30, 0], [40, 0], [40, 1], [40, 2]])
    mask = mask_of(charges, [[True, False, True, True]])
    scaler = fit(systems, {"q": charges})
    batch = {"system": systems, "sample_id": ids, "q": charges, "q_mask": mask}
    systems, targets, masks = unpack(move_to_device(batch, device, torch.float64))
    targets = targets_to_loss(scaler, systems, targets, masks, torch.float64)
    samples = targets["q"].block().samples.values
    assert samples.tolist() == [[0, 0], [1, 0], [1, 1], [1, 2]]
    values = targets["q"].block().values.flatten()
    assert values.device.type == device.type
    expected = torch.tensor([1.0, torch.nan, 7 / 5, 1.0]).double()
    torch.testing.assert_close(values.cpu(), expected, equal_nan=True)
    # Rows of a prediction in another order: O and H of the second system, then O of the first.
    predictions = {"q": atom_target([1.0] * 3, [[1, 2], [1, 1], [0, 0]]).to(device=device)}
    physical = predictions_to_physical(scaler, systems, predictions)["q"].block().values
    assert physical.flatten().tolist() == pytest.approx([2, 5, 2])
    targets["q"] = atom_target([0.0] * 2, [[0, 0], [1, 1]]).to(device=device)
    in_loss = predictions_to_loss(scaler, systems, predictions, targets)["q"].block().values
    assert in_loss.flatten().tolist() == [1, 1]
    (found,) = values_in_physical_units(scaler, systems, {"q": targets["q"]}, {"q": targets["q"]})[
        "q"
    ]
    assert found.target.tolist() == [0, 0]
    # Systems on the host, predictions on the device.
    on_host = batch["system"]
    physical = predictions_to_physical(scaler, on_host, predictions)["q"].block().values
    assert physical.flatten().tolist() == pytest.approx([2, 5, 2])


@pytest.mark.parametrize("device", [CPU, CUDA])
def test_batches_on_a_device_can_be_fitted(device):
    charges = atom_target([2.0, 1.0, 7.0, 2.0], [[0, 0], [1, 0], [1, 1], [1, 2]])
    batch = ([system(8), system(1, 1, 8)], {"q": charges})
    accumulator = ScaleAccumulator()
    accumulator.update(*move_to_device(batch, device, torch.float64))
    systems = [one.to(device) for one in batch[0]]
    accumulator.update(systems, {"q": charges.to(device=device)})
    # H has the charges 1 and 7, O twice 2.
    assert scale(accumulator.compute(), "q") == [[pytest.approx(5)], [pytest.approx(2)]]
