"""What TargetScaler says of arguments, trainers, stages and restored scales that do not suit."""

import pytest
import torch
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder
from lightning.pytorch.strategies import SingleDeviceStrategy
from metatomic.torch import System
from small_training import (
    SmallData,
    SmallNet,
    assert_same_scales,
    per_target_scales,
    quiet_trainer,
    scaler_callback,
)
from torchmetrics import MeanAbsolutePercentageError, MetricCollection

from lightning_scaler import TargetScaler

OPTIONS = {"limit_val_batches": 0, "num_sanity_val_steps": 0}


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"enabled": "false"}, "enabled: expected True or False, got 'false'"),
        ({"enabled": 0}, "enabled: expected True or False, got 0"),
        ({"limit_batches": "all"}, "limit_batches: expected a number of batches, or None for all"),
        ({"limit_batches": 2.0}, "limit_batches: expected a number of batches.* got 2.0"),
        ({"limit_batches": True}, "limit_batches: expected a number of batches.* got True"),
    ],
)
def test_settings_of_another_type_are_errors(setting, message):
    with pytest.raises(TypeError, match=message):
        TargetScaler(**setting)


def test_two_target_scalers_are_an_error_with_their_settings(tmp_path):
    callbacks = [TargetScaler(targets=["energy"]), TargetScaler(enabled=False)]
    message = (
        r"expected one TargetScaler among the callbacks of the Trainer, got 2: "
        r"TargetScaler\(.*\); TargetScaler\(.*\); put all settings into one of them"
    )
    with pytest.raises(ValueError, match=message):
        quiet_trainer(tmp_path, callbacks=callbacks).fit(SmallNet(), SmallData())


@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_an_evaluation_before_the_fit_is_an_error_that_says_what_to_do(tmp_path, stage):
    trainer = quiet_trainer(tmp_path, callbacks=[scaler_callback()])
    message = (
        rf"trainer.{stage}: SmallNet has no target scales yet, and TargetScaler fits them in "
        r"trainer.fit; call trainer.fit first, give ckpt_path=..., or load SmallNet.load_from_"
    )
    with pytest.raises(RuntimeError, match=message):
        getattr(trainer, stage)(SmallNet(), SmallData())


@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_the_ways_out_of_an_evaluation_before_the_fit_work(tmp_path, stage):
    net = SmallNet()
    trainer = quiet_trainer(tmp_path, callbacks=[scaler_callback()], **OPTIONS)
    trainer.fit(net, SmallData())
    trainer.save_checkpoint(tmp_path / "net.ckpt")
    options = {"callbacks": [scaler_callback()]}
    quiet_trainer(tmp_path, **options).__getattribute__(stage)(net, SmallData())
    fresh, path = SmallNet(), tmp_path / "net.ckpt"
    evaluate = getattr(quiet_trainer(tmp_path, **options), stage)
    evaluate(fresh, SmallData(), ckpt_path=path, weights_only=True)
    assert_same_scales(fresh.scaler, net.scaler)
    loaded = SmallNet.load_from_checkpoint(path, weights_only=True)
    getattr(quiet_trainer(tmp_path, **options), stage)(loaded, SmallData())


def without_scales(path):
    checkpoint = torch.load(path, weights_only=True)
    del checkpoint["target_scaler"], checkpoint["state_dict"]["scaler._extra_state"]
    torch.save(checkpoint, path)


class Late(SingleDeviceStrategy):
    @property
    def restore_checkpoint_after_setup(self):
        return True


@pytest.mark.filterwarnings("ignore:the checkpoint has no target scales")
@pytest.mark.parametrize("tuner", [LearningRateFinder, BatchSizeFinder])
@pytest.mark.parametrize("late", [False, True])
def test_a_tuner_before_the_scales_of_a_checkpoint_is_an_error(tmp_path, tuner, late):
    trainer = quiet_trainer(tmp_path, callbacks=[scaler_callback()], **OPTIONS)
    trainer.fit(SmallNet(), SmallData())
    trainer.save_checkpoint(tmp_path / "net.ckpt")
    without_scales(tmp_path / "net.ckpt")
    options = {"callbacks": [tuner(), scaler_callback()], "enable_checkpointing": True, **OPTIONS}
    if late:
        options["strategy"] = Late(device=torch.device("cpu"))
    message = (
        f"{tuner.__name__} trains before the target scales are fitted, because .* has none"
        ".*; use the tuner in a fit without ckpt_path, or a checkpoint with scales"
    )
    with pytest.raises(RuntimeError, match=message):
        quiet_trainer(tmp_path, **options).fit(
            SmallNet(), SmallData(), ckpt_path=tmp_path / "net.ckpt", weights_only=True
        )


def fitted_net(folder, **options):
    net = SmallNet()
    trainer = quiet_trainer(folder, callbacks=[scaler_callback(**options)], **OPTIONS)
    trainer.fit(net, SmallData())
    return net


def test_kept_scales_are_reported_with_the_rms_of_the_new_data(tmp_path, messages):
    """All 22 structures in one batch of the data of the fit: 1 by definition."""
    net = fitted_net(tmp_path)
    data = SmallData(batch_size=22)
    quiet_trainer(tmp_path, callbacks=[scaler_callback()], **OPTIONS).fit(net, data)
    assert len(data.train.reads) == 22
    kept = [record.message for record in messages.records if "are kept" in record.message]
    assert kept == [
        "TargetScaler: the scales that the module already had (from a checkpoint or an earlier "
        "fit) are kept, without a data pass. RMS of the first training batch in loss space: "
        "energy 1, dipole 1, polarizability 1, charges 1"
    ]


@pytest.mark.slow
@pytest.mark.parametrize("factor", [32.0, 1 / 32])
def test_kept_scales_that_do_not_suit_new_data_are_a_warning_that_names_refit(tmp_path, factor):
    """The dipole has no baseline: in other units, its RMS is that factor."""
    net, data = fitted_net(tmp_path), SmallData(batch_size=22, factors={"dipole": factor})
    trainer = quiet_trainer(tmp_path, callbacks=[scaler_callback()], **OPTIONS)
    message = rf"in loss space is {factor:.3g} for 'dipole', where about 1 .*TargetScaler\(refit="
    with pytest.warns(UserWarning, match=message):
        trainer.fit(net, data)
    # The way out.
    quiet_trainer(tmp_path, callbacks=[scaler_callback(refit=True)], **OPTIONS).fit(net, data)
    quiet_trainer(tmp_path, callbacks=[scaler_callback()], **OPTIONS).fit(net, data)
    assert per_target_scales(net.scaler, "dipole")[0] == pytest.approx(
        factor * per_target_scales(fitted_net(tmp_path).scaler, "dipole")[0], rel=1e-12
    )


class WithoutMasks(SmallNet):
    def unpack_batch(self, batch):
        systems, targets, _ = super().unpack_batch(batch)
        return systems, targets


class TakingMembersOut(SmallNet):
    def unpack_batch(self, batch):
        systems = batch.pop("system")
        return systems, batch, {}


@pytest.mark.parametrize("net_class", [WithoutMasks, TakingMembersOut])
def test_kept_scales_are_compared_with_what_an_unpack_batch_returns(tmp_path, net_class):
    net = net_class()
    net.scaler = fitted_net(tmp_path).scaler
    data = SmallData(batch_size=22, factors={"dipole": 32.0})
    trainer = quiet_trainer(tmp_path, callbacks=[scaler_callback()], **OPTIONS)
    with pytest.warns(UserWarning, match="in loss space is 32 for 'dipole', where about 1"):
        trainer.fit(net, data)
    assert len(net.losses) == 1


def test_kept_scales_are_compared_with_the_data_when_another_target_is_fitted(tmp_path, messages):
    names = ["energy", "dipole", "polarizability"]
    net = SmallNet()
    callbacks = [scaler_callback(targets=names)]
    quiet_trainer(tmp_path, callbacks=callbacks, **{**OPTIONS, "max_epochs": 0}).fit(
        net, SmallData()
    )
    data = SmallData(batch_size=22, factors={"dipole": 32.0})
    callbacks = [scaler_callback(targets=[*names, "charges"])]
    with pytest.warns(UserWarning, match="in loss space is 32 for 'dipole', where about 1"):
        quiet_trainer(tmp_path, callbacks=callbacks, **OPTIONS).fit(net, data)
    kept = [record.message for record in messages.records if "are kept" in record.message]
    assert kept == [
        "TargetScaler: the scales of dipole, energy, polarizability that the module already had "
        "(from a checkpoint or an earlier fit) are kept. RMS of the first training batch in loss "
        "space: energy 1, dipole 32, polarizability 1"
    ]


@pytest.mark.parametrize("settings", [{"enabled": False}, {"fixed_scales": {"dipole": 1e-3}}])
def test_scales_that_were_chosen_are_no_reason_for_a_warning(tmp_path, settings):
    net = fitted_net(tmp_path, **settings)
    trainer = quiet_trainer(tmp_path, callbacks=[scaler_callback(**settings)], **OPTIONS)
    trainer.fit(net, SmallData(batch_size=22))


def test_the_table_says_what_was_fitted_without_a_progress_bar(tmp_path, capsys):
    names = ["energy", "dipole", "polarizability"]
    net = SmallNet()
    options = {**OPTIONS, "max_epochs": 0}
    callbacks = [scaler_callback(targets=names)]
    quiet_trainer(tmp_path, callbacks=callbacks, **options).fit(net, SmallData())
    out = capsys.readouterr().out
    assert "TargetScaler: fitted to the training data: dipole, energy" in out
    assert "kept" not in out
    assert "RMS of" in out
    callbacks = [scaler_callback(targets=[*names, "charges"])]
    quiet_trainer(tmp_path, callbacks=callbacks, **options).fit(net, SmallData())
    out = " ".join(capsys.readouterr().out.split())
    assert "fitted to the training data: charges; kept from before: dipole, energy, polar" in out


class ManyElements(SmallData):
    """22 structures with 89 elements, few of which are in any batch."""

    def __init__(self):
        super().__init__()
        for index, (system, numbers) in enumerate(self.train.items):
            generator = torch.Generator().manual_seed(index)
            types = torch.randint(1, 90, (len(system),), generator=generator).int()
            changed = System(types, system.positions, system.cell, system.pbc)
            self.train.items[index] = (changed, numbers)
        self.held_out = self.train


@pytest.mark.parametrize("seed", range(5))
def test_a_fast_dev_run_succeeds_on_data_with_many_elements(tmp_path, seed):
    """Without a warning of energies that are zero: the baseline explains those of few batches."""
    torch.manual_seed(seed)
    net, data = SmallNet(), ManyElements()
    trainer = quiet_trainer(tmp_path, callbacks=[scaler_callback()], fast_dev_run=2)
    unseen = "atomic types that do not occur in them use the RMS over all types and no baseline"
    with pytest.warns(UserWarning, match=unseen) as warned:
        trainer.fit(net, data)
    assert len(net.losses) == 2
    assert all(map(torch.isfinite, map(torch.tensor, net.losses)))
    assert sum("fast_dev_run" in str(warning.message) for warning in warned) == 1


def test_a_fast_dev_run_succeeds_with_metrics_that_need_the_baseline(tmp_path):
    class WithPercentages(SmallNet):
        def configure_metrics(self):
            return MetricCollection({"mape": MeanAbsolutePercentageError()})

    torch.manual_seed(0)
    trainer = quiet_trainer(tmp_path, callbacks=[scaler_callback()], fast_dev_run=2)
    with pytest.warns(UserWarning, match="atomic types that do not occur in them"):
        trainer.fit(WithPercentages(), ManyElements())
    assert torch.isfinite(trainer.callback_metrics["val/energy/mape_per_atom"])
