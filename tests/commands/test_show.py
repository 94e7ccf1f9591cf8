"""``lightning-scaler-show``: tables and settings of a file."""

import subprocess
import sys
from pathlib import Path

import pytest
from builders import fit, single_value_statistics, structure_target, system
from hydra.utils import instantiate
from launching import call
from omegaconf import OmegaConf

from lightning_scaler import CompositionBaseline, ScaleAccumulator
from lightning_scaler.commands.show import main
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
    status, out, err = call(monkeypatch, capsys, main, tmp_path / "a")
    assert (status, err) == (0, "")
    assert out.startswith(
        "Statistics of shard 1 of 4 (samples: 3)\n"
        "These are the scales of a part of the data, without shards 0, 2, 3 of 4\n"
        "Target scales, in the units of the data\n"
    )
    assert "Baselines, in the units of the data" in out


def test_a_scaler_is_shown(monkeypatch, capsys, tmp_path):
    fit(SYSTEMS, ENERGIES).save(tmp_path / "a")
    status, out, _ = call(monkeypatch, capsys, main, tmp_path / "a")
    assert status == 0
    assert out.startswith("Target scales, in the units of the data\n")


@pytest.mark.parametrize("kind", ["statistics", "scaler"])
def test_the_yaml_block_in_a_config_gives_the_same_scales(monkeypatch, capsys, tmp_path, kind):
    accumulator = statistics(tmp_path / "a")
    fitted = accumulator.compute()
    if kind == "scaler":
        fitted.save(tmp_path / "a")
    status, out, _ = call(monkeypatch, capsys, main, tmp_path / "a", "--yaml")
    assert status == 0
    config = OmegaConf.merge({"_target_": "lightning_scaler.TargetScaler"}, OmegaConf.create(out))
    callback = instantiate(config, _convert_="all")
    again = fit(SYSTEMS, ENERGIES, fixed_scales=callback.fixed_scales, baseline=callback.baseline)
    assert find_differences(fitted, again, tolerance=0.0) == []


def test_a_damaged_file_is_one_line(monkeypatch, capsys, tmp_path):
    statistics(tmp_path / "a")
    content = bytearray((tmp_path / "a").read_bytes())
    content[-4] ^= 1
    (tmp_path / "a").write_bytes(content)
    status, out, err = call(monkeypatch, capsys, main, tmp_path / "a")
    assert (status, out) == (2, "")
    assert err == (
        f"lightning-scaler-show: file '{tmp_path}/a': damaged: its checksum does not match its "
        "content\n"
    )


def test_statistics_without_data_are_one_line(monkeypatch, capsys, tmp_path):
    ScaleAccumulator().save(tmp_path / "a")
    status, _, err = call(monkeypatch, capsys, main, tmp_path / "a")
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
    status, out, err = call(monkeypatch, capsys, main, tmp_path / "a", "--as", "deepmd")
    assert (status, err) == (0, "")
    assert "dp --pt change-bias model.ckpt.pt -b " in out
    status, out, err = call(monkeypatch, capsys, main, tmp_path / "a", "--as", "mace")
    assert (status, out) == (2, "")
    assert err.startswith(
        "lightning-scaler-show: MACE: --std is the RMS of the forces, and the fit"
    )
    assert err.count("\n") == 1
