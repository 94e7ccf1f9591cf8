"""Overrides on the command line: null, chemical symbols."""

import io
import re
import sys

import pytest
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from launching import SHORT_TRAINING, composed, run_here

from lightning_scaler.commands.train import main

SCALER = "callbacks.target_scaler"


def build_callback(folder, *overrides):
    with composed(folder, *overrides) as config:
        return instantiate(config.callbacks.target_scaler)


def shown_config(monkeypatch, capsys, *arguments):
    """What the command shows as its configuration."""
    monkeypatch.setattr(sys, "argv", ["lightning-scaler-train", *arguments, "--cfg", "job"])
    main()
    return capsys.readouterr().out


def test_types_are_overridden_by_chemical_symbol(tmp_path):
    overrides = [
        f"{SCALER}.fixed_scales={{energy: 0.5, forces: {{H: 0.2}}}}",
        f"+{SCALER}.fixed_scales.forces.O=1",
        f"+{SCALER}.fixed_baseline.energy.H=-13.6",
    ]
    callback = build_callback(tmp_path, *overrides)
    assert callback.fixed_scales == {"energy": 0.5, "forces": {1: 0.2, 8: 1.0}}
    assert callback.baseline.fixed == {"energy": {1: -13.6}}


def test_a_type_by_number_and_by_symbol_is_refused(tmp_path):
    overrides = [f"{SCALER}.fixed_scales={{forces: {{1: 0.2}}}}"]
    overrides.append(f"+{SCALER}.fixed_scales.forces.H=0.3")
    message = "fixed_scales of target 'forces': type 1 is given twice, as 1 and 'H'"
    with pytest.raises(InstantiationException, match=re.escape(message)):
        build_callback(tmp_path, *overrides)


def test_logger_null_leaves_the_logger_out(monkeypatch, capsys):
    assert "\nlogger:" in shown_config(monkeypatch, capsys)
    assert "\nlogger:" not in shown_config(monkeypatch, capsys, "logger=null")


def test_callbacks_null_leaves_all_callbacks_out(monkeypatch, capsys):
    shown = shown_config(monkeypatch, capsys, "callbacks=null")
    assert "callbacks:\n  target_scaler: null\n" in shown
    assert "ModelCheckpoint" not in shown


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:these data are zero")
@pytest.mark.filterwarnings("ignore:.*You are trying to `self.log")
def test_training_without_logger_checkpoint_and_progress_bar_logs_nothing(tmp_path, capsys):
    null = ["~logger", "callbacks.checkpoint=null", "callbacks.progress_bar=null"]
    run_here(tmp_path, *SHORT_TRAINING, *null, "+trainer.enable_checkpointing=false")
    assert "Test errors: unseen molecules" in capsys.readouterr().out
    tables = {path.name for path in tmp_path.iterdir()}
    assert tables == {"target_scales.txt", "test_errors.txt"}


@pytest.mark.slow
def test_training_without_the_scaler_says_how_to_train_without_scales(tmp_path):
    message = r"callbacks: expected a TargetScaler, .* write scale_targets=false to train without"
    with pytest.raises(ValueError, match=message):
        run_here(tmp_path, *SHORT_TRAINING, f"{SCALER}=null")


@pytest.mark.slow
def test_a_callback_without_a_class_is_refused(tmp_path):
    message = r"callbacks.stop: expected the class in _target_, got \['monitor'\]; .*stop=null"
    with pytest.raises(ValueError, match=message):
        run_here(tmp_path, *SHORT_TRAINING, "+callbacks.stop.monitor=val/loss")


def test_characters_that_the_terminal_does_not_have_stop_no_command(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "argv", ["lightning-scaler-train", "+unit='eV/Å'", "--cfg", "job"])
    main()
    stream.seek(0)
    assert "unit: eV/?" in stream.read()
