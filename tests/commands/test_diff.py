"""``lightning-scaler-diff``: its table and its exit status."""

import subprocess
import sys
from pathlib import Path

import pytest
from builders import fit, single_value_statistics, structure_target, system
from launching import call

from lightning_scaler.commands.diff import main


def test_equal_files_of_different_kinds_have_no_difference(monkeypatch, capsys, tmp_path):
    single_value_statistics(3.0).save(tmp_path / "a")
    fit([system(8)], {"energy": structure_target([3.0])}).save(tmp_path / "b")
    assert call(monkeypatch, capsys, main, tmp_path / "a", tmp_path / "b") == (0, "", "")


def test_differences_beyond_the_tolerance_are_a_table_and_status_1(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    single_value_statistics(3.0).save("a")
    single_value_statistics(3.0 + 3e-6).save("b")
    status, out, err = call(monkeypatch, capsys, main, "a", "b")
    assert (status, err) == (1, "")
    assert out.startswith("1 difference\n")
    assert "\n energy  scale  3  3.000003   1.0e-06\n" in out
    assert call(monkeypatch, capsys, main, "a", "b", "--tolerance", "1e-5") == (0, "", "")


def test_more_than_50_differences_are_counted(monkeypatch, capsys, tmp_path):
    for name, energy in (("a", 1.0), ("b", 2.0)):
        targets = {f"energy{i:02}": structure_target([energy]) for i in range(60)}
        fit([system(8)], targets).save(tmp_path / name)
    status, out, _ = call(monkeypatch, capsys, main, tmp_path / "a", tmp_path / "b")
    assert status == 1
    assert out.startswith("60 differences\n")
    assert "… 10 more" in out
    assert "energy49" in out
    assert "energy50" not in out


@pytest.mark.slow
def test_a_damaged_file_is_one_line_and_status_2(tmp_path):
    single_value_statistics(3.0).save(tmp_path / "a")
    (tmp_path / "b").write_bytes((tmp_path / "a").read_bytes()[:-9])
    command = Path(sys.executable).with_name("lightning-scaler-diff")
    found = subprocess.run(
        [command, tmp_path / "a", tmp_path / "b"], capture_output=True, text=True, check=False
    )
    assert (found.returncode, found.stdout) == (2, "")
    assert found.stderr.startswith(f"lightning-scaler-diff: file '{tmp_path}/b': truncated or dam")
    assert found.stderr.count("\n") == 1
