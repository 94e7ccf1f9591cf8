"""The tables of a fit in the folder of the run."""

import pytest
from hydra.core.hydra_config import HydraConfig
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from omegaconf import OmegaConf
from small_training import SmallData, SmallNet, quiet_trainer, scaler_callback

from lightning_scaler.training.picture_report import report_folder

FILE = "target_scales.txt"


def run(folder, **options):
    trainer = quiet_trainer(folder, callbacks=[scaler_callback()], max_epochs=0, **options)
    trainer.fit(SmallNet(), SmallData())
    return trainer


@pytest.mark.parametrize("logger", [CSVLogger, TensorBoardLogger])
def test_the_folder_of_the_logger_holds_the_tables_that_were_printed(tmp_path, capsys, logger):
    trainer = run(tmp_path, logger=logger(tmp_path, name="mine"))
    text = (tmp_path / "mine" / "version_0" / FILE).read_text(encoding="utf-8")
    assert text.startswith("Target scales, in the units of the data\n")
    assert "Baselines, in the units of the data\n" in text
    assert text in capsys.readouterr().out
    assert trainer.log_dir == str(tmp_path / "mine" / "version_0")


def test_without_a_logger_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(tmp_path)
    assert not list(tmp_path.rglob("*.txt"))


@pytest.mark.filterwarnings("ignore:.*dev")
def test_a_dev_run_writes_nothing(tmp_path):
    run(tmp_path, logger=CSVLogger(tmp_path), fast_dev_run=True)
    assert not list(tmp_path.rglob("*.txt"))


def test_under_hydra_it_is_the_run_folder_of_the_job(tmp_path):
    config = OmegaConf.create({"hydra": {"runtime": {"output_dir": str(tmp_path / "job")}}})
    HydraConfig.instance().cfg = config
    try:
        run(tmp_path, logger=CSVLogger(tmp_path))
    finally:
        HydraConfig.instance().cfg = None
    assert [path.parent for path in tmp_path.rglob("*.txt")] == [tmp_path / "job"]


@pytest.mark.filterwarnings("ignore:.*directory .* exists and is not empty")
def test_a_folder_that_cannot_be_written_does_not_stop_a_run(tmp_path, capsys):
    (tmp_path / "version_0" / FILE).mkdir(parents=True)
    run(tmp_path, logger=CSVLogger(tmp_path, name="", version="version_0"))
    assert "Target scales" in capsys.readouterr().out


def test_a_folder_that_is_no_folder_of_this_machine_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trainer = run(tmp_path, logger=CSVLogger("memory://bucket"))
    assert trainer.log_dir.startswith("memory://")
    assert not list(tmp_path.rglob("*.txt"))


@pytest.mark.parametrize("order", [1, -1])
def test_the_first_folder_of_this_machine_is_taken(tmp_path, monkeypatch, order):
    monkeypatch.chdir(tmp_path)
    loggers = [CSVLogger("memory://bucket"), CSVLogger(tmp_path / "mine")]
    run(tmp_path, logger=loggers[::order])
    assert [path.name for path in tmp_path.rglob("*.txt")] == [FILE]
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_remote_root_folder_is_not_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert report_folder(quiet_trainer("memory://bucket")) is None
    assert list(tmp_path.iterdir()) == []
