"""The command in a process of its own, and its configuration in this one."""

import os
import re
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from builders import fit, structure_target, system
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from lightning.pytorch import Trainer
from lightning.pytorch.demos.boring_classes import BoringModel

from lightning_scaler import ScaleAccumulator
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


def files_of_other_kinds():
    """Functions that write what is no checkpoint, and return it with what an error says of it."""

    def missing(folder):
        return folder / "missing.ckpt", r"ckpt_path: there is no file '.*missing.ckpt'"

    def a_folder(folder):
        return folder, r"ckpt_path: expected a file, got the folder .*such as .*/last\.ckpt"

    def empty(folder):
        (folder / "empty").write_bytes(b"")
        return folder / "empty", "/empty': expected a checkpoint of Lightning, got an empty one"

    def text(folder):
        (folder / "text").write_text("epoch: 3")
        return (
            folder / "text",
            "/text': .* got one that is truncated, damaged, or of another format",
        )

    def weights(folder):
        torch.save(torch.nn.Linear(1, 1).state_dict(), folder / "weights")
        return (
            folder / "weights",
            "/weights': .* got one with something else, such as weights alone",
        )

    def scaler(folder):
        energy = {"energy": structure_target([1.0])}
        fit([system(1)], energy).save(folder / "scaler")
        return folder / "scaler", r"/scaler': .* got one that Scaler\.save has written"

    def statistics(folder):
        accumulator = ScaleAccumulator()
        accumulator.update([system(1)], {"energy": structure_target([1.0])})
        accumulator.save(folder / "statistics")
        return folder / "statistics", r"': .* got one that ScaleAccumulator\.save has written"

    return [missing, a_folder, empty, text, weights, scaler, statistics]


def checkpoint_of_another_module(folder):
    """A checkpoint of a module without layers in common with the example model."""
    trainer = Trainer(max_epochs=0, accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.strategy.connect(BoringModel())
    trainer.save_checkpoint(folder / "other.ckpt")
    return folder / "other.ckpt"


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
