"""Some of the faults of chaos.py, which is a program of its own and forks for every process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

FOLDER = Path(__file__).parent
SHORT_FORM = """
import sys
sys.path.insert(0, sys.argv[1])
from chaos import Draw, run
failures = run([
    Draw("killed", "pass", 3, 1, 2),
    Draw("killed", "pass", 3, 0, 2),
    Draw("killed", "gather", 3, 2, 0),
    Draw("killed beside its workers", "pass", 3, 0, 3),
    Draw("transfer hook fails", "pass", 2, 1, 3),
    Draw("fails after rank 0 has exited", "pass", 3, 2, 1),
    Draw("disk full", "checkpoint", 3, 0, 0),
    Draw("slow rank", "pass", 3, 1, 0),
])
sys.exit(len(failures))
"""


def test_processes_end_with_a_reason_and_leave_a_checkpoint_that_continues():
    command = [sys.executable, "-c", SHORT_FORM, str(FOLDER)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=400, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "8 draws: 0 failed" in result.stdout
