"""TargetScaler in runs of a real Trainer: one pass, restored scales, refusals."""

import random

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import (
    Callback,
    EMAWeightAveraging,
    LearningRateFinder,
    StochasticWeightAveraging,
)
from lightning.pytorch.strategies import SingleDeviceStrategy
from small_training import (
    PlainNet,
    SmallData,
    SmallNet,
    collate,
    quiet_trainer,
    scaler_callback,
)
from torch.utils.data import WeightedRandomSampler

from lightning_scaler import CompositionBaseline, ScaleAccumulator, Scaler, TargetScaler


def assert_same_scales(first: Scaler, second: Scaler, rtol: float = 0.0) -> None:
    assert first.scales.keys() == second.scales.keys()
    for name, scales in first.scales.items():
        for ours, theirs in zip(scales.blocks(), second.scales[name].blocks(), strict=True):
            torch.testing.assert_close(ours.values, theirs.values, rtol=rtol, atol=0.0)
    for name, scales in first.targets.items():
        for key, weights in scales.weights.items():
            theirs = second.targets[name].weights[key]
            torch.testing.assert_close(weights, theirs, rtol=max(rtol, 1e-10), atol=0.0)


def test_the_pass_reads_every_training_sample_once_and_equals_the_accumulator(tmp_path):
    data, net = SmallData(), SmallNet()
    read_before_training = []

    class Spy(Callback):
        def on_sanity_check_start(self, trainer, pl_module):
            read_before_training.extend(data.train.reads)
            data.train.reads.clear()

    quiet_trainer(tmp_path, callbacks=[Spy(), scaler_callback()]).fit(net, data)
    assert sorted(read_before_training) == list(range(22))
    assert sorted(data.train.reads) == list(range(22))  # the one epoch
    accumulator = ScaleAccumulator(
        intensive_targets=["dipole", "polarizability"], baseline=CompositionBaseline()
    )
    for start in range(0, 22, 5):
        accumulator.update(*net.unpack_batch(collate(data.train.items[start : start + 5])))
    assert_same_scales(net.scaler, accumulator.compute(), rtol=1e-11)


@pytest.mark.parametrize("source", ["datamodule", "loader", "module", "several"])
def test_wherever_the_data_come_from(tmp_path, source):
    data, reference = SmallData(), SmallNet()
    quiet_trainer(tmp_path, callbacks=[scaler_callback()]).fit(reference, SmallData())
    net = SmallNet()
    trainer = quiet_trainer(tmp_path, callbacks=[scaler_callback()], limit_val_batches=0)
    if source == "datamodule":
        trainer.fit(net, data)
    elif source == "loader":
        trainer.fit(net, data.train_dataloader(), data.val_dataloader())
    elif source == "module":
        net.train_dataloader = data.train_dataloader
        net.val_dataloader = data.val_dataloader
        trainer.fit(net)
    else:
        # Two halves that are iterated together; each is read once, whatever the mode.
        halves = [torch.utils.data.Subset(data.train, part) for part in (range(15), range(15, 22))]
        loaders = [
            torch.utils.data.DataLoader(half, batch_size=4, collate_fn=collate) for half in halves
        ]

        class Both(SmallNet):
            def unpack_batch(self, batch):
                return super().unpack_batch(batch[0] if isinstance(batch, (list, tuple)) else batch)

        net = Both()
        trainer.fit(net, loaders, data.val_dataloader())
    assert_same_scales(net.scaler, reference.scaler, rtol=1e-11)


def test_random_states_are_left_alone(tmp_path):
    """A generator of the loader's own included: the data order is as without the pass."""
    states, orders = [], []

    class Spy(Callback):
        def on_sanity_check_start(self, trainer, pl_module):
            numbers = np.random.get_state()[1].tolist()
            states.append((random.getstate(), numbers, torch.get_rng_state().tolist()))

    class Seeded(SmallData):
        def __init__(self):
            super().__init__()
            self.generator = torch.Generator().manual_seed(11)

        def train_dataloader(self):
            return torch.utils.data.DataLoader(
                self.train,
                batch_size=4,
                sampler=WeightedRandomSampler(
                    [1.0] * 22, 22, replacement=False, generator=self.generator
                ),
                collate_fn=collate,
            )

    fitted = SmallNet()
    quiet_trainer(tmp_path, callbacks=[scaler_callback()]).fit(fitted, SmallData())
    for scaler in (Scaler(), fitted.scaler):
        random.seed(5), np.random.seed(6), torch.manual_seed(7)
        data, net = Seeded(), SmallNet()
        torch.manual_seed(8)
        net.scaler.targets, net.scaler.settings = scaler.targets, scaler.settings
        callbacks = [Spy(), scaler_callback()]
        quiet_trainer(tmp_path, callbacks=callbacks, num_sanity_val_steps=1).fit(net, data)
        orders.append(data.train.reads[-22:])
    assert states[0] == states[1]
    assert orders[0] == orders[1]


def test_a_second_fit_and_a_second_callback_read_nothing_again(tmp_path):
    data, net = SmallData(), SmallNet()
    callbacks = [scaler_callback(), scaler_callback()]
    quiet_trainer(tmp_path, callbacks=callbacks).fit(net, data)
    assert len(data.train.reads) == 2 * 22
    quiet_trainer(tmp_path, callbacks=[scaler_callback()]).fit(net, data)
    assert len(data.train.reads) == 3 * 22


def test_callbacks_that_train_in_their_own_fit_start_find_the_scales(tmp_path):
    data, net = SmallData(), SmallNet()
    finder = LearningRateFinder(num_training_steps=3, attr_name="lr")
    net.lr = 0.01
    quiet_trainer(tmp_path, callbacks=[finder, scaler_callback()], enable_checkpointing=True).fit(
        net, data
    )
    assert data.train.reads[:22] == list(range(22))
    assert len(net.losses) >= 6


def test_resuming_and_loading_restore_the_scales_without_data(tmp_path):
    data, net = SmallData(), SmallNet()
    trainer = quiet_trainer(tmp_path, callbacks=[scaler_callback()])
    trainer.fit(net, data)
    trainer.save_checkpoint(tmp_path / "net.ckpt")
    predictions = trainer.predict(net, data)

    loaded = SmallNet.load_from_checkpoint(tmp_path / "net.ckpt", weights_only=True)
    assert_same_scales(loaded.scaler, net.scaler)
    again = quiet_trainer(tmp_path).predict(loaded, data)
    for first, second in zip(predictions, again, strict=True):
        for name in first:
            for ours, theirs in zip(first[name].blocks(), second[name].blocks(), strict=True):
                assert torch.equal(ours.values, theirs.values)

    resumed, more = SmallNet(), SmallData()
    trainer = quiet_trainer(tmp_path, callbacks=[scaler_callback()], max_epochs=2)
    trainer.fit(resumed, more, ckpt_path=tmp_path / "net.ckpt", weights_only=True)
    assert len(more.train.reads) == 22  # the second epoch alone
    assert_same_scales(resumed.scaler, net.scaler)


def test_a_resumed_run_goes_on_as_the_one_that_never_stopped(tmp_path):
    whole = SmallNet()
    torch.manual_seed(0)
    order = SequentialData()
    quiet_trainer(tmp_path, callbacks=[scaler_callback()], max_epochs=3).fit(whole, order)
    first, second = SmallNet(), SmallNet()
    trainer = quiet_trainer(tmp_path, callbacks=[scaler_callback()], max_epochs=1)
    trainer.fit(first, SequentialData())
    trainer.save_checkpoint(tmp_path / "first.ckpt")
    quiet_trainer(tmp_path, callbacks=[scaler_callback()], max_epochs=3).fit(
        second, SequentialData(), ckpt_path=tmp_path / "first.ckpt", weights_only=True
    )
    assert first.losses + second.losses == whole.losses


def test_settings_that_contradict_restored_ones_are_an_error(tmp_path):
    data, net = SmallData(), SmallNet()
    quiet_trainer(tmp_path, callbacks=[scaler_callback()]).fit(net, data)
    other = TargetScaler(enabled=False, intensive_targets=["dipole"], fixed_scales={"charges": 2.0})
    message = (
        r"enabled was True and is False; intensive_targets: polarizability was True and is False; "
        r"fixed_scales: charges was None and is 2.0; use the same settings, or refit=True"
    )
    with pytest.raises(ValueError, match=message):
        quiet_trainer(tmp_path, callbacks=[other]).fit(net, data)


def test_unknown_names_are_errors_where_scales_are_kept_too(tmp_path):
    net = SmallNet()
    quiet_trainer(tmp_path, callbacks=[scaler_callback()]).fit(net, SmallData())
    other = scaler_callback(fixed_scales={"enrgy": 2.0})
    with pytest.raises(ValueError, match=r"fixed_scales names the target 'enrgy'.*'energy'\?"):
        quiet_trainer(tmp_path, callbacks=[other]).fit(net, SmallData())


def test_iterable_data_sets(tmp_path):
    """No length, no sampler; limits are counted as the batches come."""

    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(SmallData().train.items)

    class Streamed(SmallData):
        def train_dataloader(self):
            return torch.utils.data.DataLoader(Stream(), batch_size=4, collate_fn=collate)

    net, reference = SmallNet(), SmallNet()
    quiet_trainer(tmp_path, callbacks=[scaler_callback()]).fit(net, Streamed())
    quiet_trainer(tmp_path, callbacks=[scaler_callback()]).fit(reference, SmallData())
    assert_same_scales(net.scaler, reference.scaler)


def test_refit_starts_anew(tmp_path):
    net, larger = SmallNet(), SmallData(factors={"dipole": 8.0})
    quiet_trainer(tmp_path, callbacks=[scaler_callback()]).fit(net, SmallData())
    before = net.scaler.targets["dipole"].per_target[0].item()
    quiet_trainer(tmp_path, callbacks=[scaler_callback(refit=True)]).fit(net, larger)
    assert net.scaler.targets["dipole"].per_target[0].item() == 8.0 * before


def test_targets_that_restored_scales_lack_are_fitted_and_the_others_stay(tmp_path):
    net = SmallNet()
    known = ["energy", "dipole", "polarizability", "charges"]
    only = [name for name in known if name != "charges"]
    data = SmallData(factors={"dipole": 2.0})
    with_charges = scaler_callback(targets=known)
    callbacks = [scaler_callback(targets=only)]
    quiet_trainer(tmp_path, callbacks=callbacks, max_epochs=0, limit_val_batches=0).fit(net, data)
    old = {name: net.scaler.targets[name] for name in only}
    quiet_trainer(tmp_path, callbacks=[with_charges]).fit(net, SmallData())
    assert {name: net.scaler.targets[name] for name in only} == old
    reference = SmallNet()
    quiet_trainer(tmp_path, callbacks=[scaler_callback()]).fit(reference, SmallData())
    ours, theirs = (n.scaler.targets["charges"].per_target for n in (net, reference))
    assert torch.equal(ours, theirs)


def test_where_every_number_is_given_one_batch_shows_the_layouts(tmp_path):
    """Single-property targets without baseline: no pass, and the losses of a fit with the pass."""

    class Charges(SmallNet):
        def unpack_batch(self, batch):
            systems, targets, masks = super().unpack_batch(batch)
            return systems, {name: targets[name] for name in ("dipole", "charges")}, masks

    runs = []
    targets = ["dipole", "charges"]
    settings = {"targets": targets, "intensive_targets": ["dipole"], "baseline": "none"}
    for fixed in (None, "numbers"):
        if fixed:
            scaler = runs[0][0].scaler
            charges = scaler.targets["charges"]
            per_type = zip(charges.types.tolist(), charges.per_target.tolist(), strict=False)
            fixed = {
                "dipole": scaler.targets["dipole"].per_target[0].item(),
                "charges": dict(per_type),
            }
        torch.manual_seed(0)
        data, net = SmallData(), Charges()
        callback = TargetScaler(fixed_scales=fixed, **settings)
        quiet_trainer(tmp_path, callbacks=[callback]).fit(net, data)
        runs.append((net, len(data.train.reads)))
    (fitted, reads), (given, fewer_reads) = runs
    assert (reads, fewer_reads) == (22 + 22, 4 + 22)
    assert given.losses == fitted.losses


def test_disabled_scaling_has_scales_of_one_and_the_same_baseline(tmp_path):
    on, off = SmallNet(), SmallNet()
    quiet_trainer(tmp_path, callbacks=[scaler_callback()]).fit(on, SmallData())
    quiet_trainer(tmp_path, callbacks=[scaler_callback(enabled=False)]).fit(off, SmallData())
    for scales in off.scaler.scales.values():
        assert all(bool((block.values == 1.0).all()) for block in scales.blocks())
    for name, scales in on.scaler.targets.items():
        for key, weights in scales.weights.items():
            assert torch.equal(weights, off.scaler.targets[name].weights[key])


def test_fast_dev_run_is_provisional(tmp_path):
    data, net = SmallData(), SmallNet()
    quiet_trainer(tmp_path, callbacks=[scaler_callback()], fast_dev_run=1).fit(net, data)
    assert len(data.train.reads) == 8  # one batch for the scales, one step
    assert net.scaler.settings.unseen_types == "pooled"
    data.train.reads.clear()
    quiet_trainer(tmp_path, callbacks=[scaler_callback()]).fit(net, data)
    assert len(data.train.reads) == 2 * 22
    assert net.scaler.settings.unseen_types == "error"


def test_limit_batches_spreads_them_over_the_data(tmp_path):
    data, net = SmallData(), SmallNet()
    trainer = quiet_trainer(
        tmp_path, callbacks=[scaler_callback(limit_batches=3)], limit_train_batches=2
    )
    trainer.fit(net, data)
    # Batches 1, 3 and 5 of the six: [4, 5, 6, 7], [12, ...], [20, 21].
    assert data.train.reads[:10] == [4, 5, 6, 7, 12, 13, 14, 15, 20, 21]


def test_overfit_batches_are_the_very_batches(tmp_path):
    data, net = SequentialData(), SmallNet()
    quiet_trainer(
        tmp_path, callbacks=[scaler_callback(unseen_types="pooled")], overfit_batches=2
    ).fit(net, data)
    assert data.train.reads == 2 * list(range(8))


def test_a_module_without_the_mixin_is_an_error(tmp_path):
    with pytest.raises(TypeError, match=r"write class PlainNet\(TargetScalingMixin, LightningMod"):
        quiet_trainer(tmp_path, callbacks=[TargetScaler()]).fit(
            PlainNet(), SmallData().train_dataloader()
        )


def test_a_named_target_never_seen_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"'enery' is to be fitted.*did you mean 'energy'\?"):
        quiet_trainer(tmp_path, callbacks=[TargetScaler(targets=["enery"])]).fit(
            SmallNet(), SmallData()
        )


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"fixed_scales": {"charge": 1.0}}, r"fixed_scales names the target 'charge'.*'charges'\?"),
        ({"intensive_targets": ["dipol"]}, r"intensive_targets names the target 'dipol'.*'dipole'"),
        ({"fixed_baseline": {"e": {1: 2.0}}}, r"fixed_baseline names the target 'e'"),
    ],
)
def test_unknown_names_in_settings_are_errors(tmp_path, setting, message):
    with pytest.raises(ValueError, match=message):
        quiet_trainer(tmp_path, callbacks=[TargetScaler(**setting)]).fit(SmallNet(), SmallData())


def test_infinite_targets_are_an_error_that_says_where(tmp_path):
    data = SmallData()
    data.train.items[13][1]["dipole"][0, 2] = torch.inf
    with pytest.raises(ValueError, match=r"target 'dipole', block \(_=0\).*1 infinite entries"):
        quiet_trainer(tmp_path, callbacks=[scaler_callback()]).fit(SmallNet(), data)


def test_a_batch_that_is_not_understood_is_an_error(tmp_path):
    data = SmallData(collate_fn=lambda items: [system for system, _ in items])
    with pytest.raises(TypeError, match=r"override unpack_batch\(batch\)"):
        quiet_trainer(tmp_path, callbacks=[scaler_callback()]).fit(SmallNet(), data)


def test_unknown_choices_are_errors_at_once():
    with pytest.raises(ValueError, match=r"unseen_types: expected one of \['error', 'pooled'"):
        TargetScaler(unseen_types="ignore")
    with pytest.raises(ValueError, match=r"baseline: expected one of \['composition', 'none'\]"):
        TargetScaler(baseline="mean")
    with pytest.raises(TypeError, match=r"targets: expected a list of names, got the string"):
        TargetScaler(targets="energy")
    with pytest.raises(ValueError, match=r"limit_batches: expected at least 1 batch, got 0"):
        TargetScaler(limit_batches=0)
    with pytest.raises(ValueError, match="contradict each other"):
        TargetScaler(baseline="none", fixed_baseline={"energy": {1: 2.0}})


def test_losses_do_not_depend_on_units(tmp_path):
    """A change of units by powers of two leaves every loss the same to the last bit."""
    runs = []
    factors = {"energy": 4096.0, "dipole": 0.25, "polarizability": 2.0**-9, "charges": 2.0**30}
    for changed in ({}, *({name: factor} for name, factor in factors.items()), factors):
        torch.manual_seed(0)
        data, net = SmallData(factors=changed), SmallNet()
        trainer = quiet_trainer(tmp_path, callbacks=[scaler_callback()], max_epochs=3)
        trainer.fit(net, data)
        predictions = trainer.predict(net, data)
        runs.append((changed, net.losses, predictions))
    _, losses, reference = runs[0]
    for changed, ours, predictions in runs[1:]:
        assert ours == losses, changed
        for batch, in_old_units in zip(predictions, reference, strict=True):
            for name, tensor in batch.items():
                factor = changed.get(name, 1.0)
                for block, old in zip(tensor.blocks(), in_old_units[name].blocks(), strict=True):
                    assert torch.equal(block.values, factor * old.values)
                    for parameter in block.gradients_list():
                        assert torch.equal(
                            block.gradient(parameter).values,
                            factor * old.gradient(parameter).values,
                        )


def test_relative_errors_do_not_depend_on_units_that_are_no_powers_of_two(tmp_path):
    """kJ/mol instead of eV, the network in float64."""
    errors = []
    for factor in (1.0, 96.48533212331):
        torch.manual_seed(0)
        net = SmallNet()
        trainer = quiet_trainer(tmp_path, callbacks=[scaler_callback()], precision="64-true")
        trainer.fit(net, SmallData(factors={"energy": factor}))
        logged = trainer.callback_metrics
        errors.append(
            {
                name: value.item() / (factor if "energy" in name else 1.0)
                for name, value in logged.items()
            }
        )
    assert errors[0].keys() == errors[1].keys()
    for name, value in errors[0].items():
        assert errors[1][name] == pytest.approx(value, rel=1e-9), name


class SequentialData(SmallData):
    """Not shuffled, so that runs can be compared step by step."""

    def train_dataloader(self):
        return torch.utils.data.DataLoader(self.train, batch_size=4, collate_fn=self.collate_fn)


@pytest.mark.parametrize("kind", ["ema", "swa"])
def test_checkpoints_of_averaged_weights_hold_the_scales(tmp_path, kind):
    """These callbacks copy the module before the fit and save the copy."""
    data, net = SmallData(), SmallNet()
    averaging = (
        EMAWeightAveraging()
        if kind == "ema"
        else StochasticWeightAveraging(0.01, swa_epoch_start=1)
    )
    trainer = quiet_trainer(tmp_path, callbacks=[averaging, scaler_callback()], max_epochs=2)
    trainer.fit(net, data)
    trainer.save_checkpoint(tmp_path / "per_atom.ckpt")
    loaded = SmallNet.load_from_checkpoint(tmp_path / "per_atom.ckpt", weights_only=True)
    assert net.scaler.fitted
    assert_same_scales(loaded.scaler, net.scaler)


def test_a_strategy_that_restores_after_the_fit_start(tmp_path):
    """ModelParallelStrategy: no second pass on a resume, and the restored scales are used."""
    data, net = SmallData(), SmallNet()
    trainer = quiet_trainer(tmp_path, callbacks=[scaler_callback()])
    trainer.fit(net, data)
    trainer.save_checkpoint(tmp_path / "net.ckpt")

    class Late(SingleDeviceStrategy):
        @property
        def restore_checkpoint_after_setup(self):
            return True

    for path, reads in ((None, 2 * 22), (tmp_path / "net.ckpt", 22)):
        again, more = SmallNet(), SmallData(factors={"dipole": 2.0})
        strategy = Late(device=torch.device("cpu"))
        options = {"strategy": strategy, "max_epochs": 1 if path is None else 2}
        trainer = quiet_trainer(tmp_path, callbacks=[scaler_callback()], **options)
        trainer.fit(again, more, ckpt_path=path, weights_only=True)
        assert len(more.train.reads) == reads
    assert_same_scales(again.scaler, net.scaler)


def test_fixed_scales_of_some_targets_leave_the_others_to_the_pass(tmp_path):
    """The first batch has one target only; without named targets nobody knows what comes later."""

    def energies_first(items):
        batch = collate(items)
        first = items[0] is first_item
        return {"system": batch["system"], "charges": batch["charges"]} if first else batch

    data = SequentialData(collate_fn=energies_first)
    first_item = data.train.items[0]
    callback = TargetScaler(fixed_scales={"charges": 2.0}, baseline="none")
    net = SmallNet()
    quiet_trainer(tmp_path, callbacks=[callback], limit_val_batches=0).fit(net, data)
    assert set(net.scaler.targets) == {"energy", "dipole", "polarizability", "charges"}
