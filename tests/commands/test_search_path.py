"""The shared configs, seen from any Hydra application of the environment."""

import subprocess
import sys

import pytest
from hydra import compose, initialize
from hydra.errors import ConfigCompositionException
from hydra.utils import instantiate

APPLICATION = """
import sys
import hydra

@hydra.main(version_base="1.3", config_path=None)
def main(config):
    print("torch imported:", "torch" in sys.modules)
    print(config.callbacks.target_scaler.intensive_targets)

main()
"""


def build_callback(*overrides):
    with initialize(version_base="1.3", config_path=None):
        config = compose(overrides=["+callbacks=target_scaler", *overrides])
    return instantiate(config.callbacks.target_scaler)


@pytest.mark.slow
def test_any_application_finds_the_callback_without_importing_torch(tmp_path):
    (tmp_path / "application.py").write_text(APPLICATION)
    overrides = ["+callbacks=target_scaler", "callbacks.target_scaler.intensive_targets=[dipole]"]
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "application.py", "hydra.run.dir=.", *overrides],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.stdout.splitlines() == ["torch imported: False", "['dipole']"], result.stderr


def test_settings_of_the_callback_from_overrides():
    callback = build_callback(
        "callbacks.target_scaler.fixed_scales={energy: 2, forces: {1: 0.5, 8: 1}}",
        "+callbacks.target_scaler.fixed_scales.charges.6=0.25",
        "callbacks.target_scaler.intensive_targets=[dipole]",
        "callbacks.target_scaler.loss_weights={energy/positions: 4}",
        "callbacks.target_scaler.balance_loss=false",
    )
    assert callback.loss_weights == {"energy/positions": 4.0}
    assert callback.balance_loss is False
    assert callback.fixed_scales == {
        "energy": 2.0,
        "forces": {1: 0.5, 8: 1.0},
        "charges": {6: 0.25},
    }
    assert callback.intensive_targets == {"dipole"}
    assert str(callback.baseline) == "CompositionBaseline(fixed={})"
    assert callback.additive is None


@pytest.mark.parametrize(
    ("override", "baseline", "additive"),
    [
        ("baseline=none", "None", "None"),
        (
            "fixed_baseline={energy: {1: -13.6, 8: -2041}}",
            "CompositionBaseline(fixed={'energy': {1: -13.6, 8: -2041.0}})",
            "None",
        ),
        (
            "baseline={_target_: lightning_scaler.ZBL, target: U}",
            "CompositionBaseline(fixed={})",
            "ZBL(target='U')",
        ),
    ],
)
def test_baselines_of_the_callback_from_overrides(override, baseline, additive):
    callback = build_callback(f"callbacks.target_scaler.{override}")
    assert (str(callback.baseline), str(callback.additive)) == (baseline, additive)


def test_a_misspelled_setting_of_the_callback_is_refused():
    with pytest.raises(
        ConfigCompositionException, match=r"override 'callbacks\.target_scaler\.fixed_scale'"
    ):
        build_callback("callbacks.target_scaler.fixed_scale=2")
