"""What batches, outputs and declarations of users get wrong, or get right in unusual ways."""

import ase
import numpy as np
import pytest
import torch
from torch_geometric.data import Batch, Data

from lightning_scaler import PerAtom, PerStructure, ScaleAccumulator
from lightning_scaler.plain_tensors.addresses import find, replace, tensor_of
from lightning_scaler.plain_tensors.structures import find_atoms

TYPES = torch.tensor([8, 1, 1, 8])
OWNERS = torch.tensor([0, 0, 0, 1])

# A column of types, as in some datasets of graphs, and the number of atoms of each structure.
COLUMNS = {
    "owners": ({"z": TYPES[:, None], "batch": OWNERS}, [3, 1]),
    "counts": ({"z": TYPES[:, None], "n_atoms": [3, 1]}, [3, 1]),
    "a graph": (Data(z=TYPES[:, None], pos=torch.zeros(4, 3)), [4]),
    "structures of one atom": ({"z": TYPES[:, None], "n_atoms": [1, 1, 1, 1]}, [1, 1, 1, 1]),
    "a table": ({"z": TYPES[:, None]}, [1, 1, 1, 1]),
}


@pytest.mark.parametrize(("batch", "n_atoms"), COLUMNS.values(), ids=COLUMNS)
def test_a_column_of_types_is_one_structure_per_row_only_where_nothing_else_is_said(batch, n_atoms):
    atoms = find_atoms(batch, {})
    assert atoms.n_atoms.tolist() == n_atoms
    assert atoms.types.tolist() == TYPES.tolist()


REFUSED = {
    "ids of the dataset": (
        {"z": TYPES, "batch": torch.tensor([17, 17, 17, 42])},
        r"'batch': .* got structures with the numbers \[17, 42\]; number those of a batch 0, 1, 2",
    ),
    "a gap": (
        {"z": TYPES, "batch": torch.tensor([0, 0, 2, 2])},
        r"'batch': .* got structures with the numbers \[0, 2\]",
    ),
    "a table with padding": (
        {"z": torch.ones(2, 3).long(), "n_atoms": [4, 2]},
        r"'n_atoms': expected 3 in each of the 2 rows of the types .* got \[4, 2\]",
    ),
}


@pytest.mark.parametrize(("batch", "message"), REFUSED.values(), ids=REFUSED)
def test_structures_that_are_not_numbered_or_counted_as_their_atoms_are_refused(batch, message):
    with pytest.raises(ValueError, match=message):
        find_atoms(batch, {})


@pytest.mark.filterwarnings("ignore:Unable to accurately infer 'num_nodes'")
def test_several_graphs_without_offsets_are_not_one_structure():
    # Without positions, the number of nodes is unknown to PyTorch Geometric.
    batch = Batch.from_data_list([Data(atomic_numbers=TYPES), Data(atomic_numbers=TYPES)])
    with pytest.raises(TypeError, match="expected the structure of each of the 8 atoms"):
        find_atoms(batch, {})


def test_a_batch_without_structures_is_empty():
    nothing = torch.zeros(0, dtype=torch.int64)
    assert find_atoms({"z": nothing, "batch": nothing}, {}).n_systems == 0


def test_unsigned_integers_are_types_and_counts():
    batch = {"z": np.array([8, 1], dtype=np.uint16), "n_atoms": np.array([2], dtype=np.uint8)}
    assert find_atoms(batch, {}).n_atoms.tolist() == [2]


def test_an_index_counted_from_the_end_is_replaced():
    for holder in ((1, 2, 3), [1, 2, 3]):
        assert find(holder, (-1,)) == 3
        assert replace(holder, (-1,), 5) == type(holder)([1, 2, 5])


def test_a_column_of_an_array_is_replaced_in_a_tensor():
    holder = {"y": np.ones((2, 2))}
    new = replace(holder, ("y", 1), torch.tensor([3.0, 4.0]))
    assert new["y"].tolist() == [[1.0, 3.0], [1.0, 4.0]]
    assert holder["y"].tolist() == [[1.0, 1.0], [1.0, 1.0]]


def test_a_tensor_of_a_graph_may_have_the_name_of_a_method():
    graph = Data(size=torch.ones(2))
    new = replace(graph, ("size",), torch.zeros(2))
    assert find(new, ("size",)).tolist() == [0.0, 0.0]
    assert find(graph, ("size",)).tolist() == [1.0, 1.0]
    assert find(graph, ("clone",)) is None


@pytest.mark.parametrize("name", ["mtt::energy", "énergie", "E²", "能量", "two words", "1", ""])
def test_a_target_may_have_any_name(name):
    accumulator = ScaleAccumulator({name: PerStructure()})
    accumulator.update({"z": TYPES, "batch": OWNERS, name: torch.ones(2)})
    assert accumulator.compute().targets.keys() == {name}


WITH_FORCES = PerStructure(gradients={"positions": "-forces"})
CONVERTED_TWICE = {
    "a gradient and a target": {"energy": WITH_FORCES, "forces": PerAtom(components="xyz")},
    "the forces of two energies": {"energy": WITH_FORCES, "free_energy": WITH_FORCES},
    "a tensor and its column": {"y": PerStructure(properties=5), "gap": PerStructure(("y", 1))},
    "one prediction": {"a": PerStructure(prediction=0), "b": PerAtom(prediction=0)},
}


@pytest.mark.parametrize("targets", CONVERTED_TWICE.values(), ids=CONVERTED_TWICE)
def test_two_targets_have_no_prediction_in_common(targets):
    with pytest.raises(ValueError, match=r"are both declared at .* of the output; .*prediction="):
        ScaleAccumulator(targets)


def test_two_heads_may_share_the_forces_of_the_batch():
    direct = PerAtom(tensor="forces", prediction="direct", components="xyz")
    accumulator = ScaleAccumulator({"energy": WITH_FORCES, "direct_forces": direct})
    batch = {"z": TYPES, "batch": OWNERS, "energy": torch.ones(2), "forces": torch.ones(4, 3)}
    accumulator.update(batch)
    scaler = accumulator.compute()
    assert scaler.loss_terms == ["energy", "energy/positions", "direct_forces"]
    with pytest.raises(ValueError, match=r"two targets share the tensor at 'forces' of the batch"):
        scaler.convert(batch, batch)


@pytest.mark.parametrize(
    ("value", "got"),
    {
        "losing its graph": ([torch.ones((), requires_grad=True)], "list of Tensor"),
        "of atoms": ((torch.ones(2, 3), torch.ones(1, 3)), "tuple of Tensor"),
        "words": (["-5 eV"], "list of str"),
        "a dict": ({"value": 1.0}, "dict"),
        "objects": (np.array(["a"]), "ndarray"),
    }.values(),
)
def test_what_is_not_a_tensor_is_named(value, got):
    with pytest.raises(
        TypeError, match=f"'E': expected a tensor, an array or numbers, got a {got};"
    ):
        tensor_of("'E'", value)


def test_a_message_names_what_a_batch_holds():
    pair = ({"z": TYPES, "batch": OWNERS}, {"energy": torch.ones(2)})
    targets = {"energy": PerStructure((1, "energy"))}
    with pytest.raises(TypeError, match=r"a tuple of a dict with batch, z; a dict with energy; "):
        ScaleAccumulator(targets).update(pair)
    # as the message says
    addresses = {"types": (0, "z"), "structure": (0, "batch")}
    accumulator = ScaleAccumulator(targets, batch=addresses)
    accumulator.update(pair)
    assert accumulator.compute().fitted


def test_an_output_without_any_prediction_is_not_taken_for_converted():
    accumulator = ScaleAccumulator({"a": PerStructure(), "b": PerStructure()})
    batch = {"z": TYPES, "batch": OWNERS, "a": torch.ones(2), "b": torch.ones(2)}
    accumulator.update(batch)
    scaler = accumulator.compute()
    message = "prediction of 'a': expected a tensor at 'a', got a Tensor; return it from forward"
    with pytest.raises(ValueError, match=message):
        scaler.convert(batch, torch.ones(2), source="model", target="physical")
    # One of the two will do.
    assert scaler.convert(batch, {"b": torch.ones(2)}, source="model", target="physical")


def atoms_with(**values):
    atoms = ase.Atoms("OH")
    atoms.info.update({name: v for name, v in values.items() if np.ndim(v) == 0})
    atoms.arrays.update({name: v for name, v in values.items() if np.ndim(v)})
    return atoms


def test_integers_of_atoms_are_numbers():
    accumulator = ScaleAccumulator({"energy": PerStructure()})
    accumulator.update([atoms_with(energy=-4), atoms_with(), atoms_with(energy=-4.0)])
    assert accumulator.compute().scales["energy"].block().values.item() == 2.0


def test_a_value_that_two_places_agree_on_may_be_missing():
    atoms = atoms_with(energy=float("nan"))
    atoms.arrays["energy"] = np.array(np.nan)
    accumulator = ScaleAccumulator({"energy": PerStructure()})
    accumulator.update([atoms, atoms_with(energy=2)])
    assert accumulator.compute().scales["energy"].block().values.item() == 1.0


def test_values_of_atoms_may_be_missing_in_whole_batches():
    """Forces of 1 and 2 eV/Å, beside structures without forces, and without anything."""
    accumulator = ScaleAccumulator({"energy": WITH_FORCES})
    accumulator.update([atoms_with()])
    accumulator.update([atoms_with(energy=2.0)])
    accumulator.update([atoms_with(energy=2.0, forces=np.array([[1.0] * 3, [2.0] * 3]))])
    # (1 + 4) / 2 forces squared, times the square of 1 / σ = 1 per atom
    expected = {"energy": 1.0, "energy/positions": 2.5}
    assert accumulator.compute().mean_squares == pytest.approx(expected, rel=1e-14)


def test_a_gradient_that_no_batch_has_is_warned_of():
    accumulator = ScaleAccumulator({"energy": WITH_FORCES})
    accumulator.update([atoms_with(energy=2.0, force=np.ones((2, 3)))])
    with pytest.warns(UserWarning, match=r"gradients have no value at all .* 'positions' of 'ener"):
        accumulator.compute()


def test_a_target_that_no_atoms_have_is_refused_after_the_pass():
    accumulator = ScaleAccumulator({"energy": PerStructure()})
    accumulator.update([atoms_with(enery=2.0)])
    message = "'energy': expected a tensor .* an Atoms with enery, numbers, positions; did you mean"
    with pytest.raises(ValueError, match=message):
        accumulator.compute()
