"""The default loss."""

import numpy as np
import pytest
import torch
from builders import atom_samples, atom_target, block, labels, single, spherical, structure_target
from metatensor.torch import TensorBlock, TensorMap
from small_training import (
    SmallData,
    SmallNet,
    mean_squared_error,
    quiet_trainer,
    scaler_callback,
)

from lightning_scaler.scaling import LossPredictions
from lightning_scaler.steps import mixin
from lightning_scaler.steps.loss import zero_loss
from lightning_scaler.tensors import TargetLayout

NAN, INF = float("nan"), float("inf")


def loss_of(predictions, targets):
    return mean_squared_error(predictions, targets).item()


def test_targets_count_equally_whatever_their_sizes():
    predictions = {
        "e": structure_target([1.0, 2.0]),
        "q": atom_target([1.0, 1.0, 4.0], atom_samples(1, 2)),
    }
    targets = {"e": structure_target([0.0, 5.0]), "q": atom_target([0.0, 1, 2], atom_samples(1, 2))}
    # (1 + 9) / 2 = 5 and (1 + 0 + 4) / 3.
    assert loss_of(predictions, targets) == pytest.approx((5 + 5 / 3) / 2, rel=1e-14)


def test_gradients_are_separate_terms():
    gradient = {"strain": np.full((1, 3, 3), 2.0), "positions": [[[1, 0, 0], [0, 0, 0]]]}
    zero = {"strain": np.zeros((1, 3, 3)), "positions": [[[0, 0, 0], [0, 0, 0]]]}
    predictions = {"e": structure_target([3.0], gradient=gradient)}
    targets = {"e": structure_target([0.0], gradient=zero)}
    # 9, 4 and 1 / 6.
    assert loss_of(predictions, targets) == pytest.approx((9 + 4 + 1 / 6) / 3, rel=1e-14)
    # Gradients that the target does not have do not count.
    assert loss_of(predictions, {"e": structure_target([0.0])}) == pytest.approx(9)


def test_all_blocks_of_a_target_are_one_term():
    rows = labels("system", [0])
    prediction = spherical({0: [[[2.0]]], 1: [[[1.0], [1.0], [0.0]]]}, rows)
    target = spherical({0: [[[0.0]]], 1: np.zeros((1, 3, 1))}, rows)
    assert loss_of({"t": prediction}, {"t": target}) == pytest.approx((4 + 1 + 1) / 4)


def test_gradients_of_all_blocks_of_a_target_are_one_term():
    def target(value, *strains):
        values = spherical({0: [[[value]]], 1: np.zeros((1, 3, 1))}, labels("system", [0]))
        blocks = [of_block.copy() for of_block in values.blocks()]
        axes = [labels("xyz_1", [0, 1, 2]), labels("xyz_2", [0, 1, 2])]
        for of_block, strain in zip(blocks, strains, strict=True):
            shape = (1, 3, 3, *of_block.values.shape[1:])
            strain_block = TensorBlock(
                torch.full(shape, strain).double(),
                labels("sample", [0]),
                [*axes, *of_block.components],
                of_block.properties,
            )
            of_block.add_gradient("strain", strain_block)
        return {"t": TensorMap(values.keys, blocks)}

    # 4 over four values; 9 · 4 and 27 · 1 over 36 gradients.
    expected = (4 / 4 + (9 * 4 + 27 * 1) / 36) / 2
    found = loss_of(target(2.0, 2.0, 1.0), target(0.0, 0.0, 0.0))
    assert found == pytest.approx(expected, rel=1e-14)


def test_missing_values_count_neither_in_the_sum_nor_in_the_number_of_values():
    predictions = {"e": structure_target([[1.0, 7.0], [2.0, 9.0]])}
    targets = {"e": structure_target([[0.0, NAN], [5.0, NAN]])}
    assert loss_of(predictions, targets) == pytest.approx(5)


def test_terms_without_values_do_not_count():
    predictions = {"e": structure_target([3.0]), "g": structure_target([100.0])}
    targets = {"e": structure_target([0.0]), "g": structure_target([NAN])}
    assert loss_of(predictions, targets) == pytest.approx(9)
    empty = {"e": structure_target(np.zeros((0, 1)), [])}
    assert loss_of(predictions | empty, targets | empty) == 0


def test_the_loss_is_zero_if_all_values_are_missing():
    predictions = {"e": structure_target(torch.tensor([[3.0]], requires_grad=True))}
    loss = mean_squared_error(predictions, {"e": structure_target([NAN])})
    assert loss.item() == 0
    loss.backward()


@pytest.mark.parametrize("missing", [1.0, NAN, INF])
def test_missing_values_have_no_gradient(missing):
    values = torch.tensor([[1.0], [missing], [3.0]], dtype=torch.float64, requires_grad=True)
    targets = {"e": structure_target([0.0, NAN, 5.0])}
    loss = mean_squared_error({"e": structure_target(values)}, targets)
    assert loss.item() == pytest.approx((1 + 4) / 2)
    loss.backward()
    # d/dx of x² / 2 at 1, and of (x - 5)² / 2 at 3.
    assert values.grad.flatten().tolist() == [1, 0, -2]


def test_missing_values_of_target_gradients_do_not_count():
    tensor = torch.tensor([2.0], dtype=torch.float64, requires_grad=True)
    strain = (tensor * torch.ones(9).double()).reshape(1, 3, 3, 1)
    given, like = structure_target([0.0]), np.zeros((1, 3, 3))
    like[0, 1, 2] = NAN
    target = structure_target([NAN], gradient={"strain": like})
    prediction = block(given.block().values, labels("system", [0]), property_name="energy")
    rows = target.block().gradient("strain")
    prediction.add_gradient("strain", block(strain, rows.samples, rows.components, "energy"))
    loss = mean_squared_error({"e": single(prediction)}, {"e": target})
    assert loss.item() == pytest.approx(4)
    loss.backward()
    assert tensor.grad.item() == pytest.approx(4)


def test_infinite_and_nan_predictions_are_not_hidden():
    assert loss_of({"e": structure_target([INF])}, {"e": structure_target([0.0])}) == INF
    assert np.isnan(loss_of({"e": structure_target([NAN])}, {"e": structure_target([0.0])}))


def test_targets_without_a_prediction_are_ignored():
    targets = {"e": structure_target([0.0]), "other": structure_target([5.0])}
    assert loss_of({"e": structure_target([3.0])}, targets) == pytest.approx(9)


def test_the_loss_of_no_predictions_is_zero():
    """As in a batch without targets, in multi-task data."""
    assert mean_squared_error({}, {"e": structure_target([0.0])}).item() == 0.0


def test_the_loss_has_the_dtype_of_the_predictions():
    single_precision = {"e": structure_target([3.0], dtype=torch.float32)}
    loss = mean_squared_error(single_precision, {"e": structure_target([1.0], dtype=torch.float32)})
    assert loss.dtype == torch.float32
    assert loss.item() == 4


def two_terms():
    """Errors of 9 (energy), and of 1 and 4 over six forces."""
    predicted = {"positions": [[[1, 0, 0], [0, 2, 0]]]}
    zero = {"positions": [[[0, 0, 0], [0, 0, 0]]]}
    predictions = {"e": structure_target([3.0], gradient=predicted)}
    return predictions, {"e": structure_target([0.0], gradient=zero)}


def test_each_term_is_divided_by_its_mean_square():
    mean_squares = {"e": 2.0, "e/positions": 5.0, "other": 7.0}
    loss = mean_squared_error(*two_terms(), mean_squares)
    assert loss.item() == pytest.approx((9 / 2 + 5 / 6 / 5) / 2, rel=1e-14)


@pytest.mark.parametrize("unknown", [{"e": 2.0}, {"e": 2.0, "e/positions": 0.0}])
def test_a_mean_square_that_is_unknown_or_zero_counts_as_one(unknown):
    loss = mean_squared_error(*two_terms(), unknown)
    assert loss.item() == pytest.approx((9 / 2 + 5 / 6) / 2, rel=1e-14)


def test_weights_are_shares_of_the_loss():
    loss = mean_squared_error(*two_terms(), {"e/positions": 5.0}, {"e/positions": 4.0})
    assert loss.item() == pytest.approx((9 + 4 * (5 / 6 / 5)) / 5, rel=1e-14)
    alone = mean_squared_error(*two_terms(), weights={"e": 0.0})
    assert alone.item() == pytest.approx(5 / 6, rel=1e-14)
    nothing = mean_squared_error(*two_terms(), weights={"e": 0.0, "e/positions": 0.0})
    assert nothing.item() == 0.0


def test_weights_of_terms_without_values_do_not_count():
    predictions, targets = two_terms()
    targets["g"], predictions["g"] = structure_target([NAN]), structure_target([100.0])
    loss = mean_squared_error(predictions, targets, weights={"g": 7.0, "e": 3.0})
    assert loss.item() == pytest.approx((3 * 9 + 5 / 6) / 4, rel=1e-14)


def test_the_gradient_of_the_loss_is_that_of_finite_differences():
    targets = {
        "e": structure_target([1.0, NAN], gradient={"strain": np.full((2, 3, 3), 0.5)}),
        "q": atom_target([0.3, NAN, -0.2], atom_samples(1, 2)),
    }

    def loss(energies, strain, charges):
        energy = block(energies[:, None], labels("system", [0, 1]), property_name="energy")
        rows = targets["e"].block().gradient("strain")
        of_strain = strain.reshape(2, 3, 3, 1)
        energy.add_gradient("strain", block(of_strain, rows.samples, rows.components, "energy"))
        predictions = {"e": single(energy), "q": atom_target(charges, atom_samples(1, 2))}
        mean_squares, weights = {"e/strain": 30.0, "q": 0.5}, {"e/strain": 4.0, "q": 0.1}
        return mean_squared_error(predictions, targets, mean_squares, weights)

    generator = torch.Generator().manual_seed(0)
    shapes = [(2,), (18,), (3,)]
    inputs = [
        torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
        for shape in shapes
    ]
    torch.autograd.gradcheck(loss, inputs)


def test_the_zero_loss_has_a_gradient_of_zero():
    """Even for infinite predictions; anything but a TensorMap is ignored."""
    weight = torch.tensor([1.0, INF], requires_grad=True)
    values = torch.tensor([[1.0], [2.0]]) * weight[:, None]
    unused = structure_target(values, dtype=torch.float32)
    loss = zero_loss({"e": unused, "features": weight})
    assert loss.item() == 0.0
    loss.backward()
    assert torch.equal(weight.grad, torch.zeros(2))
    assert zero_loss({}).item() == 0.0


def test_the_zero_loss_depends_on_gradients_of_blocks():
    """A head may contribute to a gradient only."""
    weight = torch.tensor([1.0, INF], dtype=torch.float64, requires_grad=True)
    strain = (weight.sum() * torch.ones(9).double()).reshape(1, 3, 3, 1)
    energy = structure_target([0.0], gradient={"strain": np.zeros((1, 3, 3))})
    values = energy.block()
    predicted = block(values.values, values.samples, property_name="energy")
    rows = values.gradient("strain")
    predicted.add_gradient("strain", block(strain, rows.samples, rows.components, "energy"))
    predictions = {"e": single(predicted)}
    loss = zero_loss(predictions, {"e": TargetLayout.of("e", energy)})
    assert loss.item() == 0.0
    loss.backward()
    assert torch.equal(weight.grad, torch.zeros(2).double())
    # Data without this gradient: to differentiate it would only cost time.
    without = {"e": TargetLayout.of("e", structure_target([0.0]))}
    assert not zero_loss(predictions, without).requires_grad


class FewerTargets(SmallNet):
    """A batch may have fewer targets than the network predicts."""

    def unpack_batch(self, batch):
        systems, targets, masks = super().unpack_batch(batch)
        return systems, {n: t for n, t in targets.items() if n != "charges"}, masks


class FewerPredictions(SmallNet):
    """The loss may be without a prediction."""

    def predictions_to_loss(self, systems, predictions, targets):
        found = super().predictions_to_loss(systems, predictions, targets)
        del found["dipole"]
        return found


class SomeOutputs(SmallNet):
    """Some of the outputs may be left out before they are converted."""

    def unpack_batch(self, batch):
        systems, targets, masks = super().unpack_batch(batch)
        return systems, {n: t for n, t in targets.items() if n != "charges"}, masks

    def predictions_to_loss(self, systems, predictions, targets):
        some = {name: predictions[name] for name in targets}
        return super().predictions_to_loss(systems, some, targets)


class LossOfTheModule(SmallNet):
    """The loss may be replaced in one module, not in its class."""

    def __init__(self):
        super().__init__()
        default = self.compute_loss

        def without_charges(predictions, targets):
            return default({n: p for n, p in predictions.items() if n != "charges"}, targets)

        self.compute_loss = without_charges


class OwnLoss(SmallNet):
    def compute_loss(self, predictions, targets):
        return super().compute_loss(predictions, targets)


@pytest.mark.parametrize(
    ("net", "added"),
    [
        (SmallNet, False),
        (FewerTargets, True),
        (FewerPredictions, True),
        (SomeOutputs, True),
        (OwnLoss, True),
        (LossOfTheModule, True),
    ],
)
def test_a_loss_of_zero_is_added_unless_all_predictions_are_in_the_default_loss(
    tmp_path, monkeypatch, net, added
):
    seen = []
    monkeypatch.setattr(mixin, "zero_loss", lambda *args: seen.append(args) or zero_loss(*args))
    trainer = quiet_trainer(tmp_path, callbacks=[scaler_callback()])
    trainer.fit(net(), SmallData())
    assert bool(seen) == added


def test_predictions_are_complete_until_one_is_replaced():
    one = {"e": structure_target([1.0])}
    predictions = LossPredictions(one, complete=True)
    assert predictions.complete
    assert not LossPredictions(one, complete=False).complete
    predictions["e"] = structure_target([1.0])
    assert not predictions.complete
