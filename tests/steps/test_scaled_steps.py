"""The steps of a module that knows nothing of target scaling, in scaled and in physical units."""

import copy
import io
import pickle
import warnings

import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import WeightAveraging
from plain_module import DECLARED, OtherModule, batches, loader_of
from small_training import quiet_trainer
from torch.utils.checkpoint import checkpoint

from lightning_scaler import (
    PerAtom,
    PerStructure,
    ScaleAccumulator,
    ScaledSteps,
    Scaler,
    TargetScaler,
    TargetScalingMixin,
)
from lightning_scaler.baselines import CompositionBaseline


class Ours(ScaledSteps, OtherModule):
    pass


def double(cls, *args):
    return cls(*args).double()


def fit(folder, net, data=None, callback=None, val=None, **options):
    data = batches() if data is None else data
    callback = TargetScaler(targets=DECLARED) if callback is None else callback
    options = {"max_epochs": 2, "num_sanity_val_steps": 0, **options}
    trainer = quiet_trainer(folder, callbacks=[*options.pop("callbacks", []), callback], **options)
    trainer.fit(net, loader_of(data), loader_of(data if val is None else val))
    return trainer


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A module without a mixin, its trainer, its data, and copies of the data from before."""
    data = batches()
    before = copy.deepcopy(data)
    net = double(OtherModule)
    trainer = fit(tmp_path_factory.mktemp("trained"), net, data)
    # Two epochs of training and validation.
    assert len(net.seen) == 16
    return net, trainer, data, before


def scaler_of(data):
    accumulator = ScaleAccumulator(DECLARED, baseline=CompositionBaseline())
    for batch in data:
        accumulator.update(batch)
    return accumulator.compute()


def test_training_steps_see_targets_in_loss_space_and_others_the_data(trained):
    net, _, data, _ = trained
    scaler = scaler_of(data)
    weights = scaler.targets["energy"].weights[(0,)][:, 0]
    types = scaler.targets["energy"].baseline_types
    sigma = scaler.per_target_scales["energy"].block().values
    for seen, batch in zip(net.seen[:4], data, strict=True):
        counts = torch.zeros(5, len(types), dtype=torch.float64)
        owner = torch.repeat_interleave(batch["n_atoms"])
        counts.index_put_(
            (owner, torch.searchsorted(types, batch["z"])),
            torch.ones(len(owner), dtype=torch.float64),
            accumulate=True,
        )
        expected = (batch["energy"] - counts @ weights) / sigma[0]
        torch.testing.assert_close(seen["energy"], expected, rtol=0, atol=1e-11)
        torch.testing.assert_close(seen["forces"], batch["forces"] / sigma[0], rtol=1e-14, atol=0)
        assert seen["z"] is batch["z"]
    for seen, batch in zip(net.seen[4:8], data, strict=True):
        assert all(torch.equal(seen[name], batch[name]) for name in batch)


def test_batches_are_never_written_to(trained):
    _, _, data, before = trained
    for batch, old in zip(data, before, strict=True):
        assert batch.keys() == old.keys()
        assert all(torch.equal(batch[name], old[name]) for name in old)


def test_steps_call_the_methods_of_their_own_class_under_common_private_names(tmp_path):
    class Own(OtherModule):
        def training_step(self, batch, batch_idx):
            return self._predict(self._read_batch(batch))

        def _read_batch(self, batch):
            return batch, 2.0

        def _predict(self, given):
            batch, factor = given
            return factor * self.loss(batch)

    net = Own()
    fit(tmp_path, net, max_epochs=1)
    assert len(net.seen) == 8


def test_dtypes_and_shapes_stay_in_training(tmp_path):
    net, data = OtherModule(), batches(dtype=torch.float32)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the rounding errors of these data")
        fit(tmp_path, net, data, max_epochs=1)
    for seen, batch in zip(net.seen[:4], data, strict=True):
        assert all(seen[n].dtype == batch[n].dtype for n in batch)
        assert all(seen[n].shape == batch[n].shape for n in batch)
    # Totals need more than single precision.
    assert net.outputs[-1]["energy"].dtype == torch.float64


def test_outputs_are_in_loss_space_in_training_and_physical_elsewhere(trained):
    net, _, data, _ = trained
    scaler, batch = net.target_scaler, data[0]
    raw = OtherModule.forward(net, batch)
    with_step = {"train": net.training_step, "validation": net.validation_step}
    found = {}
    net.log = lambda *args, **kwargs: None
    for name, step in with_step.items():
        step(batch, 0)
        found[name] = net.outputs.pop()
    del net.log
    expected = scaler.convert(batch, raw, source="model", target="loss")
    physical = scaler.convert(batch, raw, source="model", target="physical")
    for name in ("energy", "forces", "populations"):
        torch.testing.assert_close(found["train"][name], expected[name], rtol=0, atol=0)
        torch.testing.assert_close(found["validation"][name], physical[name], rtol=0, atol=0)
    # Of the two targets, only populations have per-property scales.
    assert torch.equal(found["train"]["energy"], raw["energy"])
    assert not torch.equal(found["train"]["populations"], raw["populations"])


def test_validation_errors_are_those_of_the_predictions(trained):
    net, trainer, data, _ = trained
    (metrics,) = trainer.validate(net, loader_of(data), verbose=False)
    predictions = trainer.predict(net, loader_of(data))
    for name in ("energy", "forces", "populations"):
        errors = [(p[name] - b[name]).abs().mean() for p, b in zip(predictions, data, strict=True)]
        assert metrics[f"val/{name}"] == pytest.approx(float(sum(errors) / 4), rel=1e-12)
        assert not predictions[0][name].requires_grad
    assert metrics["val/energy"] < 30.0


def test_predicted_forces_are_the_derivative_of_predicted_energies(trained):
    net, _, data, _ = trained
    net.eval()
    batch = dict(data[0])
    forces = net(batch)["forces"]
    for atom, axis in ((0, 0), (3, 2)):
        energies = []
        for step in (1e-4, -1e-4):
            moved = batch["positions"].clone()
            moved[atom, axis] += step
            energies.append(net({**batch, "positions": moved})["energy"].sum())
        difference = -(energies[0] - energies[1]) / 2e-4
        assert forces[atom, axis].item() == pytest.approx(difference.item(), abs=2e-6)


@pytest.mark.slow
def test_the_error_falls_below_that_of_the_baseline(trained, tmp_path):
    net, data = double(OtherModule), batches()
    trainer = fit(tmp_path, net, data, max_epochs=20)
    energy = trainer.callback_metrics["val/energy"]
    baseline = (
        torch.cat([scaler_of(data).convert(b, b, target="loss")["energy"] for b in data])
        .abs()
        .mean()
        * scaler_of(data).per_target_scales["energy"].block().values.item()
    )
    assert energy < 0.9 * baseline


def test_only_steps_that_the_class_has_are_wrapped():
    class NoValidation(LightningModule):
        def training_step(self, batch, batch_idx): ...

    class Scaled(ScaledSteps, NoValidation):
        pass

    assert Scaled.validation_step is LightningModule.validation_step
    assert Scaled.forward is LightningModule.forward
    assert Scaled.training_step is not NoValidation.training_step


def test_a_step_that_another_step_calls_passes_through(tmp_path):
    class Nested(OtherModule):
        def training_step(self, batch, batch_idx):
            self.validation_step(batch, batch_idx)
            return super().training_step(batch, batch_idx)

    net, plain = double(Nested), double(OtherModule)
    fit(tmp_path, net, max_epochs=1)
    fit(tmp_path, plain, max_epochs=1)
    # Validation inside the training step sees the same loss space.
    assert torch.equal(net.seen[0]["energy"], plain.seen[0]["energy"])
    assert torch.equal(net.seen[1]["energy"], plain.seen[0]["energy"])
    assert torch.equal(net.outputs[0]["populations"], plain.outputs[0]["populations"])


def test_forward_outside_of_steps_is_physical_where_the_batch_is_given(trained):
    net, trainer, data, _ = trained
    (prediction, *_) = trainer.predict(net, loader_of(data))
    assert torch.equal(net(data[0])["energy"].detach(), prediction["energy"])

    class OfTensors(OtherModule):
        def forward(self, z, positions, n_atoms):
            return super().forward({"z": z, "positions": positions, "n_atoms": n_atoms})

        def predict_step(self, batch, batch_idx):
            return self(batch["z"], batch["positions"], batch["n_atoms"])

    class Scaled(ScaledSteps, OfTensors):
        pass

    other = double(Scaled)
    other.load_state_dict(net.state_dict())
    assert torch.equal(trainer.predict(other, loader_of(data))[0]["energy"], prediction["energy"])
    with pytest.raises(RuntimeError, match="called outside of its steps without a batch"):
        other(data[0]["z"], data[0]["positions"], data[0]["n_atoms"])


def test_recomputation_in_the_backward_pass_converts_as_the_step_did(tmp_path):
    """Activation checkpointing calls forward again after the step has ended."""

    class Checkpointed(OtherModule):
        def training_step(self, batch, batch_idx):
            def error(weight):
                return (self(batch)["populations"] - batch["populations"]).square().mean()

            return checkpoint(error, self.weights.weight, use_reentrant=self.reentrant)

    class Direct(OtherModule):
        def training_step(self, batch, batch_idx):
            return (self(batch)["populations"] - batch["populations"]).square().mean()

    direct = double(Direct)
    fit(tmp_path, direct, max_epochs=1)
    for reentrant in (False, True):
        net = double(Checkpointed)
        net.reentrant = reentrant
        fit(tmp_path, net, max_epochs=1)
        torch.testing.assert_close(net.weights.weight, direct.weights.weight, rtol=1e-12, atol=0)
    assert not torch.equal(direct.weights.weight, double(Direct).weights.weight)


class Parts(LightningModule):
    """Trains through a submodule; its own forward is something else."""

    def __init__(self):
        super().__init__()
        self.predictor = OtherModule()

    def forward(self, batch):
        return "nothing"

    def training_step(self, batch, batch_idx):
        return (self.predictor(batch)["energy"] - batch["energy"]).square().mean()

    def validation_step(self, batch, batch_idx):
        error = (self.predictor(batch)["energy"] - batch["energy"]).abs().mean()
        self.log("val", error, batch_size=5)

    def predict_step(self, batch, batch_idx):
        return self.predictor(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-3)


@pytest.mark.parametrize("as_class", [False, True])
def test_another_place_than_forward_is_named_by_at(tmp_path, as_class):
    class Ours(ScaledSteps, Parts):
        at = "predictor"

    net = double(Ours if as_class else Parts)
    callback = TargetScaler(targets=DECLARED, at="predictor")
    trainer = fit(tmp_path, net, callback=callback)
    assert trainer.callback_metrics["val"] < 30.0
    (prediction, *_) = trainer.predict(net, loader_of(batches()))
    assert (prediction["energy"] - batches()[0]["energy"]).abs().max() < 60.0
    copied = copy.deepcopy(net)
    assert torch.equal(copied.predict_step(batches()[0], 0)["energy"], prediction["energy"])


class Given(Parts):
    """Is given its submodule, and saves it among the hyperparameters."""

    def __init__(self, predictor):
        super().__init__()
        self.save_hyperparameters()
        self.predictor = predictor


@pytest.mark.filterwarnings("ignore:Attribute .predictor. is an instance")
def test_a_submodule_among_the_hyperparameters_is_converted_once(tmp_path):
    net = Given(double(OtherModule))
    trainer = fit(tmp_path, net, callback=TargetScaler(targets=DECLARED, at="predictor"))
    trainer.save_checkpoint(tmp_path / "net.ckpt")
    # The class that the callback has made, as a training script has it in type(module).
    loaded = type(net).load_from_checkpoint(tmp_path / "net.ckpt", weights_only=False)
    batch = batches()[0]
    expected = net.predict_step(batch, 0)["energy"]
    assert (expected - batch["energy"]).abs().max() < 60.0
    assert torch.equal(loaded.predict_step(batch, 0)["energy"], expected)
    # Saved by itself, the submodule gives physical units too.
    torch.save(net.predictor, tmp_path / "predictor.pt")
    alone = torch.load(tmp_path / "predictor.pt", weights_only=False)
    assert torch.equal(alone(batch)["energy"], expected)


def test_a_step_without_a_converted_prediction_is_refused(tmp_path):
    message = r"training_step: no prediction of 'energy', 'populations' was found in the output of "
    with pytest.raises(RuntimeError, match=message + r"'forward'.* TargetScaler\(at='…'\)"):
        fit(tmp_path, double(Parts))
    message = r"TargetScaler\(at='predict'\): there is no such submodule; did you mean 'predictor'"
    with pytest.raises(AttributeError, match=message):
        fit(tmp_path, double(Parts), callback=TargetScaler(targets=DECLARED, at="predict"))


def test_settings_of_the_default_loss_are_refused_for_a_loss_of_the_module(tmp_path):
    for settings in ({"loss_weights": {"energy": 2}}, {"balance_loss": True}):
        callback = TargetScaler(targets=DECLARED, at="predictor", **settings)
        with pytest.raises(ValueError, match=r"Parts computes its own loss, .* leave them out"):
            fit(tmp_path, double(Parts), callback=callback)
    callback = TargetScaler(
        targets=DECLARED, at="predictor", loss_weights={"energy": 1}, balance_loss=False
    )
    assert fit(tmp_path, double(Parts), callback=callback).state.finished


def test_the_wrong_order_of_bases_is_refused_with_the_right_one():
    message = r"got \(Parts, ScaledSteps\); write class X\(ScaledSteps, Parts\)"
    with pytest.raises(TypeError, match=message):
        type("X", (Parts, ScaledSteps), {})


def test_a_predict_step_may_return_what_it_likes(trained, tmp_path):
    net, _, data, _ = trained

    class Losses(OtherModule):
        def predict_step(self, batch, batch_idx):
            return {"loss": self.weights.weight.sum(), "name": "a"}

    class Scaled(ScaledSteps, Losses):
        pass

    other = double(Scaled)
    other.load_state_dict(net.state_dict())
    (found, *_) = quiet_trainer(tmp_path).predict(other, loader_of(data))
    assert found["name"] == "a"
    assert not found["loss"].requires_grad


def test_copies_and_pickles_of_a_changed_module_predict_the_same(trained):
    net, _, data, _ = trained
    expected = net(data[0])["energy"]
    assert type(net).__name__ == "ScaledOtherModule"
    assert isinstance(net, OtherModule)
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(other(data[0])["energy"], expected)
    # No batch is pickled with it.
    with_batch, without = io.BytesIO(), io.BytesIO()
    other.seen, other.outputs = [], []
    torch.save(other, without)
    other.training_step = None
    del other.training_step
    torch.save(other, with_batch)
    assert with_batch.tell() == without.tell()


def test_checkpoints_are_read_with_the_scales_or_not_at_all(trained, tmp_path):
    net, trainer, data, _ = trained
    trainer.save_checkpoint(tmp_path / "net.ckpt")
    expected = net(data[0])["energy"]
    path = {"checkpoint_path": tmp_path / "net.ckpt", "weights_only": False}
    for cls in (Ours, type(net)):
        loaded = cls.load_from_checkpoint(**path)  # in float32
        assert dict(loaded.hparams) == {"width": 3}
        torch.testing.assert_close(loaded.double()(data[0])["energy"], expected)
    with pytest.raises(RuntimeError, match=r"Unexpected key.*target_scaler._extra_state"):
        OtherModule.load_from_checkpoint(**path)
    fresh = double(OtherModule)
    callback = TargetScaler(targets=DECLARED)
    trainer = quiet_trainer(tmp_path, callbacks=[callback])
    (prediction, *_) = trainer.predict(
        fresh, loader_of(data), ckpt_path=tmp_path / "net.ckpt", weights_only=False
    )
    assert torch.equal(prediction["energy"], expected.detach())


def test_a_resumed_run_continues_as_if_it_had_not_stopped(tmp_path):
    whole = double(OtherModule)
    fit(tmp_path, whole, max_epochs=4)
    first = double(OtherModule)
    trainer = fit(tmp_path, first, max_epochs=2)
    trainer.save_checkpoint(tmp_path / "first.ckpt")
    second = double(OtherModule)
    data, callback = batches(), TargetScaler(targets=DECLARED)
    trainer = quiet_trainer(tmp_path, max_epochs=4, num_sanity_val_steps=0, callbacks=[callback])
    trainer.fit(
        second,
        loader_of(data),
        loader_of(data),
        ckpt_path=tmp_path / "first.ckpt",
        weights_only=False,
    )
    assert torch.equal(second.weights.weight, whole.weights.weight)


def test_averaged_weights_predict_in_physical_units(tmp_path):
    net, averaging = double(OtherModule), WeightAveraging()
    trainer = fit(tmp_path, net, callbacks=[], max_epochs=2)
    net = double(OtherModule)
    callback = TargetScaler(targets=DECLARED)
    trainer = quiet_trainer(tmp_path, max_epochs=2, callbacks=[callback, averaging])
    trainer.fit(net, loader_of(batches()), loader_of(batches()))
    trainer.save_checkpoint(tmp_path / "averaged.ckpt")
    loaded = Ours.load_from_checkpoint(tmp_path / "averaged.ckpt", weights_only=False).double()
    error = (loaded(batches()[0])["energy"] - batches()[0]["energy"]).abs().max()
    assert error < 30.0


@pytest.mark.slow
def test_where_a_change_of_the_class_does_not_hold_is_refused(tmp_path):
    message = r"steps of OtherModule cannot be scaled here, because {}.* class ScaledOtherModule"
    message += r"\(ScaledSteps, OtherModule\)"
    with pytest.raises(TypeError, match=message.format("it was compiled before the fit")):
        fit(tmp_path, torch.compile(OtherModule()))
    with pytest.raises(TypeError, match=message.format("WeightAveraging is listed before")):
        fit(tmp_path, OtherModule(), callbacks=[WeightAveraging()])
    # The hooks of a spawned fit run in the new processes.
    callback = TargetScaler(targets=DECLARED)
    trainer = quiet_trainer(tmp_path, strategy="ddp_spawn", callbacks=[callback])
    with pytest.raises(TypeError, match=message.format("DDPStrategy starts processes that copy")):
        callback.setup(trainer, OtherModule(), "fit")


@pytest.mark.slow
def test_the_class_of_a_compiled_module_is_scaled(tmp_path):
    class Silent(OtherModule):
        """Logs nothing: torch.compile fails in Lightning's ``log``."""

        def training_step(self, batch, batch_idx):
            return self.loss(batch)

        def validation_step(self, batch, batch_idx):
            self.outputs.append(self(batch))

    class Scaled(ScaledSteps, Silent):
        pass

    net, other = double(Scaled), double(Scaled)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch.compile, about the module itself
        fit(tmp_path, torch.compile(net, backend="eager"), batches(1, 30), max_epochs=1)
    fit(tmp_path, other, batches(1, 30), max_epochs=1)
    torch.testing.assert_close(net.weights.weight, other.weights.weight, rtol=1e-12, atol=0)
    torch.testing.assert_close(net.outputs[-1], other.outputs[-1], rtol=1e-12, atol=1e-12)


def test_scales_are_those_of_the_accumulator(trained):
    net, _, data, _ = trained
    expected = scaler_of(data)
    for name in DECLARED:
        found = net.target_scaler.scales[name].block().values
        assert torch.equal(found, expected.scales[name].block().values)


def test_a_module_without_a_mixin_needs_declared_targets(tmp_path):
    message = r"expected a module with the TargetScalingMixin.* declare them"
    with pytest.raises(TypeError, match=message):
        fit(tmp_path, OtherModule(), callback=TargetScaler())
    with pytest.raises(TypeError, match="Ours has ScaledSteps and needs declared targets"):
        fit(tmp_path, Ours(), callback=TargetScaler(targets=["energy"]))


def test_the_change_is_said_in_one_line(tmp_path, messages):
    fit(tmp_path, double(OtherModule), max_epochs=1)
    lines = [record.message for record in messages.records if "ScaledSteps" in record.message]
    assert len(lines) == 1
    assert "training and validation losses have different units" in lines[0]


@pytest.mark.parametrize("step", ["training_step", "validation_step", "predict_step"])
def test_the_other_mixin_does_not_hide_steps(step):
    members = {step: lambda self, batch, batch_idx: None}
    theirs = type("Theirs", (LightningModule,), members)
    message = rf"the {step} of Theirs would be replaced .* class X\(ScaledSteps, Theirs\).*"
    with pytest.raises(TypeError, match=message + rf"{step} = TargetScalingMixin.{step}"):
        type("X", (TargetScalingMixin, theirs), {})
    chosen = type("X", (TargetScalingMixin, theirs), {step: getattr(TargetScalingMixin, step)})
    assert getattr(chosen, step) is getattr(TargetScalingMixin, step)
    assert issubclass(type("X", (ScaledSteps, theirs), {}), theirs)


@pytest.mark.parametrize("mixin", [TargetScalingMixin, ScaledSteps])
def test_a_mixin_keeps_the_signature_of_init(tmp_path, mixin):
    class Theirs(LightningModule):
        def __init__(self, hparams, width=2):
            super().__init__()
            self.save_hyperparameters(hparams)
            self.layer = torch.nn.Linear(hparams["n"], 1)

    class X(mixin, Theirs):
        pass

    trainer = quiet_trainer(tmp_path)
    trainer.strategy.connect(X({"n": 3}))
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = X.load_from_checkpoint(tmp_path / "x.ckpt", weights_only=False)
    assert loaded.layer.in_features == 3


def test_an_attribute_named_scaler_is_not_overwritten():
    class Theirs(LightningModule):
        def __init__(self):
            super().__init__()
            self.scaler = 2.0

    class X(TargetScalingMixin, Theirs):
        pass

    class Y(ScaledSteps, Theirs):
        pass

    with pytest.raises(
        TypeError, match=r"X.scaler: expected no such attribute.* got float; rename"
    ):
        X()
    assert Y().scaler == 2.0
    assert isinstance(Y().target_scaler, Scaler)


def with_part(**members):
    class ScaleShift(torch.nn.Module):
        pass

    net = OtherModule()
    part = ScaleShift()
    for name, value in members.items():
        if isinstance(value, torch.Tensor):
            part.register_buffer(name, value)
        else:
            setattr(part, name, value)
    net.readout = part
    return net


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({"std": torch.tensor(2.0)}, r"readout \(ScaleShift: std is not 1\)"),
        ({"data_mean": -3.0}, r"readout \(ScaleShift: data_mean is not 0\)"),
        ({"atomref": torch.arange(5.0)}, "atomref is not 0"),
        ({"other": torch.tensor([2.0, 3.0])}, "not the identity"),
    ],
)
def test_scaling_of_its_own_is_named_before_the_first_step(tmp_path, members, words):
    net = with_part(**members)
    with pytest.warns(UserWarning, match=f"ScaledOtherModule has scaling of its own.*{words}"):
        fit(tmp_path, net.double(), max_epochs=1)


def test_a_potential_of_its_own_is_named(tmp_path):
    net = OtherModule()
    net.repulsion = type("ZBL", (torch.nn.Module,), {})()
    with pytest.warns(UserWarning, match=r"repulsion \(ZBL: a potential, which would be multipli"):
        fit(tmp_path, net.double(), max_epochs=1)


def test_scaling_that_setup_sets_is_named_too(tmp_path):
    class Late(OtherModule):
        def setup(self, stage):
            self.std = 2.0

    class Ours(ScaledSteps, Late):
        pass

    for cls in (Late, Ours):
        with pytest.warns(UserWarning, match="scaling of its own.*std is not 1"):
            fit(tmp_path, double(cls), max_epochs=1)


@pytest.mark.parametrize(
    "members",
    [
        {"std": torch.ones(3), "mean": torch.zeros(3)},
        {"scales": 1.0, "shifts": 0.0},
        {"other": torch.zeros(2), "std": None},
    ],
)
def test_scaling_that_changes_nothing_is_not_named(tmp_path, members):
    fit(tmp_path, with_part(**members).double(), max_epochs=1)


def test_an_output_may_hold_some_of_the_targets_and_other_things(tmp_path):
    class Some(OtherModule):
        def forward(self, batch):
            found = super().forward(batch)
            return {"energy": found["energy"], "forces": found["forces"], "note": "x"}

        def training_step(self, batch, batch_idx):
            return (self(batch)["energy"] - batch["energy"]).square().mean()

        def validation_step(self, batch, batch_idx):
            output = self(batch)
            assert output["note"] == "x"
            error = (output["energy"] - batch["energy"]).abs().mean()
            self.log("val", error, batch_size=5)

    targets = {"energy": DECLARED["energy"], "q": PerAtom("populations", properties=2)}
    with pytest.warns(UserWarning, match="_step: no prediction of 'q' was found"):
        trainer = fit(tmp_path, double(Some), callback=TargetScaler(targets=targets))
    assert trainer.callback_metrics["val"] < 30.0


def test_an_output_that_is_a_tensor_is_that_of_the_only_target(tmp_path):
    class One(OtherModule):
        def forward(self, batch):
            return super().forward(batch)["energy"][:, None]

        def training_step(self, batch, batch_idx):
            return (self(batch)[:, 0] - batch["energy"]).square().mean()

        def validation_step(self, batch, batch_idx):
            error = (self(batch)[:, 0] - batch["energy"]).abs().mean()
            self.log("val", error, batch_size=5)

    net = double(One)
    trainer = fit(tmp_path, net, callback=TargetScaler(targets={"energy": PerStructure()}))
    assert trainer.callback_metrics["val"] < 30.0
    assert trainer.predict(net, loader_of(batches()))[0].shape == (5, 1)


def test_mixed_precision_trains(tmp_path):
    net = OtherModule()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the rounding errors of these data")
        trainer = fit(tmp_path, net, batches(dtype=torch.float32), precision="bf16-mixed")
    assert trainer.callback_metrics["val/energy"] < 30.0


def test_a_step_may_call_forward_with_another_batch(tmp_path):
    """Its predictions have the baseline of its own atoms."""
    other = batches(seed=7)[0]

    class Teacher(OtherModule):
        def validation_step(self, batch, batch_idx):
            self.outputs.append(self(other)["energy"])
            super().validation_step(batch, batch_idx)

    net = double(Teacher)
    fit(tmp_path, net, max_epochs=1)
    expected = net(other)["energy"].detach()
    torch.testing.assert_close(net.outputs[-2], expected, rtol=0, atol=0)
    assert (expected - other["energy"]).abs().max() < 60.0
