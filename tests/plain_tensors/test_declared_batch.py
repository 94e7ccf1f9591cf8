"""Plain tensors of declared targets as TensorMaps, and back."""

from dataclasses import make_dataclass

import metatensor.torch as mts
import pytest
import torch
from builders import atom_samples, atom_target, block, cartesian, labels, structure_target
from metatensor.torch import TensorMap

from lightning_scaler import PerAtom, PerStructure
from lightning_scaler.plain_tensors import (
    Declaration,
    DeclaredBatch,
    GradientTensor,
    tensormap_building,
)

COUNTS = [2, 3]


def batch_of(**tensors):
    return {"z": torch.tensor([8, 1, 8, 1, 1]), "n_atoms": torch.tensor(COUNTS), **tensors}


def declared(batch, **targets):
    return DeclaredBatch(batch, Declaration.parse(targets, None))


def numbers(*shape, dtype=torch.float64):
    return torch.arange(1, 1 + torch.Size(shape).numel(), dtype=dtype).reshape(shape) / 8


def spherical(values, degree, samples, name):
    components = [labels("o3_mu", range(-degree, degree + 1))]
    keys = labels(["o3_lambda", "o3_sigma"], [[degree, 1]])
    return TensorMap(keys, [block(values, samples, components, name)])


def structures():
    return labels("system", [0, 1])


# The declaration, the tensor, and the TensorMap built by hand.
KINDS = {
    "scalar": (
        PerStructure(),
        numbers(2),
        structure_target([0.125, 0.25], name="t"),
    ),
    "scalar with a last axis": (
        PerStructure(),
        numbers(2, 1),
        structure_target([0.125, 0.25], name="t"),
    ),
    "properties": (
        PerStructure(properties=3),
        numbers(2, 3),
        structure_target(numbers(2, 3), name="t"),
    ),
    "vector": (
        PerStructure(components="xyz"),
        numbers(2, 3),
        structure_target(numbers(2, 3, 1), name="t", components=cartesian()),
    ),
    "vectors": (
        PerStructure(components="xyz", properties=2),
        numbers(2, 3, 2),
        structure_target(numbers(2, 3, 2), name="t", components=cartesian()),
    ),
    "matrix": (
        PerStructure(components="matrix"),
        numbers(2, 3, 3),
        structure_target(numbers(2, 3, 3, 1), name="t", components=cartesian(2)),
    ),
    "spherical": (
        PerStructure(components={"spherical": 2}),
        numbers(2, 5),
        spherical(numbers(2, 5, 1), 2, structures(), "t"),
    ),
    "spherical scalar": (
        PerStructure(components={"spherical": 0}),
        numbers(2, 1),
        spherical(numbers(2, 1, 1), 0, structures(), "t"),
    ),
    "forces": (
        PerStructure(gradients={"positions": "-f"}),
        numbers(2),
        structure_target(
            [0.125, 0.25],
            name="t",
            gradient={"positions": [f.tolist() for f in (-numbers(5, 3)).split(COUNTS)]},
            gradient_systems=True,
        ),
    ),
    "virial": (
        PerStructure(gradients={"strain": "w"}),
        numbers(2),
        structure_target([0.125, 0.25], name="t", gradient={"strain": numbers(2, 3, 3)}),
    ),
    "energy per atom": (
        PerStructure(per_atom=True),
        numbers(2),
        structure_target([0.25, 0.75], name="t"),
    ),
    "charges": (PerAtom(), numbers(5), atom_target(numbers(5), atom_samples(*COUNTS), "t")),
    "atomic vectors": (
        PerAtom(components="xyz"),
        numbers(5, 3),
        atom_target(numbers(5, 3, 1), atom_samples(*COUNTS), "t", cartesian()),
    ),
    "atomic spherical": (
        PerAtom(components={"spherical": 1}, properties=2),
        numbers(5, 3, 2),
        spherical(numbers(5, 3, 2), 1, atom_samples(*COUNTS), "t"),
    ),
}


@pytest.mark.parametrize(("target", "tensor", "expected"), KINDS.values(), ids=KINDS)
def test_a_tensor_becomes_the_same_tensormap_as_by_hand(target, tensor, expected):
    batch = batch_of(t=tensor, f=numbers(5, 3), w=numbers(2, 3, 3))
    one = declared(batch, t=target)
    found = one.targets()["t"]
    mts.equal_metadata_raise(found, expected)
    mts.equal_raise(found, expected)
    # As the output of a network too, and back in the shape that the user gave.
    mts.equal_raise(one.predictions(batch)["t"], expected)
    twice = one.replace_targets({"t": mts.multiply(found, 2.0)})
    for name in batch:
        changed = name == "t" or (name in "fw" and found.block().gradients_list() != [])
        changed = changed and not (name == "f" and "strain" in found.block().gradients_list())
        changed = changed and not (name == "w" and "positions" in found.block().gradients_list())
        factor = 2 if changed else 1
        assert torch.equal(twice[name], factor * batch[name]), name
        assert twice[name].dtype == batch[name].dtype


OUTPUT = make_dataclass("Output", ["e", "f"])


@pytest.mark.parametrize(
    ("target", "output"),
    [
        (PerStructure(), numbers(2)),
        (PerStructure(), numbers(2, 1)),
        (PerStructure("U0"), {"U0": numbers(2)}),
        (PerStructure("U0"), {"energy": numbers(2)}),
        (PerStructure(("y", 3)), {"energy": numbers(2)}),
        (PerStructure(prediction="e"), {"e": numbers(2), "energy": numbers(5)}),
        (PerStructure(prediction=0), (numbers(2), numbers(5, 3))),
        (PerStructure(prediction=("a", 1)), {"a": torch.stack([numbers(2) * 9, numbers(2)], 1)}),
        (
            PerStructure(gradients={"positions": "-f"}, prediction="e"),
            OUTPUT(numbers(2), numbers(5, 3)),
        ),
    ],
)
def test_predictions_are_found_and_replaced_in_outputs_of_every_form(target, output):
    one = declared(batch_of(), energy=target)
    found = one.predictions(output)["energy"]
    assert found.block().values.tolist() == [[0.125], [0.25]]
    new = one.replace_predictions(output, {"energy": mts.multiply(found, 3.0)})
    assert one.predictions(new)["energy"].block().values.tolist() == [[0.375], [0.75]]
    assert one.predictions(output)["energy"].block().values.tolist() == [[0.125], [0.25]]
    assert type(new) is type(output)


def test_a_gradient_has_the_sign_of_its_target_unless_it_has_its_own():
    output = {"energy": numbers(2), "f": numbers(5, 3), "g": -numbers(5, 3)}
    for prediction, address in ((None, "f"), ("f", "f"), ("+g", "g"), ("-f", "f")):
        gradient = GradientTensor("-f", prediction)
        one = declared(batch_of(), energy=PerStructure(gradients={"positions": gradient}))
        found = one.predictions(output)["energy"].block().gradient("positions")
        assert torch.equal(found.values[..., 0], -numbers(5, 3)), (prediction, address)


def test_energies_and_forces_may_have_different_dtypes():
    batch = batch_of(energy=numbers(2), forces=numbers(5, 3, dtype=torch.float32))
    one = declared(batch, energy=PerStructure(gradients={"positions": "-forces"}))
    energy = one.targets()["energy"]
    assert energy.block().values.dtype == torch.float64
    expected = -batch["forces"].double()
    assert torch.equal(energy.block().gradient("positions").values[..., 0], expected)


def test_values_of_structures_of_equal_size_may_be_a_table():
    batch = {"z": torch.tensor([[8, 1], [7, 6]]), "f": numbers(2, 2, 3), "q": numbers(2, 2)}
    batch["e"] = numbers(2, 1)
    one = declared(batch, e=PerStructure(gradients={"positions": "-f"}), q=PerAtom())
    found = one.targets()
    assert found["q"].block().values[:, 0].tolist() == numbers(4).tolist()
    gradient = found["e"].block().gradient("positions").values[..., 0]
    assert torch.equal(gradient, -numbers(4, 3))
    assert torch.equal(one.replace_targets(found)["f"], batch["f"])


def test_a_single_number_is_the_value_of_a_single_structure():
    batch = {"z": torch.tensor([[8, 1]]), "energy": torch.tensor(-3.0)}
    one = declared(batch, energy=PerStructure())
    assert one.targets()["energy"].block().values.tolist() == [[-3.0]]
    assert one.replace_targets(one.targets())["energy"].shape == ()


def test_a_target_may_be_absent_from_a_batch():
    one = declared(batch_of(q=numbers(5)), energy=PerStructure(), q=PerAtom())
    assert list(one.targets()) == ["q"]


REFUSED = {
    "vector": (
        PerStructure(),
        {"t": numbers(2, 3)},
        r"target 't', at 't': expected the shape \(n_structures=2,\) or \(n_structures=2, 1\), got "
        r"\(2, 3\); declare components='xyz' for a vector, or components={'spherical': 1} for a "
        r"spherical tensor, or properties=3 for 3 properties",
    ),
    "matrix": (PerStructure(), {"t": numbers(2, 3, 3)}, "declare components='matrix'"),
    "collated vectors": (
        PerStructure(components="xyz"),
        {"t": numbers(6)},
        r"expected the shape \(n_structures=2, 3\) or \(n_structures=2, 3, 1\), got \(6,\); .* "
        r"give each the shape \(1, 3\) where samples are made",
    ),
    "per atom": (
        PerStructure(),
        {"t": numbers(5)},
        r"expected the shape \(n_structures=2,\) or \(n_structures=2, 1\), got \(5,\); "
        r"it has a row for each atom: declare PerAtom\(...\), or sum over the atoms of each st",
    ),
    "vectors per atom": (
        PerStructure(components="xyz"),
        {"t": numbers(5, 3)},
        r"got \(5, 3\); it has a row for each atom: declare PerAtom",
    ),
    "per structure": (
        PerAtom(),
        {"t": numbers(2)},
        r"\(n_atoms=5,\) or .* got \(2,\); it has a row for each structure: declare Per",
    ),
    "padding": (PerAtom(), {"t": numbers(2, 3)}, r"got \(2, 3\); leave out the padding: give the"),
    "padded forces": (
        PerStructure(gradients={"positions": "-f"}),
        {"t": numbers(2), "f": numbers(2, 3, 3)},
        r"got \(2, 3, 3\); leave out the padding",
    ),
    "forces of structures": (
        PerStructure(gradients={"positions": "-f"}),
        {"t": numbers(2), "f": numbers(2, 3)},
        r"got \(2, 3\)$",
    ),
    "integers": (
        PerStructure(),
        {"t": torch.tensor([1, 2])},
        r"target 't', at 't': expected a floating-point tensor, got int64; convert it, such as "
        r"with \.float\(\)$",
    ),
    "forces": (
        PerStructure(gradients={"positions": "-f"}),
        {"t": numbers(2), "f": numbers(3, 5)},
        r"target 't', gradient 'positions', at 'f': expected the shape \(n_atoms=5, 3\) or .* got "
        r"\(3, 5\)",
    ),
    "no forces": (
        PerStructure(gradients={"positions": "-force"}),
        {"t": numbers(2), "forces": numbers(5, 3)},
        "target 't', gradient 'positions': expected a tensor at 'force', got a dict with forces, "
        "n_atoms, t, z; did you mean 'forces'.* its address in gradients=.'positions': ….*NaN",
    ),
    "no volume": (
        PerStructure(gradients={"strain": {"tensor": "s", "volume": "V"}}),
        {"t": numbers(2), "s": numbers(2, 3, 3)},
        "gradient 'strain', volume: expected a tensor at 'V'",
    ),
    "volumes of other structures": (
        PerStructure(gradients={"strain": {"tensor": "s", "volume": "V"}}),
        {"t": numbers(2), "s": numbers(2, 3, 3), "V": numbers(5)},
        r"volume, at 'V': expected volumes \(2,\) or cells \(2, 3, 3\), got \(5,\)",
    ),
}


@pytest.mark.parametrize(("target", "tensors", "message"), REFUSED.values(), ids=REFUSED)
def test_tensors_of_another_shape_or_dtype_are_refused(target, tensors, message):
    with pytest.raises((TypeError, ValueError), match=message):
        declared(batch_of(**tensors), t=target).targets()


def test_a_missing_prediction_is_an_error_that_lists_the_output():
    one = declared(batch_of(), energy=PerStructure())
    message = "prediction of 'energy': expected a tensor at 'energy', got a dict with enrgy; did "
    with pytest.raises(ValueError, match=message + r"you mean 'enrgy'\?.*prediction="):
        one.predictions({"enrgy": numbers(2)}, needed=["energy"])
    with pytest.raises(ValueError, match=message):
        one.predictions({"enrgy": numbers(2)})
    assert one.predictions({"enrgy": numbers(2)}, needed=[]) == {}


def test_an_output_that_is_none_is_named_as_such():
    with pytest.raises(ValueError, match="'t': expected a tensor at 't', got None; return it from"):
        declared(batch_of(), t=PerStructure()).predictions(None)


def test_an_output_needs_some_prediction_also_if_the_batch_has_no_targets():
    one = declared(batch_of(), energy=PerStructure(), gap=PerStructure(intensive=True))
    assert one.predictions({"gap": numbers(2)}).keys() == {"gap"}
    # Returned as it is, it would be taken for physical values.
    with pytest.raises(
        ValueError, match=r"prediction of 'energy': .* got a dict with E; return it"
    ):
        one.predictions({"E": numbers(2)})


def test_a_stress_of_a_structure_without_a_volume_is_missing():
    stress = {"strain": {"tensor": "s", "volume": "cell"}}
    cells = torch.stack([2.0 * torch.eye(3), torch.zeros(3, 3)]).double()
    batch = declared(
        batch_of(t=numbers(2), s=torch.ones(2, 3, 3).double(), cell=cells),
        t=PerStructure(gradients=stress),
    )
    target = batch.targets()["t"].block().gradient("strain").values
    assert target[0].unique().tolist() == [8.0]
    assert target[1].isnan().all()
    # NaN in a prediction would make all gradients of the loss NaN.
    output = {"t": numbers(2), "s": torch.ones(2, 3, 3).double()}
    prediction = batch.predictions(output)["t"].block().gradient("strain").values
    assert prediction[1].unique().tolist() == [0.0]


def test_the_volume_of_a_left_handed_cell_is_positive():
    cells = torch.tensor([[[0.0, 3, 0], [2, 0, 0], [0, 0, 1]], [[1, 0, 0], [0, 1, 0], [0, 0, 1]]])
    batch = declared(
        batch_of(t=numbers(2), s=torch.ones(2, 3, 3).double(), cell=cells.double()),
        t=PerStructure(gradients={"strain": {"tensor": "s", "volume": "cell"}}),
    )
    strain = batch.targets()["t"].block().gradient("strain").values
    assert strain.flatten(1).tolist() == [[6.0] * 9, [1.0] * 9]


def test_an_output_that_was_written_to_is_searched_again():
    batch = declared(batch_of(), t=PerStructure())
    output = {"t": numbers(2)}
    batch.predictions(output)
    output["t"] = -numbers(2)
    assert batch.predictions(output)["t"].block().values.flatten().tolist() == [-0.125, -0.25]
    doubled = structure_target([1.0, 2.0], name="t")
    assert batch.replace_predictions(output, {"t": doubled})["t"].tolist() == [1.0, 2.0]


def test_predictions_keep_the_graph_of_autograd():
    weight = torch.tensor(2.0, requires_grad=True, dtype=torch.float64)
    one = declared(batch_of(), energy=PerStructure(gradients={"positions": "-f"}))
    found = one.predictions({"energy": weight * numbers(2), "f": weight * numbers(5, 3)})
    energy = found["energy"].block()
    (energy.values.sum() + energy.gradient("positions").values.sum()).backward()
    assert weight.grad.item() == float(numbers(2).sum() - numbers(5, 3).sum())


def test_each_tensor_of_a_target_keeps_its_dtype():
    target = PerStructure(gradients={"positions": "-forces"})
    batch = batch_of(energy=numbers(2), forces=numbers(5, 3, dtype=torch.float32))
    one = declared(batch, energy=target)
    replaced = one.replace_targets(one.targets())
    assert (replaced["energy"].dtype, replaced["forces"].dtype) == (torch.float64, torch.float32)
    # A total with a baseline enters the units of the data in float64, and so do its gradients.
    batch["energy"] = batch["energy"].float()
    one = declared(batch, energy=target)
    replaced = one.replace_targets({"energy": one.targets()["energy"].to(dtype=torch.float64)})
    assert (replaced["energy"].dtype, replaced["forces"].dtype) == (torch.float64, torch.float64)


def test_labels_are_not_kept_of_ever_other_sets_of_targets(monkeypatch):
    monkeypatch.setattr(tensormap_building, "MOST_SETS", 2)
    targets = {name: PerStructure() for name in "abcd"}
    for name in targets:
        found = declared(batch_of(**{name: torch.ones(2)}), **targets).targets()
        assert found[name].block().properties.names == [name]
    assert len(tensormap_building._BLOCKS) <= 2
