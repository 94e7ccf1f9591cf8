"""``lightning-scaler-fit`` and ``lightning-scaler-merge``, as processes and by launchers."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.errors import CompactHydraException
from launching import call
from omegaconf import OmegaConf

from lightning_scaler import ScaleAccumulator
from lightning_scaler.commands.file_commands import show
from lightning_scaler.commands.fit import main, output_file, run_fit
from lightning_scaler.fitting import merge_files
from lightning_scaler.scaling import find_differences

# The configs of another application, laid out in its own way.
APPLICATION = """
datamodule:
  _target_: small_training.SmallData
  size: 40
trainer:
  _target_: lightning.Trainer
  accelerator: ${oc.env:NO_SUCH_VARIABLE}
  callbacks:
    - _target_: lightning.pytorch.callbacks.RichProgressBar
    - _target_: lightning_scaler.TargetScaler
      intensive_targets: [dipole, polarizability]
model:
  _target_: nowhere.Model
"""


def command(name):
    return Path(sys.executable).with_name(f"lightning-scaler-{name}")


# The variables of a task under srun; Lightning would take all tasks for one training.
SLURM_TASK = {
    "SLURM_JOB_ID": "7",
    "SLURM_JOB_NAME": "fit",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "0",
}

# The number of shards that a launcher of Hydra runs, and options of the launcher.
LAUNCHERS = {
    "joblib": (4, "hydra.launcher.n_jobs=2"),
    "submitit_local": (2, "hydra.launcher.timeout_min=5"),
}


def start(folder, name, *arguments, variables=None):
    support = str(Path(__file__).parents[1] / "support")
    return subprocess.Popen(
        [command(name), *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": support, **(variables or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Statistics of an application in one file, and in shards that each launcher has run."""
    folder = tmp_path_factory.mktemp("fit")
    (folder / "train.yaml").write_text(APPLICATION)
    own = [f"--config-path={folder}", "--config-name=train"]
    processes = {"one pass": start(folder, "fit", *own, "out=all.st", variables=SLURM_TASK)}
    for launcher, (n_shards, option) in LAUNCHERS.items():
        shards = [f"shard={','.join(map(str, range(n_shards)))}", f"shards={n_shards}"]
        sweep = ["--multirun", f"out={launcher}.st", *shards, f"hydra/launcher={launcher}", option]
        processes[launcher] = start(folder, "fit", *own, *sweep)
    results = {name: finish(process) for name, process in processes.items()}
    assert [status for status, _, _ in results.values()] == [0, 0, 0], results
    return folder, results


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_shards_run_by_a_launcher_give_the_scales_of_one_pass(folder, launcher):
    path, _ = folder
    n_shards = LAUNCHERS[launcher][0]
    files = sorted(path.glob(f"{launcher}.*.st"))
    names = [f"{launcher}.{i}-of-{n_shards}.st" for i in range(n_shards)]
    assert [file.name for file in files] == names
    merged, one_pass = merge_files(files), ScaleAccumulator.load(path / "all.st")
    assert merged.parts == one_pass.parts
    assert one_pass.intensive_targets == {"dipole", "polarizability"}
    # Energies of -1e3 per atom with residuals of about 1: eps * 1e3 / 1 and a few roundings.
    assert find_differences(merged.compute(), one_pass.compute(), tolerance=2e-12) == []


@pytest.mark.slow
def test_merged_shards_are_one_file(folder):
    path, _ = folder
    files = sorted(path.glob("joblib.*.st"))
    status, out, err = finish(start(path, "merge", *files, "--out", "merged"))
    assert (status, err) == (0, "")
    assert out.startswith("4 files are merged in merged: all data (samples: 40")
    assert ScaleAccumulator.load(path / "merged").parts == merge_files(files).parts


@pytest.mark.slow
def test_one_pass_prints_the_tables_and_a_shard_a_line(folder):
    _, results = folder
    lines = re.findall(
        r"The statistics are in .*joblib.(\d)-of-4.st: shard \1 of 4", results["joblib"][1]
    )
    assert sorted(lines) == ["0", "1", "2", "3"]
    assert "Target scales" not in results["joblib"][1]
    assert "Target scales, in the units of the data" in results["one pass"][1]
    assert "Baselines, in the units of the data" in results["one pass"][1]
    assert results["one pass"][1].endswith("system_labels: auto)\n")


@pytest.mark.slow
def test_an_error_of_the_settings_has_no_traceback(tmp_path):
    status, _, err = finish(start(tmp_path, "fit", "out=nowhere/all.st"))
    assert status == 1
    assert f"lightning-scaler-fit: file '{tmp_path}/nowhere/all.st': No such file" in err
    assert "Traceback" not in err


def test_settings_of_this_command_need_no_plus_sign_in_other_configs(monkeypatch, capsys, tmp_path):
    (tmp_path / "train.yaml").write_text(APPLICATION)
    own = [f"--config-path={tmp_path}", "--config-name=train", "out=a.st", "shard=1", "shards=2"]
    _, out, _ = call(monkeypatch, capsys, main, *own, "--cfg", "job")
    assert "out: a.st\nshard: 1\nshards: 2\n" in out


def composed(folder, text=APPLICATION, **settings):
    return OmegaConf.create({**OmegaConf.create(text), "out": str(folder / "all.st"), **settings})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"out": "???"}, "out: expected a file to write; add out=statistics.safetensors"),
        ({"out": ""}, "out: expected a file to write; add out=statistics.safetensors"),
        ({"shards": 3}, "shards=3: expected shard=0 to shard=2 too, got none; .*shard=0,1,2"),
        ({"shard": 3, "shards": 3}, "got shard=3 with shards=3"),
        ({"shard": "a"}, "shard: expected an integer, got 'a'"),
        ({"datamodule": None}, r"a datamodule with _target_ under one of \['data', 'datamod"),
        ({"trainer": None}, "expected one TargetScaler .* got 0; add callbacks="),
    ],
)
def test_settings_that_cannot_work_are_refused_before_any_data_are_read(
    tmp_path, settings, message
):
    with pytest.raises(ValueError, match=message):
        run_fit(composed(tmp_path, **settings))
    assert list(tmp_path.iterdir()) == []


def test_a_file_may_have_a_number_as_its_name(tmp_path, monkeypatch):
    """Hydra reads it as an integer."""
    monkeypatch.setattr("lightning_scaler.commands.fit.to_absolute_path", tmp_path.joinpath)
    run_fit(composed(tmp_path, out=3))
    assert ScaleAccumulator.load(tmp_path / "3").parts


def test_two_scalers_in_the_configuration_are_refused(tmp_path):
    second = {"target_scaler": {"_target_": "lightning_scaler.TargetScaler"}}
    with pytest.raises(ValueError, match=r"expected one TargetScaler .* got 2"):
        run_fit(composed(tmp_path, callbacks=second))


@pytest.mark.parametrize("folder_of_file", ["/proc", "/nowhere"])
def test_a_folder_that_cannot_be_written_to_is_found_before_the_pass(tmp_path, folder_of_file):
    with pytest.raises(OSError, match=f"'{folder_of_file}/all.st'"):
        run_fit(composed(tmp_path, out=f"{folder_of_file}/all.st"))


def test_a_target_without_data_leaves_no_file(tmp_path):
    text = APPLICATION.replace("[dipole, polarizability]", "[dipoles]")
    with pytest.raises(ValueError, match="intensive_targets names the target 'dipoles'"):
        run_fit(composed(tmp_path, text))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_sample_is_read_if_the_callback_asks_for_one(tmp_path, monkeypatch, capsys):
    text = APPLICATION.replace("size: 40", "size: 480").replace(
        "intensive_targets: [dipole, polarizability]",
        "intensive_targets: [dipole]\n      targets: [dipole]\n      relative_error: 0.2",
    )
    run_fit(composed(tmp_path, text, out=str(tmp_path / "a.st")))
    words = r"100 of 120 batches were read, in random order; the standard error of the scales is at"
    assert re.search(rf"Of the data, {words} most .* % of each", capsys.readouterr().out)
    status, out, _ = call(monkeypatch, capsys, show, tmp_path / "a.st")
    assert status == 0
    assert re.search(rf"Statistics of all data \(samples: 480.*\nOf these, {words}", out)
    assert re.search(r" dipole .* %\n", out)
    with pytest.raises(ValueError, match="shards=2: expected shards that are read in whole"):
        run_fit(composed(tmp_path, text, out=str(tmp_path / "b.st"), shard=0, shards=2))


def test_errors_of_hydra_keep_their_own_message(tmp_path):
    text = APPLICATION.replace("SmallData", "NoData")
    with pytest.raises(CompactHydraException, match="NoData"):
        run_fit(composed(tmp_path, text))


def test_the_name_of_a_shard_keeps_the_suffix(tmp_path):
    assert output_file(tmp_path / "a.b.st", 2, 10) == tmp_path / "a.b.2-of-10.st"
    assert output_file(tmp_path / "a", 0, 2) == tmp_path / "a.0-of-2"
    assert output_file(tmp_path / "a.st", None, 1) == tmp_path / "a.st"
