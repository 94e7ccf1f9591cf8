"""Runs that were killed go on as if they had not been."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import killed
import pytest

STEPS = 6  # of an epoch


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that never stopped."""
    return killed.run(tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where three runs were killed."""
    folder = tmp_path_factory.mktemp("killed")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(killed.__file__)), str(folder)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    ends = dict(line.split() for line in result.stdout.splitlines() if line)
    assert ends == {
        "pass": str(signal.SIGKILL.value),
        "training": str(signal.SIGKILL.value),
        "writing": str(signal.SIGXFSZ.value),
    }
    return folder


@pytest.mark.parametrize(("when", "epochs_kept"), [("pass", 0), ("training", 1), ("writing", 1)])
def test_a_killed_run_goes_on_as_the_one_that_never_stopped(whole, folder, when, epochs_kept):
    expected, _ = whole
    left = sorted(file.name for file in (folder / when).glob("*.ckpt"))
    assert left == (["epoch=0-step=6.ckpt", "last.ckpt"] if epochs_kept else [])
    net, data = killed.run(folder / when)
    assert len(expected.losses) == killed.EPOCHS * STEPS
    assert net.losses == expected.losses[epochs_kept * STEPS :]
    assert bits(net) == bits(expected)
    passes = len(data.train.reads) / 22 - (killed.EPOCHS - epochs_kept)
    assert passes == (0 if epochs_kept else 1)


def bits(net):
    """All numbers of the scales."""
    return [
        part.tolist()
        for t in net.scaler.targets.values()
        for part in (t.per_target, *t.per_property.values(), *t.weights.values())
    ]
