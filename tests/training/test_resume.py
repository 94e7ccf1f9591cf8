"""Runs that were killed continue as if they had not been."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import killed
import pytest
from small_training import assert_same_scales

pytestmark = pytest.mark.slow

STEPS_PER_EPOCH = 6


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folder in which three runs were killed, and the network of a run that was not."""
    folder = tmp_path_factory.mktemp("killed")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(killed.__file__)), str(folder)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as program:
        uninterrupted, _ = killed.run(tmp_path_factory.mktemp("uninterrupted"))
        output, _ = program.communicate()
    assert program.returncode == 0
    # The fits print their tables too.
    signals = dict(re.findall(r"^killed: (\w+) (.+)$", output, re.MULTILINE))
    assert signals == {
        "pass": str(signal.SIGKILL.value),
        "training": str(signal.SIGKILL.value),
        "writing": str(signal.SIGXFSZ.value),
    }
    return folder, uninterrupted


@pytest.mark.parametrize(("when", "epochs_kept"), [("pass", 0), ("training", 1), ("writing", 1)])
def test_a_killed_run_continues_as_if_it_had_not_been_killed(runs, when, epochs_kept):
    folder, uninterrupted = runs
    checkpoints = sorted(file.name for file in (folder / when).glob("*.ckpt"))
    assert checkpoints == (["epoch=0-step=6.ckpt", "last.ckpt"] if epochs_kept else [])
    net, data = killed.run(folder / when)
    assert len(uninterrupted.losses) == killed.EPOCHS * STEPS_PER_EPOCH
    assert net.losses == uninterrupted.losses[epochs_kept * STEPS_PER_EPOCH :]
    assert_same_scales(net.scaler, uninterrupted.scaler)
    passes = len(data.train.reads) / 22 - (killed.EPOCHS - epochs_kept)
    assert passes == (0 if epochs_kept else 1)
