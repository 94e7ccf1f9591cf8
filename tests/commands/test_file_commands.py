"""``lightning-scaler-show``, ``-diff`` and ``-merge``: what they print, and their exit status."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from builders import fit, single_value_statistics, structure_target, system
from damaged_files import damaged, truncated
from hydra.utils import instantiate
from launching import call
from omegaconf import OmegaConf
from small_training import SmallNet, quiet_trainer

from lightning_scaler import CompositionBaseline, ScaleAccumulator
from lightning_scaler.commands.file_commands import diff, merge, show
from lightning_scaler.fitting import DataPart
from lightning_scaler.scaling import find_differences

SYSTEMS = [system(8), system(1, 8), system(1, 1, 8)]
ENERGIES = {"energy": structure_target([-75.0, -76.5, -77.1])}


def statistics(path, *part):
    accumulator = ScaleAccumulator(baseline=CompositionBaseline())
    accumulator.update(SYSTEMS, ENERGIES)
    accumulator.parts = (DataPart({"samples": "3"}, *part),)
    accumulator.save(path)
    return accumulator


def test_statistics_are_shown_with_their_data(monkeypatch, capsys, tmp_path):
    statistics(tmp_path / "a", 1, 4)
    status, out, err = call(monkeypatch, capsys, show, tmp_path / "a")
    assert (status, err) == (0, "")
    assert out.startswith(
        "Statistics of shard 1 of 4 (samples: 3)\n"
        "These are the scales of a part of the data, without shards 0, 2, 3 of 4\n"
        "Target scales, in the units of the data\n"
    )
    assert "Baselines, in the units of the data" in out


def test_a_scaler_is_shown(monkeypatch, capsys, tmp_path):
    fit(SYSTEMS, ENERGIES).save(tmp_path / "a")
    status, out, _ = call(monkeypatch, capsys, show, tmp_path / "a")
    assert status == 0
    assert out.startswith("Target scales, in the units of the data\n")


@pytest.mark.parametrize("kind", ["statistics", "scaler"])
def test_the_yaml_block_in_a_config_gives_the_same_scales(monkeypatch, capsys, tmp_path, kind):
    accumulator = statistics(tmp_path / "a")
    fitted = accumulator.compute()
    if kind == "scaler":
        fitted.save(tmp_path / "a")
    status, out, _ = call(monkeypatch, capsys, show, tmp_path / "a", "--yaml")
    assert status == 0
    config = OmegaConf.merge({"_target_": "lightning_scaler.TargetScaler"}, OmegaConf.create(out))
    callback = instantiate(config, _convert_="all")
    again = fit(SYSTEMS, ENERGIES, fixed_scales=callback.fixed_scales, baseline=callback.baseline)
    assert find_differences(fitted, again, tolerance=0.0) == []


def test_a_damaged_file_is_one_line(monkeypatch, capsys, tmp_path):
    statistics(tmp_path / "a")
    status, out, err = call(monkeypatch, capsys, show, damaged(tmp_path / "a"))
    assert (status, out) == (2, "")
    assert err == (
        f"lightning-scaler-show: file '{tmp_path}/a': damaged: its checksum does not match its "
        "content\n"
    )


def test_a_checkpoint_and_an_exported_model_say_where_scales_are(monkeypatch, capsys, tmp_path):
    net = SmallNet()
    net.scaler = fit(SYSTEMS, ENERGIES)
    trainer = quiet_trainer(tmp_path)
    trainer.strategy.connect(net)
    trainer.save_checkpoint(tmp_path / "net.ckpt")
    for command in (show, diff):
        files = [tmp_path / "net.ckpt"] * (1 if command is show else 2)
        status, _, err = call(monkeypatch, capsys, command, *files)
        assert status == 2
        assert "expected a file that Scaler.save has written, got a checkpoint of Lightning" in err
        assert "Net.load_from_checkpoint(…).fitted_scaler.save(…)" in err
    loaded = SmallNet.load_from_checkpoint(tmp_path / "net.ckpt", weights_only=True)
    loaded.fitted_scaler.save(tmp_path / "a")
    assert call(monkeypatch, capsys, show, tmp_path / "a")[0] == 0
    # PyTorch advises to run the code that is pickled.
    torch.save(net, tmp_path / "pickled")
    status, _, err = call(monkeypatch, capsys, show, tmp_path / "pickled")
    assert status == 2
    assert err.endswith("not of a Scaler: it has pickled code, which is not run\n")


def test_statistics_without_data_are_one_line(monkeypatch, capsys, tmp_path):
    ScaleAccumulator().save(tmp_path / "a")
    status, _, err = call(monkeypatch, capsys, show, tmp_path / "a")
    assert status == 2
    assert (
        err == "lightning-scaler-show: no target was seen in the data, so there is nothing to fit\n"
    )


@pytest.mark.slow
def test_a_warning_of_the_fit_is_one_line(tmp_path):
    single_value_statistics(1.0, baseline=CompositionBaseline()).save(tmp_path / "a")
    command = Path(sys.executable).with_name("lightning-scaler-show")
    shown = subprocess.run([command, tmp_path / "a"], capture_output=True, text=True, check=True)
    assert shown.stderr.startswith("warning: these data are zero, or below their rounding noise")
    assert shown.stderr.count("\n") == 1
    assert "Target scales" in shown.stdout


def test_settings_of_another_code_are_printed_or_refused(monkeypatch, capsys, tmp_path):
    statistics(tmp_path / "a")
    status, out, err = call(monkeypatch, capsys, show, tmp_path / "a", "--as", "deepmd")
    assert (status, err) == (0, "")
    assert "dp --pt change-bias model.ckpt.pt -b " in out
    status, out, err = call(monkeypatch, capsys, show, tmp_path / "a", "--as", "mace")
    assert (status, out) == (2, "")
    assert err.startswith(
        "lightning-scaler-show: MACE: --std is the RMS of the forces, and the fit"
    )
    assert err.count("\n") == 1


# Comparing


def test_equal_files_of_different_kinds_have_no_difference(monkeypatch, capsys, tmp_path):
    single_value_statistics(3.0).save(tmp_path / "a")
    fit([system(8)], {"energy": structure_target([3.0])}).save(tmp_path / "b")
    assert call(monkeypatch, capsys, diff, tmp_path / "a", tmp_path / "b") == (0, "", "")


def test_differences_beyond_the_tolerance_are_a_table_and_status_1(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    single_value_statistics(3.0).save("a")
    single_value_statistics(3.0 + 3e-6).save("b")
    status, out, err = call(monkeypatch, capsys, diff, "a", "b")
    assert (status, err) == (1, "")
    assert out.startswith("1 difference\n")
    assert "\n energy  scale  3  3.000003   1.0e-06\n" in out
    assert call(monkeypatch, capsys, diff, "a", "b", "--tolerance", "1e-5") == (0, "", "")


def test_more_than_50_differences_are_counted(monkeypatch, capsys, tmp_path):
    for name, energy in (("a", 1.0), ("b", 2.0)):
        targets = {f"energy{i:02}": structure_target([energy]) for i in range(60)}
        fit([system(8)], targets).save(tmp_path / name)
    status, out, _ = call(monkeypatch, capsys, diff, tmp_path / "a", tmp_path / "b")
    assert status == 1
    assert out.startswith("60 differences\n")
    assert "… 10 more" in out
    assert "energy49" in out
    assert "energy50" not in out


@pytest.mark.slow
def test_a_damaged_file_cannot_be_compared(tmp_path):
    single_value_statistics(3.0).save(tmp_path / "a")
    (tmp_path / "b").write_bytes((tmp_path / "a").read_bytes())
    truncated(tmp_path / "b")
    command = Path(sys.executable).with_name("lightning-scaler-diff")
    found = subprocess.run(
        [command, tmp_path / "a", tmp_path / "b"], capture_output=True, text=True, check=False
    )
    assert (found.returncode, found.stdout) == (2, "")
    assert found.stderr.startswith(f"lightning-scaler-diff: file '{tmp_path}/b': truncated or dam")
    assert found.stderr.count("\n") == 1


# Merging


def save(path, shard=0, n_shards=1, data="1", **options):
    accumulator = single_value_statistics(float(shard + 1), **options)
    accumulator.parts = (DataPart({"samples": data}, shard, n_shards),)
    accumulator.save(path)
    return path


BAD = {
    "same shard": (
        lambda f: [save(f / "a", 0, 2), save(f / "b", 0, 2)],
        "expected each part of the data once, got {f}/a: shard 0 of 2 (samples: 1), and {f}/b:",
    ),
    "missing shard": (
        lambda f: [save(f / "a", 0, 3), save(f / "b", 1, 3)],
        "expected all shards of the data, got them without shard 2 of 3; add what is missing",
    ),
    "other data": (
        lambda f: [save(f / "a", 0, 2), save(f / "b", 1, 2, "2")],
        "which differ in samples (1 and 2)",
    ),
    "other settings": (
        lambda f: [save(f / "a", 0, 2), save(f / "b", 1, 2, targets=["energy"])],
        "got {f}/a and {f}/b, which differ in targets (None and ['energy'])",
    ),
    "no file": (lambda f: [f / "a"], "file '{f}/a': No such file or directory"),
    "a folder": (lambda f: [f], "file '{f}': Is a directory"),
    "damaged": (lambda f: [damaged(save(f / "a"))], "file '{f}/a': damaged: its checksum"),
    "truncated": (lambda f: [truncated(save(f / "a"))], "file '{f}/a': truncated or damaged"),
}


@pytest.mark.parametrize("case", BAD)
def test_files_that_cannot_be_merged_give_one_line_and_no_file(monkeypatch, capsys, tmp_path, case):
    make, message = BAD[case]
    files = make(tmp_path)
    before = sorted(tmp_path.iterdir())
    status, out, err = call(monkeypatch, capsys, merge, *files, "--out", tmp_path / "merged")
    assert (status, out) == (2, "")
    assert err.startswith("lightning-scaler-merge: ")
    assert message.format(f=tmp_path) in err
    assert err.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before


def test_a_file_in_a_read_only_folder_is_one_line(monkeypatch, capsys, tmp_path):
    files = [save(tmp_path / "a")]
    status, _, err = call(monkeypatch, capsys, merge, *files, "--out", "/proc/merged")
    assert status == 2
    assert re.fullmatch(r"lightning-scaler-merge: file '/proc/.*': No such file.*\n", err)


def test_a_requested_target_that_no_shard_has_is_found_by_the_merge(monkeypatch, capsys, tmp_path):
    save(tmp_path / "a", 0, 2, targets=["energy", "gap"])
    save(tmp_path / "b", 1, 2, targets=["energy", "gap"])
    files = [tmp_path / "a", tmp_path / "b", "--out", tmp_path / "merged"]
    status, _, err = call(monkeypatch, capsys, merge, *files)
    assert status == 2
    assert "target 'gap' was requested in targets=[…] but does not occur in the data" in err
    assert not (tmp_path / "merged").exists()


def test_merged_data_sets_are_listed(monkeypatch, capsys, tmp_path):
    files = [save(tmp_path / "a", data="1"), save(tmp_path / "b", data="2")]
    status, out, _ = call(monkeypatch, capsys, merge, *files, "--out", tmp_path / "merged")
    assert status == 0
    assert out.endswith("merged: all data (samples: 1); all data (samples: 2)\n")


def test_merged_files_that_do_not_say_of_which_data_they_are(monkeypatch, capsys, tmp_path):
    for name, value in {"a": 1.0, "b": 2.0}.items():
        single_value_statistics(value).save(tmp_path / name)
    files = [tmp_path / "a", tmp_path / "b", "--out", tmp_path / "merged"]
    status, out, _ = call(monkeypatch, capsys, merge, *files)
    assert status == 0
    assert out.endswith("merged: data that cannot be identified\n")


def test_arguments_that_would_be_ignored_are_refused(monkeypatch, capsys, tmp_path):
    fit(SYSTEMS, ENERGIES).save(tmp_path / "a")
    for options, message in (
        (["--target", "energy"], "--target: it names the energy of --as, which is missing"),
        (["--yaml", "--as", "mace"], "not allowed with argument --yaml"),
    ):
        status, out, err = call(monkeypatch, capsys, show, tmp_path / "a", *options)
        assert (status, out) == (2, "")
        assert message in err
    for tolerance in ("nan", "-1"):
        files = [tmp_path / "a", tmp_path / "a"]
        status, _, err = call(monkeypatch, capsys, diff, *files, f"--tolerance={tolerance}")
        assert status == 2
        assert "--tolerance: expected a number of at least 0, got" in err
