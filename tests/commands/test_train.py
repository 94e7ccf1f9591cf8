"""The command, as it is called: from a terminal, in an empty folder."""

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import metatensor.torch as mts
import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf

from lightning_scaler import TargetScaler
from lightning_scaler.commands.config_files import configs_folder

COMMAND = Path(sys.executable).with_name("lightning-scaler-train")
SHORT = ["trainer.max_epochs=1", "+trainer.limit_train_batches=2", "+trainer.limit_val_batches=1"]
SHORT += ["+trainer.limit_test_batches=1", "+model.channels=4", "hydra.run.dir=run"]


def run(folder, *overrides, command=(COMMAND,)):
    environment = {**os.environ, "COLUMNS": "80"}
    return subprocess.run(
        [*map(str, command), *overrides],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("train")
    return folder, run(folder, *SHORT)


def errors_of(output):
    """RMSE of each target in each table."""
    rows = re.findall(
        r"^ *([\w/]+) +(?:eV|e|a0)\S*.*? ([\d.]+) +([\d.]+) +([\d.]+) %", output, re.M
    )
    return [(name, float(rmse)) for name, _, rmse, _ in rows]


def test_it_trains_and_tells_scales_and_errors_in_physical_units(trained):
    folder, result = trained
    assert result.returncode == 0, result.stderr
    assert "Target scales, in the units of the data" in result.stdout
    assert "Test errors: unseen conformers" in result.stdout
    assert "Test errors: unseen molecules" in result.stdout
    assert "eV / atom" in result.stdout
    assert "…" not in result.stdout  # nothing is cut at 80 columns
    assert len(errors_of(result.stdout)) == 2 * 9
    assert (folder / "run" / "last.ckpt").is_file()
    assert "val/energy/positions/rmse" in (folder / "run" / "logs" / "metrics.csv").read_text()


def test_a_checkpoint_is_tested_and_predicts_with_the_same_scales(trained):
    folder, first = trained
    arguments = [*SHORT[:-1], "hydra.run.dir=again", "ckpt_path=run/last.ckpt"]
    tested = run(folder, *arguments, "task=test")
    assert tested.returncode == 0, tested.stderr
    assert "Target scales" not in tested.stdout  # no fit
    assert errors_of(tested.stdout) == errors_of(first.stdout)
    predicted = run(folder, *arguments, "task=predict", "+trainer.limit_predict_batches=2")
    assert predicted.returncode == 0, predicted.stderr
    energy = mts.load(str(folder / "again" / "predictions" / "conformers" / "energy.mts")).block()
    assert energy.samples.values.reshape(-1).tolist() == list(range(64))
    # Total energies in eV, the baseline on: even H2 has -31.
    assert energy.values.max() < -25


def test_tasks_that_need_a_checkpoint_say_so(tmp_path):
    result = run(tmp_path, "task=test")
    assert result.returncode == 1
    assert "task=test: expected a checkpoint, got none; add ckpt_path=<file>" in result.stderr


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("callbacks.target_scaler.fixed_scale=1", "Could not override"),
        ("trainer=tpu", "Could not find 'trainer/tpu'"),
        ("modle.lr=1", "Could not override 'modle.lr'"),
    ],
)
def test_a_wrong_key_is_hydras_own_error(tmp_path, override, message):
    result = run(tmp_path, override)
    assert result.returncode == 1
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_an_unknown_target_in_a_setting_is_one_error(tmp_path):
    result = run(tmp_path, *SHORT, "callbacks.target_scaler.fixed_scales={enrgy: 1}")
    assert result.returncode == 1
    assert "fixed_scales names the target 'enrgy'" in result.stderr
    assert "did you mean 'energy'?" in result.stderr


MODULE = ["-m", "lightning_scaler.commands.train"]
LAUNCHES = {
    "by Lightning": [COMMAND],
    "torchrun": [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", *MODULE],
}


@pytest.mark.distributed
@pytest.mark.parametrize("launch", LAUNCHES)
def test_two_processes_from_the_command_line(tmp_path, launch):
    devices = ["trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu"]
    result = run(tmp_path, *SHORT, *devices, command=LAUNCHES[launch])
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("Target scales") == 1
    assert result.stdout.count("Test errors: unseen molecules") == 1


def test_every_choice_composes_and_builds(tmp_path):
    folder = configs_folder() / "lightning_scaler"
    groups = [
        (group.name, choice.stem)
        for group in folder.iterdir()
        if group.is_dir()
        for choice in group.glob("*.yaml")
    ]
    assert len(groups) == 11
    built = set()
    with initialize_config_dir(str(folder), version_base="1.3"):
        for group, choice in groups:
            override = f"callbacks=[{choice}]" if group == "callbacks" else f"{group}={choice}"
            if group == "callbacks":
                override = f"callbacks=[target_scaler,{choice}]"
            config = compose("train", overrides=[override])
            # What Hydra alone knows while it runs.
            OmegaConf.register_new_resolver("hydra", lambda key: str(tmp_path), replace=True)
            part = OmegaConf.to_container(config, resolve=True)[group]
            if group == "callbacks":
                part = part[choice]
            elif group == "metrics":
                part = part["collection"]
            elif group == "trainer" and part.get("accelerator") == "gpu":
                part["accelerator"] = "cpu"  # the names are right; the device need not be there
            built.add(type(instantiate(part)).__name__)
    assert {"MoleculesDataModule", "MoleculesModel", "Trainer", "MetricCollection"} <= built
    assert {"CSVLogger", "TensorBoardLogger", "ModelCheckpoint", "RichProgressBar"} <= built


def test_the_shared_config_lists_every_argument_of_the_callback():
    shared = OmegaConf.load(configs_folder() / "callbacks" / "target_scaler.yaml").target_scaler
    parameters = inspect.signature(TargetScaler.__init__).parameters
    defaults = {name: p.default for name, p in parameters.items() if name != "self"}
    given = {name: value for name, value in shared.items() if not name.startswith("_")}
    assert given.keys() == defaults.keys()
    for name, default in defaults.items():
        expected = list(default) if isinstance(default, tuple) else default
        assert given[name] == expected, name
