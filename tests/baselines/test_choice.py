"""The ``baseline`` argument, for all targets or for each of them."""

import pytest
import torch
from lightning.pytorch import Trainer
from small_training import SmallData, SmallNet, quiet_trainer

from lightning_scaler import ZBL, CompositionBaseline, TargetScaler
from lightning_scaler.baselines import parse_baseline


def test_one_choice_for_all_targets():
    module = ZBL()
    assert parse_baseline("composition") == (CompositionBaseline(), None)
    assert parse_baseline("none") == (None, None)
    assert parse_baseline(module) == (CompositionBaseline(), module)
    fixed = {"energy": {1: -13.6}}
    assert parse_baseline("composition", fixed) == (CompositionBaseline(fixed), None)


def test_a_choice_for_each_target():
    module = ZBL()
    chosen = parse_baseline({"gap": "none", "energy": module, "q": "composition"})
    assert chosen == (CompositionBaseline(excluded=["gap"]), module)


@pytest.mark.parametrize(
    ("setting", "error", "message"),
    [
        ("mean", ValueError, r"baseline: expected one of \['composition', 'none'\] .* got 'mean'"),
        (None, ValueError, "or one of these for each target by its name, got None"),
        ({"gap": None}, ValueError, "baseline of target 'gap': expected one of .* got None"),
        (-13.6, ValueError, "got -13.6; give the contributions of atomic types as fixed_baseline="),
        (
            {"energy": {"H": -13.6}},
            ValueError,
            "baseline of target 'energy': .* got {'H': -13.6}; .* as fixed_baseline=",
        ),
        (ZBL, TypeError, r"got the class ZBL; write ZBL\(\)"),
        ({"e": ZBL}, TypeError, r"baseline of target 'e': .* got the class ZBL; write ZBL\(\)"),
        ({"e": ZBL(), "u": ZBL()}, ValueError, "expected one additive module, got 2"),
    ],
)
def test_anything_else_is_an_error(setting, error, message):
    with pytest.raises(error, match=message):
        TargetScaler(baseline=setting)


@pytest.mark.parametrize("setting", ["none", {"energy": "none"}])
def test_a_fixed_baseline_contradicts_none(setting):
    with pytest.raises(ValueError, match="contradict each other; leave out one of them"):
        TargetScaler(baseline=setting, fixed_baseline={"energy": {1: -13.6}})


def test_the_callback_shows_the_setting():
    assert repr(TargetScaler(baseline={"gap": "none"})) == "TargetScaler(baseline={'gap': 'none'})"
    assert repr(TargetScaler(baseline="none")) == "TargetScaler(baseline='none')"


def trained(tmp_path, **settings):
    net = SmallNet()
    callback = TargetScaler(intensive_targets=["dipole", "polarizability"], **settings)
    trainer: Trainer = quiet_trainer(tmp_path, callbacks=[callback])
    trainer.fit(net, SmallData())
    return net, trainer


@pytest.mark.slow
def test_a_fit_with_a_baseline_per_target(tmp_path):
    net, _ = trained(tmp_path, baseline={"charges": "none"})
    assert net.scaler.targets["charges"].weights == {}
    assert list(net.scaler.targets["energy"].weights) == [(0,)]
    alone, _ = trained(tmp_path, baseline="none")
    of_both = [n.scaler.scales["charges"].block().values for n in (net, alone)]
    assert torch.equal(*of_both)


@pytest.mark.slow
def test_a_restored_baseline_per_target_must_be_requested_again(tmp_path):
    net, trainer = trained(tmp_path, baseline={"charges": "none"})
    trainer.save_checkpoint(tmp_path / "net.ckpt")
    other = SmallNet.load_from_checkpoint(tmp_path / "net.ckpt")
    options = {"intensive_targets": ["dipole", "polarizability"]}
    with pytest.raises(ValueError, match=r"baseline: charges was 'none' and is 'composition'"):
        quiet_trainer(tmp_path, callbacks=[TargetScaler(**options)]).fit(other, SmallData())
    again = TargetScaler(baseline={"charges": "none"}, **options)
    quiet_trainer(tmp_path, callbacks=[again]).fit(other, SmallData())
    assert torch.equal(
        other.scaler.scales["charges"].block().values, net.scaler.scales["charges"].block().values
    )


def test_an_unknown_target_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"baseline names the target 'charge'.*mean 'charges'"):
        trained(tmp_path, baseline={"charge": "none"})
