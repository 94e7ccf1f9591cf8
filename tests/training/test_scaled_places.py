"""Where predictions of a module with steps of its own are converted, and when no longer."""

import copy

import pytest
import torch
from lightning.pytorch import LightningModule
from plain_module import DECLARED, OtherModule, batches, loader_of
from small_training import quiet_trainer

from lightning_scaler import ScaledSteps, TargetScaler, TargetScalingMixin
from lightning_scaler.training import scaled_class, unscaled_copy


class Network(torch.nn.Module):
    """The network of the module below."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.weights = torch.nn.Embedding(9, 4)

    def forward(self, batch):
        return OtherModule.forward(self, batch)


class Parts(OtherModule):
    """Trains by a part of itself."""

    def __init__(self):
        super().__init__()
        self.predictor = Network()

    def forward(self, batch):
        return self.predictor(batch)

    def loss(self, batch):
        output = self.predictor(batch)
        return (output["energy"] - batch["energy"]).square().mean()

    def validation_step(self, batch, batch_idx):
        self.outputs.append(self.predictor(batch))


def fit(folder, net, at="forward", **options):
    callback = TargetScaler(targets=DECLARED, at=at)
    options = {"max_epochs": 1, "num_sanity_val_steps": 0, **options}
    trainer = quiet_trainer(folder, callbacks=[callback], **options)
    trainer.fit(net, loader_of(batches()), loader_of(batches()))
    return trainer


def test_the_way_out_that_the_error_names_works_for_the_same_module(tmp_path):
    net = Parts().double()
    with pytest.raises(RuntimeError, match=r"no prediction .* TargetScaler\(at='…'\)"):
        fit(tmp_path, net)
    fit(tmp_path, net, "predictor")
    (batch, *_) = batches()
    expected = net(batch)["energy"]
    # Energies of the data are at least 100 per atom, those of the network below 20.
    assert (expected < -50.0 * batch["n_atoms"]).all()
    assert torch.equal(copy.deepcopy(net)(batch)["energy"], expected)
    trainer = fit(tmp_path, net, "predictor")
    trainer.save_checkpoint(tmp_path / "parts.ckpt")
    loaded = scaled_class(Parts, "predictor").load_from_checkpoint(tmp_path / "parts.ckpt")
    # Its weights have been rounded to single precision.
    torch.testing.assert_close(loaded(batch)["energy"], net(batch)["energy"], rtol=0, atol=1e-4)


def test_a_place_is_refused_where_it_would_be_ignored(tmp_path):
    class Ours(ScaledSteps, Parts):
        pass

    class Mixed(TargetScalingMixin, LightningModule):
        def configure_optimizers(self):
            return torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], 0.1)

    with pytest.raises(ValueError, match="Ours has one; write at = 'predictor' in the class, or"):
        fit(tmp_path, Ours(), "predictor")
    with pytest.raises(ValueError, match="has one; leave out at"):
        fit(tmp_path, Mixed(), "predictor")


def test_a_copy_of_the_submodule_is_converted_as_the_submodule_is(tmp_path):
    class Averaged(Parts):
        def setup(self, stage):
            self.average = [copy.deepcopy(self.predictor)]

        def validation_step(self, batch, batch_idx):
            self.outputs.append((self.predictor(batch), self.average[0](batch)))

    net = Averaged().double()
    fit(tmp_path, net, "predictor")
    own, copied = net.outputs[-1]
    # One epoch changes the energies in units of the scale, 1.6; the baseline is 100 per atom.
    torch.testing.assert_close(copied["energy"], own["energy"], rtol=0, atol=30.0)


def test_a_module_inside_another_keeps_its_place(tmp_path):
    teacher = Parts().double()
    fit(tmp_path, teacher, "predictor")
    (batch, *_) = batches()
    expected = teacher(batch)["energy"]

    class Student(Parts):
        def __init__(self):
            super().__init__()
            self.teacher = teacher

    fit(tmp_path, Student().double(), "predictor", limit_train_batches=0)
    assert torch.equal(teacher(batch)["energy"], expected)


@pytest.mark.slow
def test_a_module_that_ddp_has_trained_is_scaled_and_unscaled(tmp_path):
    class Silent(OtherModule):
        def validation_step(self, batch, batch_idx):
            self(batch)

    net = Silent().double()
    # Lightning leaves the method `forward` as an attribute of the module.
    trainer = quiet_trainer(tmp_path, strategy="ddp", max_epochs=1, num_sanity_val_steps=0)
    trainer.fit(net, loader_of(batches()), loader_of(batches()))
    fit(tmp_path, net)
    (batch, *_) = batches()
    assert (net(batch)["energy"] < -50.0 * batch["n_atoms"]).all()
    fit(tmp_path, net, strategy="ddp")
    torch.distributed.destroy_process_group()
    assert (net(batch)["energy"] < -50.0 * batch["n_atoms"]).all()
    alone = unscaled_copy(net)(batch)["energy"]
    assert torch.equal(alone, OtherModule.forward(net, batch)["energy"])


def test_predictions_that_bypass_forward_are_warned_of(tmp_path):
    class Bypass(OtherModule):
        def predict_step(self, batch, batch_idx):
            return OtherModule.forward(self, batch)

    net = Bypass().double()
    trainer = fit(tmp_path, net)
    with pytest.warns(UserWarning, match="predict_step: no prediction of 'energy', 'populations'"):
        trainer.predict(net, loader_of(batches()))


def test_a_target_that_bypasses_forward_is_warned_of(tmp_path):
    class TwoHeads(OtherModule):
        def forward(self, batch):
            output = super().forward(batch)
            return {"energy": output["energy"], "forces": output["forces"]}

        def loss(self, batch):
            error = self.weights(batch["z"])[:, 2:] - batch["populations"]
            return (self(batch)["energy"] - batch["energy"]).square().mean() + error.mean()

        def validation_step(self, batch, batch_idx):
            self.log("val", self.loss(batch), batch_size=5)

    with pytest.warns(UserWarning, match="no prediction of 'populations'") as caught:
        fit(tmp_path, TwoHeads().double())
    for step in ("training_step", "validation_step"):
        start = f"ScaledTwoHeads.{step}: no prediction of 'populations' was found in the output of"
        assert any(str(warning.message).startswith(start) for warning in caught)


def test_gradients_that_a_hook_enables_stay_enabled_in_validation(tmp_path):
    class Enables(OtherModule):
        def on_validation_model_eval(self):
            super().on_validation_model_eval()
            torch.set_grad_enabled(True)

        def validation_step(self, batch, batch_idx):
            self.enabled = torch.is_grad_enabled()
            super().validation_step(batch, batch_idx)

    net = Enables().double()
    fit(tmp_path, net, inference_mode=False)
    assert net.enabled
    net = OtherModule().double()
    fit(tmp_path, net)
    assert not net.outputs[-1]["energy"].requires_grad


def test_the_last_batch_is_forgotten_after_its_backward_pass(tmp_path):
    class Late(OtherModule):
        def on_train_end(self):
            # Computes the output again in a backward pass that belongs to no step.
            (batch, *_) = batches()
            positions = batch["positions"].requires_grad_()
            energies = []
            positions.register_hook(lambda _: energies.append(self(batch)["energy"]))
            positions.sum().backward()
            self.late, self.now = energies[0], self(batch)["energy"]

    net = Late().double()
    fit(tmp_path, net, limit_val_batches=0)
    assert torch.equal(net.late, net.now)


def test_arguments_of_a_step_may_be_given_by_name(tmp_path):
    class Named(OtherModule):
        def predict_step(self, batch, batch_idx):
            return self(batch)

    net = Named().double()
    fit(tmp_path, net)
    (batch, *_) = batches()
    found = net.predict_step(batch_idx=0, batch=batch)
    assert torch.equal(found["energy"], net(batch)["energy"])
