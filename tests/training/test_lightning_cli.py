"""TargetScaler from LightningCLI (jsonargparse) and from hydra-zen."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hydra_zen import builds, instantiate
from lightning.pytorch.cli import LightningCLI
from small_training import SmallData, SmallNet, per_target_scales

from lightning_scaler import ZBL, TargetScaler

# jsonargparse, about Lightning's use of it
pytestmark = pytest.mark.filterwarnings(
    r"ignore:\s*(By default only one Jsonargparse|.* was deprecated in v4):DeprecationWarning"
)

SUPPORT = Path(__file__).parents[1] / "support"

SCRIPT = """
from lightning.pytorch.cli import LightningCLI
from small_training import SmallData, SmallNet, per_target_scales


class EnergyNet(SmallNet):
    def forward(self, systems):
        return {"energy": super().forward(systems)["energy"]}


if __name__ == "__main__":
    cli = LightningCLI(EnergyNet, SmallData)
    print(cli.trainer.callbacks[0])
    print(sorted(cli.model.scaler.targets), per_target_scales(cli.model.scaler, "energy"))
"""
CONFIG = """
trainer:
  accelerator: cpu
  max_epochs: 1
  logger: false
  enable_checkpointing: false
  enable_progress_bar: false
  enable_model_summary: false
"""
WITH_CALLBACK = """
  callbacks:
    - class_path: lightning_scaler.TargetScaler
      init_args:
        intensive_targets: [dipole, polarizability]
        fixed_scales: {energy: 5e-1, charges: {H: 1, 6: 2, O: 3}}
        baseline:
          class_path: lightning_scaler.ZBL
          init_args: {target: energy}
"""


@pytest.fixture
def run_cli(monkeypatch):
    """LightningCLI in this process, without a seed for later tests."""

    def run(*arguments, **options):
        return LightningCLI(
            SmallNet,
            SmallData,
            args=list(arguments),
            seed_everything_default=False,
            save_config_callback=None,
            **options,
        )

    monkeypatch.setattr(sys, "argv", ["script.py"])
    return run


@pytest.mark.slow
def test_a_script_with_lightning_cli_adds_and_sets_the_callback_by_flags(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "training.yaml").write_text(CONFIG)
    flags = ["+=lightning_scaler.TargetScaler", ".targets=[energy]"]
    flags += [".fixed_scales.energy=0.25", ".loss_weights={energy/positions: 4}"]
    script = [sys.executable, "-W", "ignore", "script.py", "fit", "--config", "training.yaml"]
    result = subprocess.run(
        [*script, *(f"--trainer.callbacks{flag}" for flag in flags)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(SUPPORT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.stdout.splitlines()[-2:] == [
        "TargetScaler(targets=('energy',), fixed_scales={'energy': 0.25}, "
        "loss_weights={'energy/positions': 4.0})",
        "['energy'] [0.25]",
    ], result.stderr


@pytest.mark.slow
def test_a_config_file_of_lightning_cli_sets_scales_and_an_additive_module(tmp_path, run_cli):
    config = tmp_path / "training.yaml"
    config.write_text(CONFIG + WITH_CALLBACK)
    scaler = run_cli("fit", "--config", str(config)).model.scaler
    assert per_target_scales(scaler, "energy") == [0.5]
    assert per_target_scales(scaler, "charges") == [1.0, 2.0, 3.0]
    assert scaler.additive.name == "ZBL"


def test_the_help_of_lightning_cli_describes_every_setting_in_a_few_screens(capsys, run_cli):
    with pytest.raises(SystemExit) as stopped:
        run_cli("fit", "--trainer.callbacks.help=lightning_scaler.TargetScaler")
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    words = " ".join(shown.split())
    assert "Fits the scales and the baseline of a module's targets in one pass" in words
    assert "--trainer.callbacks.unseen_types {error,pooled,identity}" in words
    assert "names of the targets to fit, each of which must occur in the data" in words
    assert "maximum number of batches to read, evenly spaced over the data." in words
    # With a list of every known torch.nn.Module it had 568 lines.
    assert len(shown.splitlines()) < 200


@pytest.mark.parametrize(
    ("setting", "shown"),
    [
        ("none", "'none'"),
        ("{gap: none}", "{'gap': 'none'}"),
        ("lightning_scaler.ZBL", "ZBL(target='energy')"),
        ("{U: {class_path: lightning_scaler.ZBL}}", "{'U': ZBL(target='energy')}"),
    ],
)
def test_every_kind_of_baseline_is_understood_by_lightning_cli(run_cli, setting, shown):
    callback = ["=lightning_scaler.TargetScaler", f".baseline={setting}"]
    trainer = ["--trainer.accelerator=cpu", "--trainer.logger=false"]
    flags = [f"--trainer.callbacks{flag}" for flag in callback]
    built = run_cli(*trainer, *flags, run=False).trainer.callbacks
    (scaler,) = (c for c in built if isinstance(c, TargetScaler))
    assert repr(scaler) == f"TargetScaler(baseline={shown})"


def test_hydra_zen_builds_the_callback_with_its_full_signature():
    config = builds(TargetScaler, populate_full_signature=True)
    assert repr(instantiate(config())) == "TargetScaler()"
    settings = {
        "intensive_targets": ["dipole"],
        "fixed_scales": {"energy": 0.5, "forces": {"H": 0.2, 8: 1.1}},
        "baseline": builds(ZBL, target="energy"),
    }
    assert repr(instantiate(config(**settings))) == (
        "TargetScaler(fixed_scales={'energy': 0.5, 'forces': {1: 0.2, 8: 1.1}}, "
        "intensive_targets=('dipole',), baseline=ZBL(target='energy'))"
    )
    with pytest.raises(TypeError, match="unexpected keyword argument 'intensive'"):
        config(intensive=["dipole"])
