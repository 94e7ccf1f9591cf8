"""The command, called from a terminal in an empty folder."""

import sys

import metatensor.torch as mts
import pytest
from launching import (
    COMMAND,
    SHORT_TRAINING,
    checkpoint_of_another_module,
    files_of_other_kinds,
    launch,
    read_errors,
    run_here,
)

MODULE = ["-m", "lightning_scaler.commands.train"]
LAUNCHERS = {
    "lightning": [COMMAND],
    "torchrun": [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", *MODULE],
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a short training, and what the command printed."""
    folder = tmp_path_factory.mktemp("train")
    return folder, launch(folder, *SHORT_TRAINING, "hydra.run.dir=run")


@pytest.mark.slow
def test_training_prints_scales_and_test_errors_and_writes_a_checkpoint(trained):
    folder, result = trained
    assert result.returncode == 0, result.stderr
    assert "Target scales, in the units of the data" in result.stdout
    assert "Test errors: unseen conformers" in result.stdout
    assert "Test errors: unseen molecules" in result.stdout
    assert "warning" not in (result.stdout + result.stderr).lower()
    assert "eV/atom" in result.stdout
    assert "…" not in result.stdout  # the tables fit into 80 columns
    assert len(read_errors(result.stdout)) == 2 * 9
    assert (folder / "run" / "last.ckpt").is_file()
    for file in ("target_scales.txt", "test_errors.txt"):
        assert (folder / "run" / file).read_text(encoding="utf-8") in result.stdout
    assert "val/energy/positions/rmse" in (folder / "run" / "logs" / "metrics.csv").read_text()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The dirpath has changed from")
def test_task_test_uses_the_scales_of_the_checkpoint(trained, tmp_path, capsys):
    folder, training = trained
    run_here(tmp_path, *SHORT_TRAINING, f"ckpt_path={folder / 'run' / 'last.ckpt'}", "task=test")
    printed = capsys.readouterr().out
    assert "Target scales" not in printed  # no fit
    assert len(read_errors(printed)) == 2 * 9
    assert read_errors(printed) == read_errors(training.stdout)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The dirpath has changed from")
def test_task_predict_writes_total_energies_of_every_structure(trained, tmp_path):
    folder, _ = trained
    overrides = [*SHORT_TRAINING, f"ckpt_path={folder / 'run' / 'last.ckpt'}", "task=predict"]
    run_here(tmp_path, *overrides, "+trainer.limit_predict_batches=2")
    energy = mts.load(str(tmp_path / "predictions" / "conformers" / "energy.mts")).block()
    assert energy.samples.values.reshape(-1).tolist() == list(range(64))
    # Total energies in eV, with the baseline: even H2 has -31.
    assert energy.values.max() < -25


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The dirpath has changed from")
def test_task_train_resumes_from_a_checkpoint(trained, tmp_path, capsys):
    """The checkpoint is that of the last epoch, so that nothing is left to train."""
    folder, training = trained
    run_here(tmp_path, *SHORT_TRAINING, f"ckpt_path={folder / 'run' / 'last.ckpt'}")
    printed = capsys.readouterr().out
    assert "Target scales" not in printed  # no fit
    assert read_errors(printed) == read_errors(training.stdout)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:these data are zero")
def test_the_seed_decides_the_weights(tmp_path, capsys):
    errors = []
    for folder, seed in (("a", 1), ("b", 2), ("c", 1)):
        run_here(tmp_path / folder, *SHORT_TRAINING, "trainer.max_epochs=0", f"seed={seed}")
        errors.append(read_errors(capsys.readouterr().out))
    assert len(errors[0]) == 2 * 9
    assert errors[0] == errors[2] != errors[1]


@pytest.mark.slow
def test_a_misspelled_override_is_reported_without_a_traceback(tmp_path):
    result = launch(tmp_path, "callbacks.target_scaler.fixed_scale=1")
    assert result.returncode == 1
    assert "Could not override 'callbacks.target_scaler.fixed_scale'" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_two_processes_print_each_table_once(tmp_path, launcher):
    devices = ["trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu"]
    result = launch(tmp_path, *SHORT_TRAINING, *devices, command=LAUNCHERS[launcher])
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("Target scales") == 1
    assert result.stdout.count("Test errors: unseen molecules") == 1


# Settings that cannot work


@pytest.mark.slow
def test_predictions_need_a_single_process(tmp_path):
    devices = ["trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu"]
    checkpoint = checkpoint_of_another_module(tmp_path)
    with pytest.raises(ValueError, match=r"task=predict: expected one process, got 2; .*devices=1"):
        run_here(tmp_path, *devices, "task=predict", f"ckpt_path={checkpoint}")


@pytest.mark.parametrize("task", ["test", "predict"])
def test_tasks_that_need_a_checkpoint_ask_for_it(tmp_path, task):
    message = f"task={task}: expected a checkpoint, got none; add ckpt_path=<file>"
    with pytest.raises(ValueError, match=message):
        run_here(tmp_path, f"task={task}")


def test_an_unknown_task_lists_the_known_ones(tmp_path):
    with pytest.raises(ValueError, match=r"task: expected one of \['train', 'test', 'predict'\]"):
        run_here(tmp_path, "task=tset")


@pytest.mark.slow
def test_an_unknown_target_in_a_setting_suggests_the_nearest(tmp_path):
    message = r"fixed_scales names the target 'enrgy'.*did you mean 'energy'\?"
    with pytest.raises(ValueError, match=message):
        run_here(tmp_path, *SHORT_TRAINING, "callbacks.target_scaler.fixed_scales={enrgy: 1}")


@pytest.mark.parametrize("file", files_of_other_kinds())
@pytest.mark.parametrize("task", ["train", "test", "predict"])
def test_a_file_that_is_no_checkpoint_is_refused_before_anything_is_built(task, file, tmp_path):
    path, found = file(tmp_path)
    with pytest.raises((ValueError, OSError), match=found):
        run_here(tmp_path, f"task={task}", f"ckpt_path={path}", "data._target_=not.imported")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the checkpoint has no target scales")
@pytest.mark.parametrize("task", ["train", "test", "predict"])
def test_a_checkpoint_of_another_model_is_one_sentence(task, tmp_path):
    checkpoint = checkpoint_of_another_module(tmp_path)
    message = r"expected the weights of MoleculesModel, .*Missing key.*; give the settings of its t"
    with pytest.raises(ValueError, match=message):
        run_here(tmp_path, *SHORT_TRAINING, f"task={task}", f"ckpt_path={checkpoint}")
