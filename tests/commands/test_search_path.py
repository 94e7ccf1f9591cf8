"""The shared configs, seen from any Hydra application of the environment."""

import inspect
import os
import subprocess
import sys
from pathlib import Path

import hydra
import pytest
from hydra import compose, initialize, initialize_config_dir
from hydra.errors import ConfigCompositionException
from hydra.utils import instantiate
from lightning.pytorch.callbacks import ModelCheckpoint
from omegaconf import OmegaConf
from omegaconf.errors import MissingMandatoryValue
from small_training import SmallData, SmallNet, per_target_scales

from lightning_scaler import TargetScaler

SUPPORT = Path(__file__).parents[1] / "support"

# The folders and the defaults of github.com/ashleve/lightning-hydra-template.
PROJECT = {
    "configs/train.yaml": """
defaults:
  - _self_
  - callbacks: default
  - trainer: default
  - experiment: null
""",
    "configs/trainer/default.yaml": """
_target_: lightning.pytorch.trainer.Trainer
default_root_dir: ${hydra:runtime.output_dir}
accelerator: cpu
max_epochs: 1
logger: false
enable_progress_bar: false
""",
    "configs/callbacks/default.yaml": """
defaults:
  - model_checkpoint
  - early_stopping
  - _self_

early_stopping:
  patience: 100
""",
    "configs/callbacks/model_checkpoint.yaml": """
model_checkpoint:
  _target_: lightning.pytorch.callbacks.ModelCheckpoint
  filename: "{epoch}-{val/energy/rmse_per_atom:.1f}"
  auto_insert_metric_name: false
  monitor: val/energy/rmse_per_atom
""",
    "configs/callbacks/early_stopping.yaml": """
early_stopping:
  _target_: lightning.pytorch.callbacks.EarlyStopping
  monitor: val/loss
  patience: 3
""",
    "configs/experiment/scaled.yaml": """
# @package _global_
defaults:
  - override /callbacks: [default, target_scaler]

callbacks:
  target_scaler:
    intensive_targets: [dipole, polarizability]
    fixed_scales: {energy: 0.5}
""",
    "src/train.py": """
import sys

import hydra


@hydra.main(version_base="1.3", config_path="../configs", config_name="train.yaml")
def main(config):
    print("torch imported:", "torch" in sys.modules)
    from small_training import SmallData, SmallNet, per_target_scales

    callbacks = [hydra.utils.instantiate(part) for part in config.callbacks.values()]
    trainer = hydra.utils.instantiate(config.trainer, callbacks=callbacks)
    net = SmallNet()
    trainer.fit(net, SmallData())
    print("callbacks:", *sorted(type(callback).__name__ for callback in trainer.callbacks))
    print("energy scale:", per_target_scales(net.scaler, "energy"))


main()
""",
}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A project laid out like lightning-hydra-template."""
    folder = tmp_path_factory.mktemp("project")
    for name, text in PROJECT.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def build_callback(*overrides):
    with initialize(version_base="1.3", config_path=None):
        config = compose(overrides=["+callbacks=target_scaler", *overrides])
    return instantiate(config.callbacks.target_scaler)


def callbacks_of(project, *overrides):
    """The configs of the callbacks that the project composes, by name."""
    with initialize_config_dir(str(project / "configs"), version_base="1.3"):
        return compose("train", list(overrides)).callbacks


@pytest.mark.slow
def test_a_project_laid_out_like_the_template_trains_with_the_scaler_and_its_callbacks(project):
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "src/train.py", "hydra.run.dir=run", "experiment=scaled"],
        cwd=project,
        env={**os.environ, "PYTHONPATH": str(SUPPORT)},
        capture_output=True,
        text=True,
        check=False,
    )
    printed = result.stdout.splitlines()
    assert printed[:1] == ["torch imported: False"], result.stderr
    callbacks = next(line for line in printed if line.startswith("callbacks:")).split()[1:]
    assert {"EarlyStopping", "ModelCheckpoint", "TargetScaler"} <= set(callbacks), result.stderr
    assert printed[-1] == "energy scale: [0.5]"
    (checkpoint,) = (project / "run" / "checkpoints").rglob("*")
    assert checkpoint.name.startswith("0-")


@pytest.mark.parametrize(
    "choice", ["target_scaler", "target_scaler_energy_forces", "target_scaler_multitarget"]
)
def test_a_list_of_choices_keeps_the_default_callbacks(project, choice):
    callbacks = callbacks_of(project, f"callbacks=[default,{choice}]")
    assert sorted(callbacks) == ["early_stopping", "model_checkpoint", "target_scaler"]
    assert callbacks.early_stopping.patience == 100
    parameters = inspect.signature(TargetScaler).parameters
    assert set(callbacks.target_scaler) - {"_target_", "_convert_"} == set(parameters)


def show_help(project, monkeypatch, capsys):
    """What a project prints for ``--help``."""
    monkeypatch.setattr(sys, "argv", ["train.py", "--help"])
    configs = str(project / "configs")
    application = hydra.main(version_base="1.3", config_path=configs, config_name="train")(print)
    with pytest.raises(SystemExit) as stopped:
        application()
    assert stopped.value.code == 0
    return capsys.readouterr().out


@pytest.mark.slow
def test_the_help_of_another_application_lists_our_callbacks_alone(project, monkeypatch, capsys):
    groups = show_help(project, monkeypatch, capsys).split("\n== Config ==")[0].splitlines()
    listed = [line for line in groups if ": " in line]
    assert listed == [
        "callbacks: default, early_stopping, model_checkpoint, target_scaler, "
        "target_scaler_energy_forces, target_scaler_multitarget",
        "experiment: scaled",
        "trainer: default",
    ]


@pytest.mark.slow
def test_a_list_of_callbacks_in_the_trainer_takes_the_scaler_by_its_class(tmp_path):
    config = OmegaConf.create(
        """
        _target_: lightning.pytorch.Trainer
        accelerator: cpu
        max_epochs: 1
        logger: false
        enable_progress_bar: false
        enable_model_summary: false
        callbacks:
          - _target_: lightning.pytorch.callbacks.ModelCheckpoint
            save_top_k: 0
          - _target_: lightning_scaler.TargetScaler
            intensive_targets: [dipole, polarizability]
            fixed_scales: {energy: 0.5, charges: {H: 1, 6: 2, O: 3}}
            baseline: {dipole: none, energy: {_target_: lightning_scaler.ZBL}}
            loss_weights: {energy/positions: 4}
        """
    )
    trainer = instantiate(config, default_root_dir=str(tmp_path))
    assert [type(callback) for callback in trainer.callbacks] == [TargetScaler, ModelCheckpoint]
    net = SmallNet()
    trainer.fit(net, SmallData())
    assert per_target_scales(net.scaler, "energy") == [0.5]
    assert per_target_scales(net.scaler, "charges") == [1.0, 2.0, 3.0]
    assert net.scaler.additive.name == "ZBL"


def test_the_preset_for_energies_and_forces_fits_the_energy_and_its_gradient(project):
    config = callbacks_of(project, "callbacks=[default,target_scaler_energy_forces]")
    callback = instantiate(config.target_scaler)
    assert callback.targets == ("energy",)
    assert callback.loss_weights == {"energy": 1.0, "energy/positions": 1.0}


def test_a_weight_on_the_command_line_is_merged_into_those_of_the_preset(project):
    config = callbacks_of(
        project,
        "callbacks=[default,target_scaler_energy_forces]",
        "callbacks.target_scaler.loss_weights={energy/positions: 4}",
    )
    assert config.target_scaler.loss_weights == {"energy": 1, "energy/positions": 4}


def test_the_preset_for_several_targets_asks_for_both_lists(project):
    preset = "callbacks=[default,target_scaler_multitarget]"
    with pytest.raises(MissingMandatoryValue, match=r"callbacks\.target_scaler\.targets"):
        instantiate(callbacks_of(project, preset).target_scaler)
    targets = "callbacks.target_scaler.targets=[energy,gap]"
    with pytest.raises(MissingMandatoryValue, match=r"target_scaler\.intensive_targets"):
        instantiate(callbacks_of(project, preset, targets).target_scaler)
    intensive = "callbacks.target_scaler.intensive_targets=[gap]"
    no_baseline = "callbacks.target_scaler.baseline={gap: none}"
    callback = instantiate(
        callbacks_of(project, preset, targets, intensive, no_baseline).target_scaler
    )
    assert repr(callback) == (
        "TargetScaler(targets=('energy', 'gap'), intensive_targets=('gap',), "
        "baseline={'gap': 'none'})"
    )


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
