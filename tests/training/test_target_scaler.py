"""TargetScaler in runs of a real Trainer: its fits, restored scales, and errors."""

import pytest
import torch
from builders import labels
from lightning.pytorch.callbacks import (
    Callback,
    EMAWeightAveraging,
    StochasticWeightAveraging,
)
from lightning.pytorch.strategies import SingleDeviceStrategy
from metatensor.torch import TensorBlock, TensorMap
from small_training import (
    PlainNet,
    SmallData,
    SmallNet,
    assert_same_scales,
    baseline_weights,
    collate,
    per_target_scales,
    quiet_trainer,
    scaler_callback,
)

from lightning_scaler import CompositionBaseline, ScaleAccumulator, Scaler, TargetScaler
from lightning_scaler.data_pass import training_data


def test_the_data_pass_reads_every_sample_once_and_equals_an_accumulator(tmp_path):
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


@pytest.mark.slow
@pytest.mark.parametrize("source", ["datamodule", "loader", "module", "several"])
def test_data_from_a_datamodule_loaders_or_the_module_give_the_same_scales(tmp_path, source):
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
        # Two halves that training iterates together; the pass reads each of them once.
        halves = [torch.utils.data.Subset(data.train, part) for part in (range(15), range(15, 22))]
        loaders = [
            torch.utils.data.DataLoader(half, batch_size=4, collate_fn=collate) for half in halves
        ]

        trainer.fit(net, {"a": loaders[0], "b": loaders[1]}, data.val_dataloader())
    assert_same_scales(net.scaler, reference.scaler, rtol=1e-11)


@pytest.mark.slow
def test_resuming_and_loading_restore_the_scales_without_a_data_pass(tmp_path):
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
    assert len(more.train.reads) == 22  # the second epoch
    assert_same_scales(resumed.scaler, net.scaler)


def test_settings_that_contradict_those_of_restored_scales_are_an_error(tmp_path):
    data, net = SmallData(), SmallNet()
    quiet_trainer(tmp_path, callbacks=[scaler_callback()]).fit(net, data)
    other = TargetScaler(enabled=False, intensive_targets=["dipole"], fixed_scales={"charges": 2.0})
    message = (
        r"enabled was True and is False; intensive_targets: polarizability was True and is False; "
        r"fixed_scales: charges was None and is 2.0; use the same settings, or set refit=True"
    )
    with pytest.raises(ValueError, match=message):
        quiet_trainer(tmp_path, callbacks=[other]).fit(net, data)


def test_unknown_names_in_settings_are_errors_even_if_scales_are_kept(tmp_path):
    net = SmallNet()
    quiet_trainer(tmp_path, callbacks=[scaler_callback()]).fit(net, SmallData())
    other = scaler_callback(fixed_scales={"enrgy": 2.0})
    with pytest.raises(ValueError, match=r"fixed_scales names the target 'enrgy'.*'energy'\?"):
        quiet_trainer(tmp_path, callbacks=[other]).fit(net, SmallData())


@pytest.mark.slow
def test_an_iterable_dataset_gives_the_scales_of_a_map_style_one(tmp_path):

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


def test_targets_without_scales_are_fitted_and_the_others_are_kept(tmp_path):
    net, all_but_charges = SmallNet(), ["energy", "dipole", "polarizability"]
    no_steps = {"max_epochs": 0, "limit_val_batches": 0}
    settings = {
        "fixed_scales": {"dipole": 2.0},
        "fixed_baseline": {"energy": {1: -1000.0, 6: -2000.0, 8: -3000.0}},
    }
    first = scaler_callback(targets=all_but_charges, **settings)
    data = SmallData(factors={"dipole": 2.0})
    quiet_trainer(tmp_path, callbacks=[first], **no_steps).fit(net, data)
    expected = Scaler()
    expected.update(net.scaler)
    second = scaler_callback(targets=[*all_but_charges, "charges"], **settings)
    quiet_trainer(tmp_path, callbacks=[second]).fit(net, SmallData())
    reference = SmallNet()
    charges = TargetScaler(targets=["charges"])
    quiet_trainer(tmp_path, callbacks=[charges], **no_steps).fit(reference, SmallData())
    expected.update(reference.scaler)
    assert_same_scales(net.scaler, expected)


def test_disabled_scaling_has_scales_of_one_and_the_same_baseline(tmp_path):
    on, off = SmallNet(), SmallNet()
    quiet_trainer(tmp_path, callbacks=[scaler_callback()]).fit(on, SmallData())
    quiet_trainer(tmp_path, callbacks=[scaler_callback(enabled=False)]).fit(off, SmallData())
    for scales in off.scaler.scales.values():
        assert all(bool((block.values == 1.0).all()) for block in scales.blocks())
    for name in on.scaler.scales:
        assert baseline_weights(on.scaler, name) == baseline_weights(off.scaler, name)


def test_scales_of_a_fast_dev_run_are_replaced_by_the_next_fit(tmp_path):
    data, net = SmallData(), SmallNet()
    quiet_trainer(tmp_path, callbacks=[scaler_callback()], fast_dev_run=1).fit(net, data)
    assert len(data.train.reads) == 8  # one batch for the scales, one step
    assert net.scaler.settings.unseen_types == "pooled"
    data.train.reads.clear()
    quiet_trainer(tmp_path, callbacks=[scaler_callback()]).fit(net, data)
    assert len(data.train.reads) == 2 * 22
    assert net.scaler.settings.unseen_types == "error"


def test_another_fast_dev_run_keeps_the_scales_of_the_first(tmp_path):
    net, data, callbacks = SmallNet(), SmallData(factors={"dipole": 8.0}), [scaler_callback()]
    quiet_trainer(tmp_path, callbacks=callbacks, fast_dev_run=1).fit(net, SmallData())
    before = net.scaler.per_target_scales["dipole"].block().values
    with pytest.warns(UserWarning, match="14.3 for 'dipole', where about 1 is expected"):
        quiet_trainer(tmp_path, callbacks=callbacks, fast_dev_run=1).fit(net, data)
    assert torch.equal(net.scaler.per_target_scales["dipole"].block().values, before)
    assert len(data.train.reads) == 4  # one step


def test_limit_batches_reads_evenly_spaced_batches(tmp_path):
    data, net = SmallData(), SmallNet()
    trainer = quiet_trainer(
        tmp_path, callbacks=[scaler_callback(limit_batches=3)], limit_train_batches=2
    )
    trainer.fit(net, data)
    # Batches 1, 3 and 5 of the six: [4, 5, 6, 7], [12, ...], [20, 21].
    assert data.train.reads[:10] == [4, 5, 6, 7, 12, 13, 14, 15, 20, 21]


def test_limit_train_batches_does_not_limit_the_data_pass(tmp_path):
    data = SmallData()
    trainer = quiet_trainer(tmp_path, callbacks=[scaler_callback()], limit_train_batches=2)
    trainer.fit(SmallNet(), data)
    assert sorted(data.train.reads[:22]) == list(range(22))
    assert len(data.train.reads) == 22 + 2 * 4


@pytest.mark.parametrize("shown", [True, False])
def test_a_long_pass_shows_progress_unless_the_progress_bar_is_off(
    tmp_path, monkeypatch, capsys, shown
):
    monkeypatch.setattr(training_data, "SECONDS_WITHOUT_PROGRESS", 0.0)
    options = {"enable_progress_bar": shown, "limit_train_batches": 1, "limit_val_batches": 0}
    trainer = quiet_trainer(tmp_path, callbacks=[scaler_callback()], **options)
    trainer.fit(SmallNet(), SmallData())
    assert ("Fitting target scales" in capsys.readouterr().err) == shown


@pytest.mark.slow
def test_another_layout_than_that_of_restored_scales_is_an_error_before_a_step(tmp_path):
    trainer = quiet_trainer(tmp_path, callbacks=[scaler_callback()])
    trainer.fit(SmallNet(), SmallData())
    trainer.save_checkpoint(tmp_path / "net.ckpt")

    def with_another_property(items):
        batch = collate(items)
        charges = batch["charges"].block()
        other = TensorBlock(charges.values, charges.samples, [], labels("property", [7]))
        return {**batch, "charges": TensorMap(batch["charges"].keys, [other])}

    net, data = SmallNet(), SmallData(collate_fn=with_another_property)
    expected = r"target 'charges', block \(_=0\): expected properties property=\[0\]"
    options = {"max_epochs": 2, "num_sanity_val_steps": 0}
    trainer = quiet_trainer(tmp_path, callbacks=[scaler_callback()], **options)
    with pytest.raises(ValueError, match=rf"{expected}, as in the data of the fit, got .*\[7\]"):
        trainer.fit(net, data, ckpt_path=tmp_path / "net.ckpt", weights_only=True)
    assert net.losses == []


def test_a_module_without_the_mixin_is_an_error(tmp_path):
    with pytest.raises(TypeError, match=r"write class PlainNet\(TargetScalingMixin, LightningMod"):
        quiet_trainer(tmp_path, callbacks=[TargetScaler()]).fit(
            PlainNet(), SmallData().train_dataloader()
        )


def test_a_requested_target_that_is_not_in_the_data_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"'enery' was requested.*did you mean 'energy'\?"):
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


def test_infinite_values_are_an_error_that_names_target_and_block(tmp_path):
    data = SmallData()
    data.train.items[13][1]["dipole"][0, 2] = torch.inf
    with pytest.raises(ValueError, match=r"target 'dipole', block \(_=0\).*1 infinite values"):
        quiet_trainer(tmp_path, callbacks=[scaler_callback()]).fit(SmallNet(), data)


def test_infinite_gradients_are_an_error_that_names_target_block_and_gradient(tmp_path):
    data = SmallData()
    data.train.items[13][1]["gradient"][0, 2] = -torch.inf
    message = r"target 'energy', block \(_=0\), gradient 'positions': .* got 1 infinite value"
    with pytest.raises(ValueError, match=message):
        quiet_trainer(tmp_path, callbacks=[scaler_callback()]).fit(SmallNet(), data)


def test_an_unknown_format_of_batches_is_an_error(tmp_path):
    data = SmallData(collate_fn=lambda items: [system for system, _ in items])
    with pytest.raises(TypeError, match=r"override unpack_batch\(batch\)"):
        quiet_trainer(tmp_path, callbacks=[scaler_callback()]).fit(SmallNet(), data)


def test_invalid_arguments_are_errors_at_once():
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
    with pytest.raises(TypeError, match=r"got the class Linear; write Linear\(\)"):
        TargetScaler(baseline=torch.nn.Linear)


def test_an_unknown_argument_is_an_error_of_the_class_that_users_know():
    with pytest.raises(TypeError, match=r"^TargetScaler\.__init__\(\) got .* 'target'"):
        TargetScaler(target=["energy"])


def test_repr_shows_the_settings_that_differ_from_the_defaults():
    assert repr(TargetScaler()) == "TargetScaler()"
    callback = TargetScaler(
        enabled=False,
        targets=["energy"],
        fixed_scales={"energy": 2},
        intensive_targets=["gap", "dipole"],
        baseline=torch.nn.Identity(),
        fixed_baseline={"energy": {"1": -13.6}},
        unseen_types="pooled",
        system_labels="id",
        limit_batches=5,
        refit=True,
    )
    assert repr(callback) == (
        "TargetScaler(enabled=False, targets=('energy',), fixed_scales={'energy': 2.0}, "
        "intensive_targets=('dipole', 'gap'), baseline=Identity(), "
        "fixed_baseline={'energy': {1: -13.6}}, unseen_types='pooled', system_labels='id', "
        "limit_batches=5, refit=True)"
    )
    assert repr(TargetScaler(baseline="none")) == "TargetScaler(baseline='none')"
    # Without weights, not those stored with restored scales.
    assert repr(TargetScaler(loss_weights={}, units={})) == "TargetScaler(loss_weights={})"
    deep = torch.nn.Sequential(torch.nn.Identity())
    assert repr(TargetScaler(baseline=deep)) == "TargetScaler(baseline=Sequential(...))"


@pytest.mark.slow
def test_units_do_not_change_the_losses(tmp_path):
    """Powers of two are exact, so that losses are equal to the last bit."""
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


def test_units_do_not_change_the_relative_errors(tmp_path):
    """kJ/mol instead of eV, with the network in float64."""
    errors = []
    for factor in (1.0, 96.48533212331):
        torch.manual_seed(0)
        net = SmallNet()
        trainer = quiet_trainer(tmp_path, callbacks=[scaler_callback()], precision="64-true")
        trainer.fit(net, SmallData(factors={"energy": factor}))
        logged = trainer.callback_metrics
        errors.append(
            {
                name: value.item() / (factor if "energy" in name and "loss" not in name else 1.0)
                for name, value in logged.items()
            }
        )
    assert errors[0].keys() == errors[1].keys()
    for name, value in errors[0].items():
        assert errors[1][name] == pytest.approx(value, rel=1e-9), name


@pytest.mark.parametrize("kind", ["ema", "swa"])
def test_checkpoints_of_averaged_weights_have_the_scales(tmp_path, kind):
    """These callbacks copy the module before the fit and save the copy."""
    data, net = SmallData(), SmallNet()
    averaging = (
        EMAWeightAveraging()
        if kind == "ema"
        else StochasticWeightAveraging(0.01, swa_epoch_start=1)
    )
    trainer = quiet_trainer(tmp_path, callbacks=[averaging, scaler_callback()], max_epochs=2)
    trainer.fit(net, data)
    trainer.save_checkpoint(tmp_path / "averaged.ckpt")
    loaded = SmallNet.load_from_checkpoint(tmp_path / "averaged.ckpt", weights_only=True)
    assert net.scaler.fitted
    assert_same_scales(loaded.scaler, net.scaler)


@pytest.mark.slow
def test_a_strategy_that_restores_after_on_fit_start_has_no_second_data_pass(tmp_path):
    """As ModelParallelStrategy does; the restored scales are used."""
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


def test_several_processes_without_a_process_group_are_an_error(tmp_path):
    strategy = SingleDeviceStrategy(device=torch.device("cpu"))
    strategy.world_size = 2
    trainer = quiet_trainer(tmp_path, callbacks=[scaler_callback()], strategy=strategy)
    with pytest.raises(RuntimeError, match=r"expected a process group .* 2 processes, but SingleD"):
        trainer.fit(SmallNet(), SmallData())


def test_fixed_scales_of_some_targets_do_not_replace_the_data_pass(tmp_path):
    """The first batch has only the target with a fixed scale, but all targets are to be fitted."""

    def charges_first(items):
        batch = collate(items)
        first = items[0] is first_item
        return {"system": batch["system"], "charges": batch["charges"]} if first else batch

    data = SmallData(collate_fn=charges_first, shuffle=False)
    first_item = data.train.items[0]
    callback = TargetScaler(fixed_scales={"charges": 2.0}, baseline="none")
    net = SmallNet()
    quiet_trainer(tmp_path, callbacks=[callback], limit_val_batches=0).fit(net, data)
    assert set(net.scaler.scales) == {"energy", "dipole", "polarizability", "charges"}


TARGETS = {"energy", "dipole", "polarizability", "charges"}
WITHOUT_TRAINING = {"max_epochs": 0, "limit_val_batches": 0}


def fit(folder, net, data, **options):
    trainer = quiet_trainer(folder, callbacks=[scaler_callback(**options)], **WITHOUT_TRAINING)
    trainer.fit(net, data)


def test_refit_of_one_target_leaves_no_others(tmp_path):
    net = SmallNet()
    fit(tmp_path, net, SmallData())
    fit(tmp_path, net, SmallData(), targets=["charges"], intensive_targets=[], refit=True)
    assert set(net.scaler.scales) == {"charges"}


def test_refit_on_data_without_a_target_leaves_no_scales_of_it(tmp_path):
    def without_charges(items):
        return {name: part for name, part in collate(items).items() if name != "charges"}

    net = SmallNet()
    fit(tmp_path, net, SmallData())
    fit(tmp_path, net, SmallData(collate_fn=without_charges), refit=True)
    assert set(net.scaler.scales) == TARGETS - {"charges"}


@pytest.mark.parametrize("same_trainer", [False, True], ids=["two trainers", "one trainer"])
def test_one_callback_fits_every_fresh_module(tmp_path, same_trainer):
    """A factor of 8 is exact: the second module's scales are those of its own data."""
    callback, first, second = scaler_callback(), SmallNet(), SmallNet()
    trainer = quiet_trainer(tmp_path, callbacks=[callback], **WITHOUT_TRAINING)
    trainer.fit(first, SmallData())
    data = SmallData(factors={"dipole": 8.0})
    if not same_trainer:
        trainer = quiet_trainer(tmp_path, callbacks=[callback], **WITHOUT_TRAINING)
    trainer.fit(second, data)
    assert sorted(data.train.reads) == list(range(22))
    (before,), (after,) = (per_target_scales(net.scaler, "dipole") for net in (first, second))
    assert after == 8.0 * before


def test_one_callback_with_refit_fits_at_every_fit(tmp_path):
    callback, net, scales = scaler_callback(refit=True), SmallNet(), []
    for factor in (1.0, 8.0, 0.5):
        data = SmallData(factors={"dipole": factor})
        quiet_trainer(tmp_path, callbacks=[callback], **WITHOUT_TRAINING).fit(net, data)
        assert sorted(data.train.reads) == list(range(22))
        scales += per_target_scales(net.scaler, "dipole")
    assert scales == [scales[0], 8.0 * scales[0], 0.5 * scales[0]]


def test_a_strategy_that_restores_late_has_scales_without_a_sanity_check(tmp_path):
    class Late(SingleDeviceStrategy):
        @property
        def restore_checkpoint_after_setup(self):
            return True

    data, net = SmallData(), SmallNet()
    options = {"strategy": Late(device=torch.device("cpu")), "num_sanity_val_steps": 0}
    quiet_trainer(tmp_path, callbacks=[scaler_callback()], **options).fit(net, data)
    assert len(data.train.reads) == 2 * 22
    assert len(net.losses) == 6


@pytest.mark.parametrize(
    ("setting", "value"),
    [("fixed_scales", {"dipole": 2.0}), ("fixed_baseline", {"charges": {1: 0.5}})],
)
def test_settings_of_targets_that_are_not_requested_are_errors(tmp_path, setting, value):
    callback = TargetScaler(targets=["energy"], **{setting: value})
    with pytest.raises(ValueError, match=f"{setting} names the target '{next(iter(value))}'"):
        quiet_trainer(tmp_path, callbacks=[callback]).fit(SmallNet(), SmallData())
