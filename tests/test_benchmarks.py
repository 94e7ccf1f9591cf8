"""The benchmarks, which are run by hand, still run."""

import math
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCALE = Path(__file__).parent / "benchmarks" / "scale.py"
STEP = Path(__file__).parent / "benchmarks" / "step.py"
SPEED = Path(__file__).parent / "benchmarks" / "speed.py"
BALANCE = Path(__file__).parent / "benchmarks" / "balance.py"
PLAIN_TENSORS = Path(__file__).parent / "benchmarks" / "plain_tensors.py"
FINE_TUNING = Path(__file__).parent / "benchmarks" / "fine_tuning.py"


def output_of(program, options, folder):
    command = [sys.executable, "-W", "ignore", str(program), *options]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.slow
def test_the_benchmarks_print_a_line_for_every_item(tmp_path):
    items = ["batch-forces", "batch-polarizability"]
    options = ["--items", *items, "--times", "9", "--memory", "--baseline", "--embedded"]
    output = output_of(SPEED, options, tmp_path)
    for item in items:
        assert any(line.startswith(item) for line in output.splitlines())
    assert "fit pass over bare iteration" in output


@pytest.mark.slow
def test_the_parts_of_a_step_are_measured_in_a_trainer(tmp_path):
    output = output_of(STEP, ["--times", "1", "--rounds", "1"], tmp_path)
    shares = re.findall(r"^(\w+) {2,}.* ([\d.]+) %$", output, re.M)
    found = {name: float(share) for name, share in shares}
    assert found["step"] == 100.0
    assert 0.0 < found["update_metrics"] < found["forward"] < 100.0


@pytest.mark.slow
def test_memory_is_that_of_the_imports_for_any_number_of_structures(tmp_path):
    options = ["--structures", "1000", "--atoms", "20", "--processes", "1"]
    output = output_of(SCALE, options, tmp_path)
    (memory,) = re.findall(r"^fit pass, 1 of 1 .* % +([\d ]+)$", output, re.M)
    megabytes = [int(word) for word in memory.split()]
    assert megabytes[-1] < 1.2 * megabytes[0]


@pytest.mark.slow
def test_the_comparison_of_losses_prints_the_errors_of_every_set_up(tmp_path):
    options = ["--epochs", "1", "--seeds", "0", "--setups", "balanced, forces 4"]
    output = output_of(BALANCE, options, tmp_path)
    rows = [x for x in output.splitlines() if x.startswith("| balanced, forces 4 |")]
    assert len(rows) == 2  # unseen conformers, unseen molecules
    assert all(row.count("±") == 7 for row in rows)


@pytest.mark.slow
def test_the_comparison_of_fine_tuning_prints_the_errors_of_every_set_up(tmp_path):
    options = ["--first-epochs", "0", "--epochs", "1", "--seeds", "0", "--setups", "refit=False"]
    output = output_of(FINE_TUNING, options, tmp_path)
    for name in ("from scratch", "refit=False"):
        (row,) = [line for line in output.splitlines() if line.startswith(f"| {name} |")]
        assert row.count("±") == 4


@pytest.mark.slow
def test_the_cost_of_plain_tensors_is_printed(tmp_path):
    output = output_of(PLAIN_TENSORS, ["--times", "5"], tmp_path)
    assert math.isfinite(float(output.split("what plain tensors add: ")[1]))
