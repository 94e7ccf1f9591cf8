"""The command in a process of its own, and its configuration in this one."""

import os
import re
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig

from lightning_scaler.commands.config_files import command_configs
from lightning_scaler.commands.train import run

COMMAND = Path(sys.executable).with_name("lightning-scaler-train")
SHORT_TRAINING = [
    "trainer.max_epochs=1",
    "+trainer.limit_train_batches=2",
    "+trainer.limit_val_batches=1",
    "+trainer.limit_test_batches=1",
    "+model.channels=4",
]


def launch(folder, *overrides, command=(COMMAND,)):
    """Run the command in a folder, as from a terminal of 80 columns."""
    return subprocess.run(
        [*map(str, command), *overrides],
        cwd=folder,
        env={**os.environ, "COLUMNS": "80"},
        capture_output=True,
        text=True,
        check=False,
    )


@contextmanager
def composed(output, *overrides, name="train"):
    """The configuration that a command composes, with ``output`` as its output folder."""
    with initialize_config_dir(str(command_configs()), version_base="1.3"):
        overrides = [*overrides, f"hydra.runtime.output_dir={output}"]
        config = compose(name, overrides, return_hydra_config=True)
        HydraConfig.instance().set_config(config)
        try:
            yield config
        finally:
            HydraConfig.instance().cfg = None


def run_here(output, *overrides):
    """Run the command in this process; later tests have their own seeds and threads."""
    n_threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch, composed(output, *overrides) as config:
        patch.setenv("COLUMNS", "80")
        for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
            patch.setenv(name, "0")
        try:
            run(config)
        finally:
            torch.set_num_threads(n_threads)


def read_errors(output):
    """Target and RMSE of each row of the tables of errors."""
    rows = re.findall(
        r"^ *([\w/]+) +(?:eV|e|a0)\S*.*? ([\d.]+) +([\d.]+) +([\d.]+) %", output, re.M
    )
    return [(name, float(rmse)) for name, _, rmse, _ in rows]


def call(monkeypatch, capsys, main, *arguments):
    """Run the main function of a command; its exit status, and what it printed."""
    monkeypatch.setattr(sys, "argv", [main.__name__, *map(str, arguments)])
    try:
        main()
        status = 0
    except SystemExit as error:
        status = error.code
    printed = capsys.readouterr()
    return status, printed.out, printed.err
