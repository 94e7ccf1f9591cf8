"""The steps, helpers and errors of TargetScalingMixin in runs of a real Trainer."""

import copy
import logging
import math

import pytest
import torch
from builders import system
from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning_utilities.core import rank_zero
from metatensor.torch import TensorBlock, TensorMap
from small_training import (
    PlainNet,
    SmallData,
    SmallDataset,
    SmallNet,
    assert_same_scales,
    baseline_weights,
    collate,
    per_target_scales,
    quiet_trainer,
    scaler_callback,
)
from torch.utils.data import DataLoader, DistributedSampler, Subset
from torchmetrics import MeanAbsoluteError, MetricCollection
from torchmetrics.wrappers import LambdaInputTransformer

from lightning_scaler import ScaledSteps, Scaler, TargetScalingMixin


@pytest.fixture(scope="module")
def trained_state(tmp_path_factory):
    net, folder = SmallNet(), tmp_path_factory.mktemp("trained")
    quiet_trainer(folder, callbacks=[scaler_callback()]).fit(net, SmallData())
    return net.state_dict()


@pytest.fixture
def fitted(trained_state, tmp_path):
    """A trainer, data, and a network with scales after one epoch."""
    net = SmallNet()
    net.load_state_dict(trained_state)
    return quiet_trainer(tmp_path), SmallData(), net


def with_values(tensor, values):
    block = tensor.block()
    labels = (block.samples, block.components, block.properties)
    return TensorMap(tensor.keys, [TensorBlock(values, *labels)])


def test_the_mixin_after_lightning_module_is_an_error():
    with pytest.raises(
        TypeError, match=r"write class Wrong\(TargetScalingMixin, LightningModule\)"
    ):

        class Wrong(LightningModule, TargetScalingMixin):
            pass


def test_metrics_compare_predictions_and_data_in_physical_units(fitted):
    """RMSE and MAE, computed from the predictions by a plain loop."""
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
    # Predictions are float32 in model space.
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


def test_the_loss_is_the_mean_over_balanced_terms_in_loss_space(fitted):
    """The loss of one batch, by a plain loop over network outputs, data, scales and weights.

    The forces are divided by their mean square over the training data too.
    """
    _, data, net = fitted
    items = data.held_out.items[:3]
    batch = net.transfer_batch_to_device(collate(items), torch.device("cpu"), 0)
    systems, targets, _ = net.unpack_batch(batch)
    targets = net.targets_to_loss(systems, targets)
    raw = net(systems)
    predictions = net.predictions_to_loss(systems, raw, targets)
    loss = net.compute_loss(predictions, targets).item()

    (weights,) = baseline_weights(net.scaler, "energy")
    (sigma,) = per_target_scales(net.scaler, "energy")
    terms = []
    for row, (molecule, numbers) in enumerate(items):
        baseline = sum(weights[z] for z in molecule.types.tolist())
        target = (numbers["energy"].item() - baseline) / sigma / len(molecule)
        predicted = raw["energy"].block().values[row].item() / len(molecule)
        terms.append((predicted - target) ** 2)
    terms = [math.fsum(terms) / len(terms)]
    truth = torch.cat([numbers["gradient"] for _, numbers in items]).reshape(-1) / sigma
    gradient = raw["energy"].block().gradient("positions").values.reshape(-1).double()
    of_data = [numbers["gradient"].reshape(-1) for _, numbers in data.train.items]
    mean_square = (torch.cat(of_data) / sigma).square().mean().item()
    terms.append(((gradient - truth) ** 2).mean().item() / mean_square)
    (sigma,) = per_target_scales(net.scaler, "dipole")
    truth = torch.cat([numbers["dipole"] for _, numbers in items]).reshape(-1) / sigma
    dipole = raw["dipole"].block().values.reshape(-1).double()
    terms.append(((dipole - truth) ** 2).mean().item())
    # The polarizability has two blocks, each with a scale, and the first with a baseline.
    (sigma,), squares = per_target_scales(net.scaler, "polarizability"), []
    (weights,) = baseline_weights(net.scaler, "polarizability")
    per_property = net.scaler.per_property_scales["polarizability"]
    for row, (molecule, numbers) in enumerate(items):
        for key, columns in (((0, 1), slice(0, 1)), ((2, 1), slice(1, 6))):
            truth = numbers["polarizability"][0, columns]
            if key == (0, 1):
                # An intensive target: its baseline is the mean over the atoms.
                truth = truth - sum(weights[z] for z in molecule.types.tolist()) / len(molecule)
            name = {"o3_lambda": key[0], "o3_sigma": key[1]}
            block = raw["polarizability"].block(name)
            relative = per_property.block(name).values.item()
            predicted = block.values[row, :, 0].double() * relative
            squares += ((predicted - truth / sigma) ** 2).tolist()
    terms.append(math.fsum(squares) / len(squares))
    (weights,), squares = baseline_weights(net.scaler, "charges"), []
    sigmas = dict(zip([1, 6, 8], per_target_scales(net.scaler, "charges"), strict=True))
    atoms = [z for molecule, _ in items for z in molecule.types.tolist()]
    truth = torch.cat([numbers["charges"] for _, numbers in items]).tolist()
    predicted = raw["charges"].block().values[:, 0].tolist()
    for z, q, p in zip(atoms, truth, predicted, strict=True):
        squares.append(((q - weights[z]) / sigmas[z] - p) ** 2)
    terms.append(math.fsum(squares) / len(squares))
    assert loss == pytest.approx(math.fsum(terms) / 5, rel=1e-5)


def test_predictions_are_in_physical_units_and_float64_if_a_baseline_is_added(fitted):
    trainer, data, net = fitted
    predictions = trainer.predict(net, data)[0]
    assert predictions["energy"].block().values.dtype == torch.float64
    assert predictions["dipole"].block().values.dtype == torch.float32
    # The baseline of about -1000 per unit of k was added.
    assert predictions["energy"].block().values.max() < -500
    assert not predictions["energy"].block().values.requires_grad
    raw = net([data.held_out[0][0].to(torch.float32)])["dipole"].block().values
    scale = net.scaler.per_target_scales["dipole"].block().values.item()
    assert torch.allclose(predictions["dipole"].block().values[:1], raw * scale)


def test_predict_needs_no_targets(fitted, tmp_path):
    trainer, data, net = fitted
    systems = [molecule for molecule, _ in data.held_out.items]
    loader = DataLoader(systems, batch_size=9, collate_fn=lambda s: {"system": s})
    alone = trainer.predict(net, loader)[0]["energy"].block().values
    together = torch.cat([p["energy"].block().values for p in trainer.predict(net, data)])
    assert torch.allclose(alone, together, rtol=1e-12)


def test_a_custom_training_step_gives_the_losses_of_the_default_one(tmp_path):
    """With the six lines of the README."""

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


def test_evaluation_without_scales_is_an_error(tmp_path):
    trainer = quiet_trainer(tmp_path)
    for entry in (trainer.validate, trainer.test, trainer.predict):
        with pytest.raises(RuntimeError, match=r"SmallNet has no target scales; train with"):
            entry(SmallNet(), SmallData())


def test_training_without_scales_is_an_error_before_the_first_step(tmp_path):
    data = SmallData()
    with pytest.raises(RuntimeError, match=r"Trainer\(callbacks=\[TargetScaler\(\)\]\)"):
        quiet_trainer(tmp_path).fit(SmallNet(), data)
    assert data.held_out.reads == []


def test_a_target_without_a_prediction_is_an_error(fitted):
    _, data, net = fitted
    systems, targets, _ = net.unpack_batch(collate(data.held_out.items[:2]))
    targets = net.targets_to_loss(systems, targets)
    with pytest.raises(ValueError, match=r"target 'dipole', for which forward gives no prediction"):
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
    # Types and labels were read before the move, since tensors on the meta device have no values.
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
def test_systems_are_converted_to_the_dtype_of_the_module(tmp_path, precision, dtype):
    net = SmallNet()
    quiet_trainer(tmp_path, callbacks=[scaler_callback()], precision=precision).fit(
        net, SmallData()
    )
    assert net.forward_dtypes == {dtype}


@pytest.mark.slow
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


def test_masked_values_and_nan_do_not_change_the_loss(fitted):
    """Masked values may be anything, and neither gives a NaN in gradients."""
    _, data, net = fitted
    batch = collate(data.held_out.items[:3])
    charges = batch["charges"]
    present = torch.ones_like(charges.block().values, dtype=torch.bool)
    present[1] = False
    mask = with_values(charges, present)
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


def test_custom_metrics_are_logged_for_blocks_on_request(tmp_path):
    class Own(SmallNet):
        metrics_per_block = ("polarizability",)

        def configure_metrics(self):
            return MetricCollection({"mae": MeanAbsoluteError()})

    trainer = quiet_trainer(tmp_path, callbacks=[scaler_callback()])
    trainer.fit(Own(), SmallData())
    names = {name for name in trainer.callback_metrics if name.startswith("val/")}
    assert {name for name in names if not name.startswith("val/loss/")} == {
        "val/loss",
        "val/energy/mae_per_atom",
        "val/energy/positions/mae",
        "val/dipole/mae",
        "val/polarizability/mae",
        "val/polarizability/o3_lambda_0/mae",
        "val/polarizability/o3_lambda_2/mae",
        "val/charges/mae",
    }


def test_every_target_has_copies_of_a_shared_metric(tmp_path):
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


def test_metric_wrappers_of_torchmetrics_are_logged(tmp_path):
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


def test_common_private_names_can_be_used_by_the_module(tmp_path):
    class Own(SmallNet):
        def _step(self, batch):
            raise AssertionError

        _metrics = _convert = _parts = _log_metrics = None
        _predict = _read_batch = _move_batch = _unpacked = _padding = None

    net, data, trainer = Own(), SmallData(), quiet_trainer(tmp_path, callbacks=[scaler_callback()])
    trainer.fit(net, data)
    assert len(net.losses) == 6
    assert trainer.predict(net, data)


@pytest.mark.parametrize("mixin", [TargetScalingMixin, ScaledSteps])
def test_names_that_a_mixin_adds_are_public_or_begin_alike(mixin):
    added = {
        n for base in mixin.__mro__ for n in (*vars(base), *vars(base).get("__annotations__", ()))
    }
    added -= {n for n in added if n.startswith("__") or hasattr(LightningModule, n)}
    assert [n for n in sorted(added) if n.startswith("_") and not n.startswith("_scaling_")] == []


@pytest.mark.slow
def test_evaluating_again_gives_the_same_errors(tmp_path):
    """Lightning resets metrics in inference mode, and the next run updates them outside of it."""
    trainer, data, net = (
        quiet_trainer(tmp_path, callbacks=[scaler_callback()]),
        SmallData(),
        SmallNet(),
    )
    trainer.fit(net, data)
    first = trainer.validate(net, data, verbose=False)[0]
    for other in (trainer, quiet_trainer(tmp_path), quiet_trainer(tmp_path, inference_mode=False)):
        assert other.validate(net, data, verbose=False)[0] == first
        other.test(net, data, verbose=False)
    quiet_trainer(tmp_path, callbacks=[scaler_callback()]).fit(net, data)


def test_every_evaluation_loader_has_separate_metrics(fitted, tmp_path):
    trainer, data, net = fitted
    other = SmallDataset(3, seed=5)
    loaders = [
        data.val_dataloader(),
        DataLoader(other, batch_size=3, collate_fn=collate),
    ]
    both = trainer.test(net, loaders, verbose=False)
    alone = [trainer.test(net, loader, verbose=False)[0] for loader in loaders]
    for index in range(2):
        name = "test/charges/rmse"
        assert both[index][f"{name}/dataloader_idx_{index}"] == pytest.approx(
            alone[index][name], rel=1e-12
        )
    assert alone[0]["test/charges/rmse"] != alone[1]["test/charges/rmse"]


@pytest.mark.slow
def test_metrics_are_reset_every_epoch(tmp_path):
    """With a learning rate of zero, all epochs have the same errors."""
    values = []

    class Still(SmallNet):
        def on_train_epoch_end(self):
            values.append(self.trainer.callback_metrics["val/energy/rmse_per_atom"].item())

    trainer = quiet_trainer(tmp_path, callbacks=[scaler_callback()], max_epochs=3)
    trainer.fit(Still(lr=0.0), SmallData())
    assert len(values) == 3
    assert values[0] == values[1] == values[2]


def test_a_module_with_a_fitted_scaler_needs_no_callback(fitted, tmp_path):
    _, _, net = fitted
    net.scaler.save(tmp_path / "scaler.pt")
    fresh = SmallNet()
    fresh.scaler = Scaler.load(tmp_path / "scaler.pt")
    quiet_trainer(tmp_path).fit(fresh, SmallData())
    assert len(fresh.losses) == 6


@pytest.fixture
def checkpoint_without_scales(tmp_path):
    trainer = quiet_trainer(tmp_path)
    trainer.strategy.connect(PlainNet())
    trainer.save_checkpoint(tmp_path / "old.ckpt")
    return tmp_path / "old.ckpt"


def test_a_checkpoint_without_scales_loads_as_not_fitted_and_says_so(checkpoint_without_scales):
    with pytest.warns(UserWarning, match=r"the checkpoint has no target scales, .* Scaler.load"):
        net = SmallNet.load_from_checkpoint(checkpoint_without_scales, weights_only=True)
    assert not net.scaler.fitted


def test_a_fit_from_a_checkpoint_without_scales_says_so(checkpoint_without_scales, tmp_path):
    data, net = SmallData(), SmallNet()
    trainer = quiet_trainer(tmp_path, callbacks=[scaler_callback()])
    with pytest.warns(UserWarning, match=r"the checkpoint has no target scales, and neither has"):
        trainer.fit(net, data, ckpt_path=checkpoint_without_scales, weights_only=True)
    assert net.scaler.fitted
    assert len(data.train.reads) == 2 * 22  # the pass, and an epoch


def test_a_fit_from_a_checkpoint_without_scales_keeps_those_of_the_module(
    fitted, checkpoint_without_scales, tmp_path, caplog, monkeypatch
):
    """The way out of the warning; no data pass."""
    _, _, source = fitted
    source.scaler.save(tmp_path / "scaler.pt")
    net, data = SmallNet(), SmallData(factors={"dipole": 2.0})
    net.scaler = Scaler.load(tmp_path / "scaler.pt")
    net.load_state_dict(torch.load(checkpoint_without_scales)["state_dict"], strict=False)
    trainer = quiet_trainer(tmp_path, callbacks=[scaler_callback()])
    monkeypatch.setattr(logging.getLogger("lightning.pytorch"), "propagate", True)
    # The name depends on which of Lightning's modules was imported last.
    with caplog.at_level("INFO", rank_zero.log.name):
        trainer.fit(net, data, ckpt_path=checkpoint_without_scales, weights_only=True)
    assert "the checkpoint has no target scales; those that the module already has" in caplog.text
    assert_same_scales(net.scaler, source.scaler)
    assert len(data.train.reads) == 22  # an epoch


TARGETS = ("energy", "dipole", "polarizability", "charges")


def times(block, factor, of_gradients):
    """A block whose values, and whose gradients, are multiplied by a number each."""
    scaled = TensorBlock(block.values * factor, block.samples, block.components, block.properties)
    for name in block.gradients_list():
        gradient = block.gradient(name)
        values = gradient.values * of_gradients
        scaled.add_gradient(
            name,
            TensorBlock(values, gradient.samples, gradient.components, gradient.properties),
        )
    return scaled


class Heads(SmallNet):
    """Has a weight for every block, and for the gradient of the energies.

    Remembers the targets and the gradients of the weights of every step.
    """

    def __init__(self):
        super().__init__(lr=1e-4)
        names = [f"{name}_0" for name in TARGETS] + ["polarizability_1", "forces"]
        self.heads = torch.nn.ParameterDict(
            {name: torch.nn.Parameter(torch.tensor(1.0)) for name in names}
        )
        self.steps = []

    def forward(self, systems):
        return {
            name: TensorMap(
                tensor.keys,
                [
                    times(block, self.heads[f"{name}_{row}"], self.heads["forces"])
                    for row, block in enumerate(tensor.blocks())
                ],
            )
            for name, tensor in super().forward(systems).items()
        }

    def training_step(self, batch, batch_idx):
        self.targets = set(TARGETS) & batch.keys()
        return super().training_step(batch, batch_idx)

    def on_after_backward(self):
        gradients = {name: head.grad for name, head in self.heads.items()}
        self.steps.append(
            (self.targets, {n: None if g is None else g.item() for n, g in gradients.items()})
        )


class WithoutSomeTargets(SmallData):
    """Three batches of four; the second one has no other targets than these."""

    def __init__(self, there):
        super().__init__(size=12)
        self.there = there

    def train_dataloader(self):
        def collate_some(items):
            batch = collate(items)
            if items[0] is self.train.items[4]:
                return {name: batch[name] for name in ("system", *self.there)}
            return batch

        return DataLoader(self.train, batch_size=4, collate_fn=collate_some)


def heads_of(targets):
    """The weights that predictions of these targets depend on."""
    of_target = {name: {f"{name}_0"} for name in TARGETS}
    of_target["polarizability"].add("polarizability_1")
    of_target["energy"].add("forces")
    return set().union(*(of_target[name] for name in targets))


@pytest.mark.parametrize(
    "there",
    [("polarizability", "charges"), ("energy",), ()],
    ids=lambda there: "+".join(there) or "nothing",
)
def test_every_head_has_a_gradient_in_every_step_whatever_the_batch_has(tmp_path, there):
    net, data = Heads(), WithoutSomeTargets(there)
    trainer = quiet_trainer(tmp_path, callbacks=[scaler_callback()], limit_val_batches=0)
    trainer.fit(net, data)
    assert [targets for targets, _ in net.steps] == [set(TARGETS), set(there), set(TARGETS)]
    for targets, gradients in net.steps:
        assert None not in gradients.values(), gradients
        used = heads_of(targets)
        assert {name for name, gradient in gradients.items() if gradient != 0.0} == used


class WithHooks(PlainNet):
    """Records which of its hooks were called, and keeps a number in its checkpoints."""

    def __init__(self, lr=0.05):
        super().__init__(lr=lr)
        self.called, self.number = set(), 0

    def on_fit_start(self):
        self.called.add("fit")

    def on_validation_batch_start(self, batch, batch_idx, dataloader_idx=0):
        self.called.add(f"validation {batch_idx}")

    def on_test_batch_start(self, batch, batch_idx, dataloader_idx=0):
        self.called.add(f"test {batch_idx}")

    def transfer_batch_to_device(self, batch, device, dataloader_idx):
        self.called.add("transfer")
        return super().transfer_batch_to_device(batch, device, dataloader_idx)

    def on_save_checkpoint(self, checkpoint):
        checkpoint["number"] = self.number

    def on_load_checkpoint(self, checkpoint):
        self.number = checkpoint["number"]


class NetWithHooks(TargetScalingMixin, WithHooks):
    training_step = TargetScalingMixin.training_step


def test_hooks_of_the_class_below_the_mixin_are_called(tmp_path):
    net, data = NetWithHooks(), SmallData()
    net.number = 7
    limits = {"limit_train_batches": 1, "limit_val_batches": 2, "limit_test_batches": 1}
    trainer = quiet_trainer(tmp_path, callbacks=[scaler_callback()], **limits)
    trainer.fit(net, data)
    trainer.test(net, data, verbose=False)
    assert net.called == {"fit", "transfer", "validation 0", "validation 1", "test 0"}
    trainer.save_checkpoint(tmp_path / "seven.ckpt")
    restored = NetWithHooks.load_from_checkpoint(tmp_path / "seven.ckpt", weights_only=True)
    assert restored.number == 7
    assert_same_scales(restored.scaler, net.scaler)


@pytest.mark.parametrize("sizes", [(8, 5), (5, 8)])
def test_padding_of_every_evaluation_loader_is_that_of_its_own_sampler(fitted, tmp_path, sizes):
    """Rank 1 of 2 reads the samples 1, 3, 0 of five, the last one a repeat, and 1, 3, 5, 7."""
    _, data, net = fitted
    of_rank = {5: [1, 3], 8: [1, 3, 5, 7]}
    subsets = [Subset(data.held_out, range(size)) for size in sizes]
    padded = [
        DataLoader(s, sampler=DistributedSampler(s, 2, 1, shuffle=False), collate_fn=collate)
        for s in subsets
    ]
    alone = [DataLoader(Subset(data.held_out, of_rank[n]), collate_fn=collate) for n in sizes]
    expected = quiet_trainer(tmp_path).validate(net, alone, verbose=False)
    strategy = SingleDeviceStrategy(device=torch.device("cpu"))
    strategy.world_size = 2
    trainer = quiet_trainer(tmp_path, strategy=strategy, use_distributed_sampler=False)
    found = trainer.validate(net, padded, verbose=False)
    for errors, without_padding in zip(found, expected, strict=True):
        assert errors == pytest.approx(without_padding, rel=1e-12)


def test_a_trained_module_can_be_copied_without_a_validation_after_it(tmp_path):
    net = SmallNet()
    options = {"max_epochs": 1, "limit_val_batches": 0}
    quiet_trainer(tmp_path, callbacks=[scaler_callback()], **options).fit(net, SmallData())
    assert_same_scales(copy.deepcopy(net).scaler, net.scaler)
