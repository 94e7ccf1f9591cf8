"""Targets and predictions brought to loss space together."""

import re

import metatensor.torch
import pytest
import torch
from builders import (
    atom_samples,
    atom_target,
    cartesian,
    fit,
    labels,
    mask_of,
    pair_target,
    spherical,
    structure_target,
    system,
    with_nested_gradient,
)
from metatensor.torch import Labels, TensorMap
from small_training import mean_squared_error
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_scaler import PerAtom, PerStructure, ScaleAccumulator
from lightning_scaler.batches import move_to_device
from lightning_scaler.plain_tensors import Declaration, DeclaredBatch
from lightning_scaler.scaling import (
    predictions_to_loss,
    predictions_to_physical,
    targets_to_loss,
    values_in_physical_units,
)

SYSTEMS = [system(8), system(1, 1, 8)]


@pytest.fixture
def scaler():
    """Energies per atom 3 and 4: RMS sqrt(25/2). Charges: H 1 and 7, RMS 5; O 2 and 2, RMS 2."""
    accumulator = ScaleAccumulator()
    accumulator.update(
        SYSTEMS,
        {
            "energy": structure_target([3.0, 12.0]),
            "charges": atom_target([2.0, 1.0, 7.0, 2.0], atom_samples(1, 3)),
        },
    )
    return accumulator.compute()


def test_every_block_is_divided_by_the_numbers_of_atoms_of_its_own_rows():
    """Per atom 2 and 2; and 1, 2, 2 in both structures, whose rows come in reverse."""
    parts = [
        spherical({0: [[[2.0]], [[6.0]]]}, labels("system", [0, 1])),
        spherical({1: [[[3.0], [6.0], [6.0]], [[1.0], [2.0], [2.0]]]}, labels("system", [1, 0])),
    ]
    keys = labels(["o3_lambda", "o3_sigma"], [[0, 1], [1, 1]])
    target = {"t": TensorMap(keys, [part.block().copy() for part in parts])}
    scaler = fit(SYSTEMS, target)
    found = targets_to_loss(scaler, SYSTEMS, target, dtype=torch.float64)["t"].blocks()
    sigma = ((4 + 4 + 9 + 9) / 8) ** 0.5
    assert (sigma * found[0].values.flatten()).tolist() == pytest.approx([2, 2])
    assert (sigma * found[1].values.flatten()).tolist() == pytest.approx([1, 2, 2] * 2)


@pytest.mark.parametrize("name", ["energy", "charges"])
def test_predictions_are_incomplete_once_any_of_them_is_removed(scaler, name):
    targets = {
        "energy": structure_target([3.0, 12.0]),
        "charges": atom_target([2.0, 1.0, 7.0, 2.0], atom_samples(1, 3)),
    }
    predictions = predictions_to_loss(
        scaler, SYSTEMS, targets, targets_to_loss(scaler, SYSTEMS, targets)
    )
    assert predictions.complete
    del predictions[name]
    assert not predictions.complete


def test_targets_are_scaled_averaged_masked_and_cast(scaler):
    charges = atom_target([2.0, 1.0, 7.0, 2.0], atom_samples(1, 3))
    targets = {"energy": structure_target([-6.0, 15.0]), "charges": charges}
    mask = mask_of(charges, [[True, False, True, True]])
    result = targets_to_loss(scaler, SYSTEMS, targets, {"charges": mask})
    energy = result["energy"].block().values
    assert energy.dtype == torch.float32
    sigma = (25 / 2) ** 0.5
    # Per atom: -6 / 1 and 15 / 3.
    torch.testing.assert_close(energy, torch.tensor([[-6.0 / sigma], [5.0 / sigma]]))
    expected = torch.tensor([[1.0], [torch.nan], [7 / 5], [1.0]])
    torch.testing.assert_close(result["charges"].block().values, expected, equal_nan=True)
    assert charges.block().values[1, 0] == 1.0


def test_systems_without_atoms_do_not_make_gradients_of_the_loss_nan(scaler):
    """Their values per atom are missing, so that nothing depends on their predictions."""
    systems = [SYSTEMS[0], system()]
    strain = torch.ones(2, 3, 3).double()
    targets = {"energy": structure_target([3.0, 0.0], gradient={"strain": strain})}
    predicted = structure_target([2.0, 5.0], gradient={"strain": 2.0 * strain})
    values = predicted.block().values.requires_grad_()
    of_strain = predicted.block().gradient("strain").values.requires_grad_()
    in_loss = targets_to_loss(scaler, systems, targets, dtype=torch.float64)
    found = predictions_to_loss(scaler, systems, {"energy": predicted}, in_loss)
    mean_squared_error(found, in_loss).backward()
    # Of O: half of (2 - 3 / s)², and half of the mean of nine (2 - 1 / s)².
    s = 12.5**0.5
    torch.testing.assert_close(values.grad, torch.tensor([[2 - 3 / s], [0]]).double())
    expected = torch.tensor([(2 - 1 / s) / 9, 0.0]).double()
    torch.testing.assert_close(of_strain.grad, expected.reshape(2, 1, 1, 1).expand(2, 3, 3, 1))


def test_strain_gradients_are_averaged_and_forces_are_not(scaler):
    gradients = {
        "positions": [[[1.0, 2.0, 3.0]], [[4.0, 5.0, 6.0]] * 3],
        "strain": [[[6.0] * 3] * 3, [[9.0] * 3] * 3],
    }
    sigma = (25 / 2) ** 0.5
    targets = {"energy": structure_target([-6.0, 15.0], gradient=gradients)}
    targets = targets_to_loss(scaler, SYSTEMS, targets, dtype=torch.float64)
    predictions = {"energy": structure_target([-6.0, 15.0], gradient=gradients)}
    # Model space is loss space here: no scale, the same averages.
    in_loss = predictions_to_loss(scaler, SYSTEMS, predictions, targets)
    for tensors, factor in ((targets, sigma), (in_loss, 1.0)):
        block = tensors["energy"].block()
        forces = block.gradient("positions").values[:, :, 0]
        expected = torch.tensor([[1.0, 2, 3]] + [[4.0, 5, 6]] * 3).double() / factor
        torch.testing.assert_close(forces, expected)
        strain = block.gradient("strain").values[:, 0, 0, 0]
        torch.testing.assert_close(strain, torch.tensor([6.0, 3.0]).double() / factor)


def test_ids_become_positions_and_predictions_follow_the_rows(scaler):
    targets = {"charges": atom_target([7.0, 2.0], [[40, 1], [40, 2]])}
    systems = targets_to_loss(
        scaler,
        SYSTEMS,
        {**targets, "energy": structure_target([3.0, 12.0], systems=[30, 40])},
        dtype=torch.float64,
    )
    assert systems["charges"].block().samples.values.tolist() == [[1, 1], [1, 2]]
    predictions = {
        "charges": atom_target([10.0, 20, 30, 40], atom_samples(1, 3)),
        "energy": structure_target([1.0, 6.0]),
    }
    result = predictions_to_loss(scaler, SYSTEMS, predictions, systems)
    assert result["charges"].block().values.reshape(-1).tolist() == [30.0, 40.0]
    # Model space is loss space for a single property; then per atom.
    assert result["energy"].block().values.reshape(-1).tolist() == [1.0, 2.0]


def test_tensors_without_scales_pass_untouched(scaler):
    other = structure_target([1.0, 2.0])
    assert targets_to_loss(scaler, SYSTEMS, {"other": other})["other"] is other


def test_predictions_that_are_no_mapping(scaler):
    with pytest.raises(TypeError, match=r"expected forward to give a dict .*, got list"):
        predictions_to_loss(scaler, SYSTEMS, [], {})


def test_rows_and_layout_of_targets_are_kept_for_their_predictions(scaler):
    charges, prediction = (atom_target([2.0, 1.0, 7.0, 2.0], atom_samples(1, 3)) for _ in range(2))
    in_loss = targets_to_loss(scaler, SYSTEMS, {"charges": charges})
    known = in_loss.indexed("charges")
    assert known.tensor is in_loss["charges"]
    assert known.rows == []
    assert known.layout is scaler.targets["charges"].layout
    result = predictions_to_loss(scaler, SYSTEMS, {"charges": prediction}, in_loss)
    # Model space is loss space for a single property.
    assert result["charges"].block().values[:, 0].tolist() == [2.0, 1.0, 7.0, 2.0]
    # Other rows are another matter.
    swapped = labels(["system", "atom"], [[1, 0], [1, 1], [1, 2], [0, 0]])
    prediction = atom_target([1.0, 7.0, 2.0, 2.0], swapped)
    result = predictions_to_loss(scaler, SYSTEMS, {"charges": prediction}, in_loss)
    assert result["charges"].block().values[:, 0].tolist() == [2.0, 1.0, 7.0, 2.0]


def test_rows_of_replaced_targets_are_not_kept(scaler):
    """A training step may drop some of the rows, or convert targets of its own."""
    in_loss = targets_to_loss(
        scaler, SYSTEMS, {"charges": atom_target([2.0, 1.0, 7.0, 2.0], atom_samples(1, 3))}
    )
    prediction = atom_target([10.0, 20.0, 30.0, 40.0], atom_samples(1, 3))
    in_loss["charges"] = atom_target([7.0, 2.0], [[1, 1], [1, 2]])
    assert in_loss.indexed("charges") is None
    assert in_loss.indexed("energy") is None
    for targets in (in_loss, dict(in_loss)):
        result = predictions_to_loss(scaler, SYSTEMS, {"charges": prediction}, targets)
        assert result["charges"].block().values[:, 0].tolist() == [30.0, 40.0]


def test_predictions_like_their_targets_that_cannot_be_converted(scaler):
    given = structure_target([-6.0, 15.0])
    targets = targets_to_loss(scaler, SYSTEMS, {"energy": given}, dtype=torch.float64)
    whole = structure_target([1, 2], dtype=torch.int64)
    with pytest.raises(ValueError, match="'energy': expected real floating point values"):
        predictions_to_loss(scaler, SYSTEMS, {"energy": whole}, targets)
    strain = structure_target([-6.0, 15.0], gradient={"strain": torch.ones(2, 3, 3)})
    targets = targets_to_loss(scaler, SYSTEMS, {"energy": strain}, dtype=torch.float64)
    nested = with_nested_gradient([-6.0, 15.0])
    with pytest.raises(NotImplementedError, match="gradients of gradients"):
        predictions_to_loss(scaler, SYSTEMS, {"energy": nested}, targets)


def test_predictions_take_the_dtype_of_their_own_target(scaler):
    charges = atom_target([2.0, 1.0, 7.0, 2.0], atom_samples(1, 3))
    single = atom_target([2.0, 1.0, 7.0, 2.0], atom_samples(1, 3), dtype=torch.float32)
    energy = structure_target([3.0, 12.0])
    for targets in ({"energy": energy, "charges": single}, {"charges": single, "energy": energy}):
        predictions = {"energy": structure_target([1.0, 2.0]), "charges": charges}
        found = predictions_to_loss(scaler, SYSTEMS, predictions, targets)
        dtypes = {name: tensor.block().values.dtype for name, tensor in found.items()}
        assert dtypes == {"energy": torch.float64, "charges": torch.float32}


def test_targets_without_blocks_have_no_dtype():
    """The dtype is that of the first target with blocks, not of the first target."""
    given = {"dipole": structure_target([1.0, 2.0]), "energy": structure_target([3.0, 12.0])}
    scaler = fit(SYSTEMS, given)
    nothing = TensorMap(Labels("_", torch.empty((0, 1), dtype=torch.int64)), [])
    targets = targets_to_loss(scaler, SYSTEMS, {"dipole": nothing, "energy": given["energy"]})
    predictions = {"dipole": nothing, "energy": structure_target([1.0, 2.0])}
    found = predictions_to_loss(scaler, SYSTEMS, predictions, targets)
    assert found["energy"].block().values.dtype == torch.float32
    assert len(found["dipole"].keys) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("predicted", [torch.bfloat16, torch.float32, torch.float64])
def test_pairs_have_the_dtype_of_the_loss_and_are_not_scaled(dtype, predicted):
    rows = [[0, 0, 0, 0, 0, 0]]
    given = {"hopping": pair_target([[3.0, 4.0]], rows), "energy": structure_target([3.0, 12.0])}
    scaler = fit(SYSTEMS, given)
    targets = targets_to_loss(scaler, SYSTEMS, given, dtype=dtype)
    predictions = {
        "hopping": pair_target([[5.0, 6.0]], rows).to(predicted),
        "energy": structure_target([1.0, 2.0], dtype=predicted),
    }
    found = predictions_to_loss(scaler, SYSTEMS, predictions, targets)
    for tensors in (targets, found):
        assert {tensor.block().values.dtype for tensor in tensors.values()} == {dtype}
    assert targets["hopping"].block().values.tolist() == [[3.0, 4.0]]
    assert found["hopping"].block().values.tolist() == [[5.0, 6.0]]


def test_predictions_of_pairs_take_the_dtype_of_a_target_that_has_another():
    """As all predictions do: targets that a user converts may differ in dtype."""
    rows = [[0, 0, 0, 0, 0, 0]]
    given = {"hopping": pair_target([[3.0, 4.0]], rows), "energy": structure_target([3.0, 12.0])}
    scaler = fit(SYSTEMS, given)
    targets = {**given, "energy": given["energy"].to(torch.float32)}
    predictions = {name: tensor.to(torch.float32) for name, tensor in given.items()}
    found = predictions_to_loss(scaler, SYSTEMS, predictions, targets)
    assert found["hopping"].block().values.dtype == torch.float64
    assert found["energy"].block().values.dtype == torch.float32


def test_physical_values_of_blocks_without_data_take_the_scale_of_the_target():
    """The target has one scale; its data are 3 in the scalar block, and the fit has no other."""
    rows = atom_samples(1, 3)
    scaler = fit(SYSTEMS, {"q": spherical({0: torch.full((4, 1, 1), 3.0)}, rows)})
    others = spherical({1: torch.full((4, 3, 1), 2.0), 0: torch.full((4, 1, 1), 5.0)}, rows)
    found = values_in_physical_units(scaler, SYSTEMS, {"q": others}, {"q": others})["q"]
    assert [part.key["o3_lambda"] for part in found] == [1, 0]
    assert [part.target.tolist() for part in found] == [[6.0] * 12, [15.0] * 4]
    assert [part.prediction.tolist() for part in found] == [[6.0] * 12, [15.0] * 4]


def test_rows_and_layout_of_masked_targets_are_kept(scaler):
    """Otherwise their labels would be read from the device again."""
    charges = atom_target([1.0] * 4, atom_samples(1, 3))
    mask = mask_of(charges, [[True, False, True, True]])
    batch = {"system": SYSTEMS, "charges": charges, "charges_mask": mask}
    moved = move_to_device(batch, torch.device("cpu"), torch.float64)
    masks = {"charges": moved["charges_mask"]}
    in_loss = targets_to_loss(scaler, moved["system"], {"charges": moved["charges"]}, masks)
    known = in_loss.indexed("charges")
    assert known.tensor is in_loss["charges"]
    assert known.rows == []
    assert known.layout is scaler.targets["charges"].layout
    missing = in_loss["charges"].block().values.isnan()
    assert missing.flatten().tolist() == [False, True, False, False]


@pytest.mark.parametrize("predicted_with_system", [False, True])
@pytest.mark.parametrize("target_with_system", [False, True])
@pytest.mark.parametrize("fitted_with_system", [False, True])
def test_gradients_with_and_without_system_in_fit_targets_and_predictions(
    fitted_with_system, target_with_system, predicted_with_system
):
    """Ids 5 and 3. The scale is the RMS of 3 / 1 and 12 / 3, sqrt(25/2)."""
    gradient = {"positions": [[[1, 2, 3]], [[4, 5, 6], [7, 8, 9], [1, 1, 1]]]}

    def energy(systems, with_system):
        options = {"gradient": gradient, "gradient_systems": with_system}
        return structure_target([3.0, 12.0], systems, **options)

    accumulator = ScaleAccumulator(system_labels="id")
    accumulator.update(SYSTEMS, {"energy": energy([5, 3], fitted_with_system)})
    accumulator.update(SYSTEMS, {"energy": energy([9, 7], target_with_system)})
    scaler = accumulator.compute()
    data = {"energy": energy([9, 7], target_with_system)}
    targets = targets_to_loss(scaler, SYSTEMS, data, dtype=torch.float64)
    outputs = {"energy": energy([0, 1], predicted_with_system)}
    predictions = predictions_to_loss(scaler, SYSTEMS, outputs, targets)
    expected = torch.tensor([*gradient["positions"][0], *gradient["positions"][1]]).double()
    found = [
        t["energy"].block().gradient("positions").values[..., 0] for t in (targets, predictions)
    ]
    torch.testing.assert_close(found[0], expected / (25 / 2) ** 0.5)
    torch.testing.assert_close(found[1], expected)
    # The difference is that of model and loss space: (1 - σ) in the units of the data.
    (_, forces) = values_in_physical_units(scaler, SYSTEMS, predictions, targets)["energy"]
    torch.testing.assert_close(forces.target, expected.flatten())
    torch.testing.assert_close(forces.prediction, expected.flatten() * (25 / 2) ** 0.5)


def test_predictions_with_other_labels_than_in_the_fit_are_refused_in_one_line(scaler):
    targets = targets_to_loss(scaler, SYSTEMS, {"energy": structure_target([3.0, 12.0])})
    for prediction, words in [
        (
            structure_target([1.0, 2.0], name="property"),
            "prediction of 'energy', block (_=0): expected properties energy=[0], as in the data "
            "of the fit, got properties property=[0]",
        ),
        (
            structure_target([[[1.0]] * 3] * 2, components=cartesian()),
            "prediction of 'energy', block (_=0): expected components none, as in the data of the "
            "fit, got components xyz=[0, 1, 2]",
        ),
    ]:
        for convert in (
            lambda p: predictions_to_loss(scaler, SYSTEMS, p, targets),
            lambda p: predictions_to_physical(scaler, SYSTEMS, p),
            lambda p: scaler.convert(SYSTEMS, p, "model", "physical"),
        ):
            with pytest.raises(ValueError) as caught:  # noqa: PT011
                convert({"energy": prediction})
            assert str(caught.value) == words


def test_per_atom_predictions_of_a_per_structure_target_can_be_summed(scaler):
    """With the line of the message."""
    targets = targets_to_loss(scaler, SYSTEMS, {"energy": structure_target([3.0, 12.0])})
    prediction = atom_target([1.0, 2.0, 3.0, 4.0], atom_samples(1, 3), name="energy")
    words = r"'energy': expected per-structure samples .* got per-atom .*; sum over the atoms, as "
    with pytest.raises(ValueError, match=words) as caught:
        predictions_to_loss(scaler, SYSTEMS, {"energy": prediction}, targets)
    (line,) = re.findall(r"metatensor\.torch\.\w+\(.*?\)", str(caught.value))
    summed = eval(line, {"metatensor": metatensor, "prediction": prediction})
    found = predictions_to_loss(scaler, SYSTEMS, {"energy": summed}, targets)["energy"]
    assert found.block().values.flatten().tolist() == [1, 3]  # 9 over three atoms


def test_auxiliary_maps_are_no_targets_unless_they_are_named():
    name = "mtt::aux::energy_last_layer_features"
    data = {"energy": structure_target([3.0, 12.0]), name: structure_target([1.0, 2.0])}
    accumulator = ScaleAccumulator()
    accumulator.update(SYSTEMS, data)
    scaler = accumulator.compute()
    assert list(scaler.targets) == ["energy"]
    targets = targets_to_loss(scaler, SYSTEMS, data)
    assert targets[name] is data[name]
    assert list(predictions_to_loss(scaler, SYSTEMS, data, targets)) == ["energy"]
    assert predictions_to_physical(scaler, SYSTEMS, data)[name] is data[name]
    named = ScaleAccumulator([name])
    named.update(SYSTEMS, data)
    assert list(named.compute().targets) == [name]


ENERGY_BLOCK = structure_target([1.0, 2.0]).block()


@pytest.mark.parametrize(
    ("predictions", "words"),
    [
        ([ENERGY_BLOCK], "expected forward to give a dict of TensorMaps by target name, got list"),
        (None, "expected forward to give a dict of TensorMaps by target name, got NoneType"),
        (
            {"energy": torch.ones(2, 1)},
            r"prediction of 'energy': .* a TensorMap, got Tensor of shape \(2, 1\), float32",
        ),
        ({"energy": ENERGY_BLOCK}, "'energy': expected .* a TensorMap, got TensorBlock"),
    ],
)
def test_predictions_that_are_no_tensormaps_are_refused(scaler, predictions, words):
    targets = targets_to_loss(scaler, SYSTEMS, {"energy": structure_target([3.0, 12.0])})
    with pytest.raises(TypeError, match=words):
        predictions_to_loss(scaler, SYSTEMS, predictions, targets)
    with pytest.raises(TypeError, match=words):
        predictions_to_physical(scaler, SYSTEMS, predictions)


def test_predictions_of_systems_that_are_not_in_the_batch_are_refused(scaler):
    targets = targets_to_loss(scaler, SYSTEMS, {"energy": structure_target([3.0, 12.0])})
    with_ids = {"energy": structure_target([1.0, 2.0], [100, 101])}
    words = r"prediction of 'energy': the sample \(system=100\) is not .* carry the position in the"
    with pytest.raises(ValueError, match=words):
        predictions_to_loss(scaler, SYSTEMS, with_ids, targets)
    with pytest.raises(ValueError, match=words):
        predictions_to_physical(scaler, SYSTEMS, with_ids)


def test_predictions_on_another_device_than_the_targets_are_refused(scaler):
    targets = targets_to_loss(scaler, SYSTEMS, {"energy": structure_target([3.0, 12.0])})
    moved = {"energy": structure_target([1.0, 2.0]).to(device="meta")}
    with pytest.raises(ValueError, match=r"'energy': expected the device of the target, cpu, got"):
        predictions_to_loss(scaler, SYSTEMS, moved, targets)


def test_predictions_with_one_scale_are_returned_as_they_are(scaler):
    """They are divided by nothing, unless values are per atom or of another dtype."""
    charges = atom_target([2.0, 1.0, 7.0, 2.0], atom_samples(1, 3))
    targets = {"energy": structure_target([3.0, 12.0]), "charges": charges}
    in_loss = targets_to_loss(scaler, SYSTEMS, targets, dtype=torch.float64)
    predicted = {"energy": structure_target([1.0, 6.0]), "charges": charges}
    found = predictions_to_loss(scaler, SYSTEMS, predicted, in_loss)
    assert found["charges"] is charges
    assert found["energy"].block().values.tolist() == [[1.0], [2.0]]
    in_float32 = {name: tensor.to(torch.float32) for name, tensor in predicted.items()}
    found = predictions_to_loss(scaler, SYSTEMS, in_float32, in_loss)
    assert found["charges"].block().values.dtype == torch.float64
    # A type that the fit has not seen has no scale, not one of 1.
    other = [system(8), system(1, 1, 6)]
    with pytest.raises(ValueError, match=r"'charges': no scale for the atomic types \[6\]"):
        scaler.convert(other, {"charges": charges}, source="model", target="loss")


class WithoutComparisons(TorchDispatchMode):
    """Refuses comparisons of labels, for which a GPU is waited for."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func is not torch.ops.aten.equal.default
        return func(*args, **(kwargs or {}))


def declared(n_atoms, **targets):
    """A batch of hydrogen atoms; its targets are 1, 2, …"""
    n_all = sum(n_atoms)
    batch = {"z": torch.ones(n_all).long(), "n_atoms": torch.tensor(n_atoms)}
    batch["energy"] = 1.0 + torch.arange(len(n_atoms)).double()
    batch["charges"] = 1.0 + torch.arange(n_all).double()
    batch["forces"] = torch.ones(n_all, 3).double()
    return DeclaredBatch(batch, Declaration.parse(targets, None))


def test_rows_of_plain_tensors_are_not_compared():
    forces = {"positions": "-forces"}
    batch = declared([2, 1], energy=PerStructure(gradients=forces), charges=PerAtom())
    scaler = fit(batch, batch.targets())
    with WithoutComparisons():
        in_loss = targets_to_loss(scaler, batch, batch.targets())
        outputs = batch.predictions(batch.batch, needed=in_loss)
        predictions = predictions_to_loss(scaler, batch, outputs, in_loss)
    compared = predictions_to_loss(scaler, batch, outputs, dict(in_loss))
    assert predictions.keys() == compared.keys() == {"energy", "charges"}
    for name, prediction in predictions.items():
        assert metatensor.torch.equal(prediction, compared[name])


def test_predictions_without_the_gradients_of_their_plain_targets_are_refused():
    forces = {"positions": {"tensor": "-forces", "prediction": False}}
    batch = declared([2, 1], energy=PerStructure(gradients=forces))
    scaler = fit(batch, batch.targets())
    in_loss = targets_to_loss(scaler, batch, batch.targets())
    with pytest.raises(ValueError, match="expected the gradient 'positions'"):
        predictions_to_loss(scaler, batch, batch.predictions(batch.batch), in_loss)


def test_plain_predictions_of_another_batch_are_refused():
    batch, other = (declared(n, charges=PerAtom()) for n in ([2, 1], [1, 1]))
    scaler = fit(batch, batch.targets())
    in_loss = targets_to_loss(scaler, batch, batch.targets())
    other.targets()
    with pytest.raises(ValueError, match="no prediction for 1 of 3 rows of the target"):
        predictions_to_loss(scaler, other, other.predictions(other.batch), in_loss)
