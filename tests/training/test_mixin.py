"""The steps, helpers and refusals of TargetScalingMixin, in runs of a real Trainer."""

import math

import pytest
import torch
from builders import system
from lightning.pytorch import LightningModule
from metatensor.torch import TensorBlock, TensorMap
from small_training import (
    PlainNet,
    SmallData,
    SmallDataset,
    SmallNet,
    collate,
    quiet_trainer,
    scaler_callback,
)
from torchmetrics import MeanAbsoluteError, MetricCollection
from torchmetrics.wrappers import LambdaInputTransformer

from lightning_scaler import Scaler, TargetScalingMixin


@pytest.fixture
def fitted(tmp_path):
    data, net = SmallData(), SmallNet()
    trainer = quiet_trainer(tmp_path, callbacks=[scaler_callback()])
    trainer.fit(net, data)
    return trainer, data, net


def test_the_wrong_order_of_bases_is_refused():
    with pytest.raises(
        TypeError, match=r"write class Wrong\(TargetScalingMixin, LightningModule\)"
    ):

        class Wrong(LightningModule, TargetScalingMixin):
            pass


def test_metrics_are_those_of_predictions_against_the_data(fitted):
    """RMSE and MAE in the units of the data, computed from the predictions by a plain loop."""
    trainer, data, net = fitted
    logged = trainer.validate(net, data, verbose=False)[0]
    squares, absolutes, count = [], [], 0
    gradient_squares, charges = [], []
    for predictions, start in zip(trainer.predict(net, data), range(0, 9, 4), strict=True):
        items = data.held_out.items[start : start + 4]
        predicted = predictions["energy"].block().values[:, 0].tolist()
        for (molecule, numbers), energy in zip(items, predicted, strict=True):
            error = (energy - numbers["energy"].item()) / len(molecule)
            squares.append(error**2)
            absolutes.append(abs(error))
            count += 1
        truth = torch.cat([numbers["gradient"] for _, numbers in items])
        gradient = predictions["energy"].block().gradient("positions").values[..., 0]
        gradient_squares += ((gradient - truth) ** 2).reshape(-1).tolist()
        truth = torch.cat([numbers["charges"] for _, numbers in items])
        charges += (predictions["charges"].block().values[:, 0] - truth).abs().tolist()
    assert count == 9
    # Predictions pass through float32 once, in model space.
    assert logged["val/energy/rmse_per_atom"] == pytest.approx(
        math.sqrt(math.fsum(squares) / count), rel=1e-5
    )
    assert logged["val/energy/mae_per_atom"] == pytest.approx(
        math.fsum(absolutes) / count, rel=1e-5
    )
    assert logged["val/energy/positions/rmse"] == pytest.approx(
        math.sqrt(math.fsum(gradient_squares) / len(gradient_squares)), rel=1e-5
    )
    assert logged["val/charges/mae"] == pytest.approx(math.fsum(charges) / len(charges), rel=1e-5)


def test_the_loss_is_the_mean_over_terms_in_loss_space(fitted):
    """The loss of one batch by a plain loop from the raw network, data, scales and weights."""
    _, data, net = fitted
    items = data.held_out.items[:3]
    batch = net.transfer_batch_to_device(collate(items), torch.device("cpu"), 0)
    systems, targets, _ = net.unpack_batch(batch)
    targets = net.targets_to_loss(systems, targets)
    raw = net(systems)
    predictions = net.predictions_to_loss(systems, raw, targets)
    loss = net.compute_loss(predictions, targets).item()

    energy = net.scaler.targets["energy"]
    types = energy.baseline_types.tolist()
    weights = dict(zip(types, energy.weights[(0,)][:, 0].tolist(), strict=True))
    sigma = energy.per_target[0].item()
    terms = []
    for row, (molecule, numbers) in enumerate(items):
        baseline = sum(weights[z] for z in molecule.types.tolist())
        target = (numbers["energy"].item() - baseline) / sigma / len(molecule)
        predicted = raw["energy"].block().values[row].item() / len(molecule)
        terms.append((predicted - target) ** 2)
    terms = [math.fsum(terms) / len(terms)]
    truth = torch.cat([numbers["gradient"] for _, numbers in items]).reshape(-1) / sigma
    gradient = raw["energy"].block().gradient("positions").values.reshape(-1).double()
    terms.append(((gradient - truth) ** 2).mean().item())
    sigma = net.scaler.targets["dipole"].per_target[0].item()
    truth = torch.cat([numbers["dipole"] for _, numbers in items]).reshape(-1) / sigma
    dipole = raw["dipole"].block().values.reshape(-1).double()
    terms.append(((dipole - truth) ** 2).mean().item())
    # polarizability: two blocks with a scale each, the first with a baseline
    scales = net.scaler.targets["polarizability"]
    sigma, squares = scales.per_target[0].item(), []
    for row, (molecule, numbers) in enumerate(items):
        for key, columns in (((0, 1), slice(0, 1)), ((2, 1), slice(1, 6))):
            truth = numbers["polarizability"][0, columns]
            if key == (0, 1):
                of_type = dict(zip(types, scales.weights[key][:, 0].tolist(), strict=True))
                truth = truth - sum(of_type[z] for z in molecule.types.tolist())
            block = raw["polarizability"].block({"o3_lambda": key[0], "o3_sigma": key[1]})
            relative = scales.per_property[key][0, 0].item()
            predicted = block.values[row, :, 0].double() * relative
            squares += ((predicted - truth / sigma) ** 2).tolist()
    terms.append(math.fsum(squares) / len(squares))
    scales = net.scaler.targets["charges"]
    squares = []
    of_type = {
        z: (w, s)
        for z, w, s in zip(
            scales.types.tolist(),
            scales.weights[(0,)][:, 0].tolist(),
            scales.per_target.tolist(),
            strict=False,
        )
    }
    atoms = [z for molecule, _ in items for z in molecule.types.tolist()]
    truth = torch.cat([numbers["charges"] for _, numbers in items]).tolist()
    predicted = raw["charges"].block().values[:, 0].tolist()
    for z, q, p in zip(atoms, truth, predicted, strict=True):
        squares.append(((q - of_type[z][0]) / of_type[z][1] - p) ** 2)
    terms.append(math.fsum(squares) / len(squares))
    assert loss == pytest.approx(math.fsum(terms) / 5, rel=1e-5)


def test_predictions_are_physical_and_float64_where_a_baseline_is_added(fitted):
    trainer, data, net = fitted
    predictions = trainer.predict(net, data)[0]
    assert predictions["energy"].block().values.dtype == torch.float64
    assert predictions["dipole"].block().values.dtype == torch.float32
    # The baseline of about -1000 per unit of k is on again.
    assert predictions["energy"].block().values.max() < -500
    assert not predictions["energy"].block().values.requires_grad
    raw = net([data.held_out[0][0].to(torch.float32)])["dipole"].block().values
    scale = net.scaler.per_target_scales["dipole"].block().values.item()
    assert torch.allclose(predictions["dipole"].block().values[:1], raw * scale)


def test_predicting_needs_no_targets(fitted, tmp_path):
    trainer, data, net = fitted
    systems = [molecule for molecule, _ in data.held_out.items]
    loader = torch.utils.data.DataLoader(systems, batch_size=9, collate_fn=lambda s: {"system": s})
    alone = trainer.predict(net, loader)[0]["energy"].block().values
    together = torch.cat([p["energy"].block().values for p in trainer.predict(net, data)])
    assert torch.allclose(alone, together, rtol=1e-12)


def test_a_training_step_of_ones_own(tmp_path):
    """The six lines of the README give the losses of the mixin's own step."""

    class Own(SmallNet):
        def training_step(self, batch, batch_idx):
            systems, targets, masks = self.unpack_batch(batch)
            targets = self.targets_to_loss(systems, targets, masks)
            predictions = self.predictions_to_loss(systems, self(systems), targets)
            loss = self.compute_loss(predictions, targets)
            self.update_metrics("train", systems, predictions, targets)
            self.losses.append(loss.item())
            return loss

    losses, logged = [], []
    for kind in (SmallNet, Own):
        torch.manual_seed(0)
        net, trainer = kind(), quiet_trainer(tmp_path, callbacks=[scaler_callback()])
        trainer.fit(net, SmallData())
        losses.append(net.losses)
        logged.append(trainer.callback_metrics["train/energy/rmse_per_atom"])
    assert losses[0] == losses[1]
    assert logged[0] == logged[1]


def test_unfitted_evaluation_is_an_error(tmp_path):
    trainer = quiet_trainer(tmp_path)
    for entry in (trainer.validate, trainer.test, trainer.predict):
        with pytest.raises(RuntimeError, match=r"SmallNet has no target scales; train with"):
            entry(SmallNet(), SmallData())


def test_fitting_without_the_callback_is_an_error_before_any_step(tmp_path):
    data = SmallData()
    with pytest.raises(RuntimeError, match=r"Trainer\(callbacks=\[TargetScaler\(\)\]\)"):
        quiet_trainer(tmp_path).fit(SmallNet(), data)
    assert data.held_out.reads == []


def test_a_target_without_prediction_is_an_error(fitted):
    _, data, net = fitted
    systems, targets, _ = net.unpack_batch(collate(data.held_out.items[:2]))
    targets = net.targets_to_loss(systems, targets)
    with pytest.raises(ValueError, match=r"target 'dipole', of which forward gives no prediction"):
        net.predictions_to_loss(systems, {"energy": targets["energy"]}, targets)


def test_a_predicted_target_without_scales_is_an_error(fitted):
    _, data, net = fitted
    systems, targets, _ = net.unpack_batch(collate(data.held_out.items[:2]))
    targets["gap"] = targets["energy"]
    loss_targets = net.targets_to_loss(systems, targets)
    assert loss_targets["gap"] is targets["gap"]
    predictions = {**net(systems), "gap": targets["energy"]}
    with pytest.raises(ValueError, match=r"no scales for it.*TargetScaler\(targets="):
        net.predictions_to_loss(systems, predictions, loss_targets)


def test_tensormaps_and_systems_are_moved_and_systems_cast(fitted):
    _, data, net = fitted
    batch = collate(data.held_out.items[:2])
    moved = net.transfer_batch_to_device(batch, torch.device("meta"), 0)
    assert moved["energy"].device.type == "meta"
    assert moved["energy"].block().values.dtype == torch.float64
    assert moved["energy"].block().gradient("positions").values.device.type == "meta"
    assert moved["system"][1].positions.device.type == "meta"
    assert moved["system"][1].positions.dtype == torch.float32
    assert batch["system"][1].positions.dtype == torch.float64
    # Types and labels were read before the move: the meta device could not be asked.
    in_loss = net.targets_to_loss(*net.unpack_batch(moved))
    assert in_loss["charges"].block().values.dtype == torch.float32
    assert in_loss["charges"].device.type == "meta"


def test_a_batch_made_in_inference_mode_can_be_differentiated(fitted):
    _, data, net = fitted
    with torch.inference_mode():
        molecule, numbers = data.held_out.items[0]
        batch = collate([(system(*molecule.types.tolist()), numbers)])
        assert batch["energy"].block().values.is_inference()
        moved = net.transfer_batch_to_device(batch, torch.device("cpu"), 0)
    assert not moved["energy"].block().values.is_inference()
    assert not moved["system"][0].types.is_inference()
    net(moved["system"])["energy"].block().values.sum().backward()
    assert net.weights.grad is not None


@pytest.mark.parametrize(
    ("precision", "dtype"), [("32-true", torch.float32), ("64-true", torch.float64)]
)
def test_systems_come_in_the_dtype_of_the_module(tmp_path, precision, dtype):
    net = SmallNet()
    quiet_trainer(tmp_path, callbacks=[scaler_callback()], precision=precision).fit(
        net, SmallData()
    )
    assert net.forward_dtypes == {dtype}


def test_bf16_true_keeps_scales_in_float64_and_systems_in_float32(tmp_path):
    net, reference = SmallNet(), SmallNet()
    quiet_trainer(tmp_path, callbacks=[scaler_callback()]).fit(reference, SmallData())
    quiet_trainer(tmp_path, callbacks=[scaler_callback()], precision="bf16-true").fit(
        net, SmallData()
    )
    assert net.weights.dtype == torch.bfloat16
    assert net.forward_dtypes == {torch.float32}
    for name, scales in reference.scaler.scales.items():
        ours = net.half().scaler.scales[name]
        for first, second in zip(scales.blocks(), ours.blocks(), strict=True):
            assert second.values.dtype == torch.float64
            assert torch.equal(first.values, second.values)


def test_masks_and_missing_values_leave_the_loss_alone(fitted):
    """A masked entry and a NaN change nothing, whatever stands there, and give no NaN gradient."""
    _, data, net = fitted
    batch = collate(data.held_out.items[:3])
    charges = batch["charges"]
    keep = torch.ones_like(charges.block().values, dtype=torch.bool)
    keep[1] = False
    mask = with_values(charges, keep)
    nonsense, nan = charges.block().values.clone(), charges.block().values.clone()
    nonsense[1], nan[1] = 1e6, torch.nan
    losses = []
    for values, masks in ((nonsense, {"charges_mask": mask}), (nan, {})):
        changed = {**batch, "charges": with_values(charges, values), **masks}
        changed = net.transfer_batch_to_device(changed, torch.device("cpu"), 0)
        net.zero_grad()
        systems, targets, masks = net.unpack_batch(changed)
        targets = net.targets_to_loss(systems, targets, masks)
        loss = net.compute_loss(net.predictions_to_loss(systems, net(systems), targets), targets)
        loss.backward()
        assert bool(torch.isfinite(net.weights.grad).all())
        losses.append(loss.item())
    assert math.isfinite(losses[0])
    assert losses[0] == losses[1]


def test_metrics_of_ones_own_and_per_block(tmp_path):
    class Own(SmallNet):
        metrics_per_block = ("polarizability",)

        def configure_metrics(self):
            return MetricCollection({"mae": MeanAbsoluteError()})

    trainer = quiet_trainer(tmp_path, callbacks=[scaler_callback()])
    trainer.fit(Own(), SmallData())
    names = {name for name in trainer.callback_metrics if name.startswith("val/")}
    assert names == {
        "val/loss",
        "val/energy/mae_per_atom",
        "val/energy/positions/mae",
        "val/dipole/mae",
        "val/polarizability/mae",
        "val/polarizability/o3_lambda_0/mae",
        "val/polarizability/o3_lambda_2/mae",
        "val/charges/mae",
    }


def test_metrics_given_once_are_copied_for_every_target(tmp_path):
    class Own(SmallNet):
        def __init__(self):
            super().__init__()
            self.shared = MetricCollection({"mae": MeanAbsoluteError()})

        def configure_metrics(self):
            return self.shared

    torch.manual_seed(0)
    trainer = quiet_trainer(tmp_path, callbacks=[scaler_callback()])
    trainer.fit(Own(), SmallData())
    torch.manual_seed(0)
    reference = quiet_trainer(tmp_path, callbacks=[scaler_callback()])
    reference.fit(SmallNet(), SmallData())
    for name, value in trainer.callback_metrics.items():
        assert value == reference.callback_metrics[name], name


def test_wrappers_of_torchmetrics_are_logged_too(tmp_path):
    class Own(SmallNet):
        def configure_metrics(self):
            in_milli = LambdaInputTransformer(
                MeanAbsoluteError(), lambda x: 1000 * x, lambda x: 1000 * x
            )
            return MetricCollection({"mae": MeanAbsoluteError(), "milli": in_milli})

    trainer = quiet_trainer(tmp_path, callbacks=[scaler_callback()])
    trainer.fit(Own(), SmallData())
    found = {name: float(value) for name, value in trainer.callback_metrics.items()}
    for name in ("train/dipole", "val/dipole", "val/charges"):
        assert found[f"{name}/milli"] == pytest.approx(1000 * found[f"{name}/mae"], rel=1e-6)


def test_common_private_names_are_the_users(tmp_path):
    class Own(SmallNet):
        def _step(self, batch):
            raise AssertionError

        _metrics = _convert = _parts = _log_metrics = None

    net = Own()
    quiet_trainer(tmp_path, callbacks=[scaler_callback()]).fit(net, SmallData())
    assert len(net.losses) == 6


def test_evaluating_again_gives_the_same_errors(fitted, tmp_path):
    """Lightning resets the metrics in inference mode; the next run writes to them outside of it."""
    trainer, data, net = fitted
    first = trainer.validate(net, data, verbose=False)[0]
    for other in (trainer, quiet_trainer(tmp_path), quiet_trainer(tmp_path, inference_mode=False)):
        assert other.validate(net, data, verbose=False)[0] == first
        other.test(net, data, verbose=False)
    quiet_trainer(tmp_path, callbacks=[scaler_callback()]).fit(net, data)


def test_a_batch_without_targets_changes_nothing(tmp_path):
    """Unlabelled structures in multi-task data."""

    def without(items):
        batch = collate(items)
        if len(items) == 2:  # the last batch of an epoch
            return {"system": batch["system"]}
        return batch

    net = SmallNet()
    trainer = quiet_trainer(tmp_path, callbacks=[scaler_callback()], max_epochs=2)
    trainer.fit(net, SmallData(collate_fn=without))
    assert len(net.losses) == 12
    assert net.losses.count(0.0) == 2
    assert bool(torch.isfinite(net.weights).all())


def test_several_loaders_have_metrics_of_their_own(fitted, tmp_path):
    trainer, data, net = fitted
    other = SmallDataset(3, seed=5)
    loaders = [
        data.val_dataloader(),
        torch.utils.data.DataLoader(other, batch_size=3, collate_fn=collate),
    ]
    both = trainer.test(net, loaders, verbose=False)
    alone = [trainer.test(net, loader, verbose=False)[0] for loader in loaders]
    for index in range(2):
        name = "test/charges/rmse"
        assert both[index][f"{name}/dataloader_idx_{index}"] == pytest.approx(
            alone[index][name], rel=1e-12
        )
    assert alone[0]["test/charges/rmse"] != alone[1]["test/charges/rmse"]


def test_metrics_start_anew_every_epoch(tmp_path):
    """With a learning rate of zero all epochs have the same errors."""
    values = []

    class Still(SmallNet):
        def on_train_epoch_end(self):
            values.append(self.trainer.callback_metrics["val/energy/rmse_per_atom"].item())

    trainer = quiet_trainer(tmp_path, callbacks=[scaler_callback()], max_epochs=3)
    trainer.fit(Still(lr=0.0), SmallData())
    assert len(values) == 3
    assert values[0] == values[1] == values[2]


def test_a_module_fitted_elsewhere_needs_no_callback(fitted, tmp_path):
    _, _, net = fitted
    net.scaler.save(tmp_path / "scaler.pt")
    fresh = SmallNet()
    fresh.scaler = Scaler.load(tmp_path / "scaler.pt")
    quiet_trainer(tmp_path).fit(fresh, SmallData())
    assert len(fresh.losses) == 6


def test_plain_checkpoints_load_as_unfitted(tmp_path):
    """A checkpoint from before the plugin."""
    trainer = quiet_trainer(tmp_path)
    trainer.strategy.connect(PlainNet())
    trainer.save_checkpoint(tmp_path / "old.ckpt")
    net = SmallNet.load_from_checkpoint(tmp_path / "old.ckpt", weights_only=True)
    assert not net.scaler.fitted
    data = SmallData()
    quiet_trainer(tmp_path, callbacks=[scaler_callback()]).fit(net, data)
    assert net.scaler.fitted


def with_values(tensor, values):
    of = tensor.block()
    return TensorMap(tensor.keys, [TensorBlock(values, of.samples, of.components, of.properties)])
