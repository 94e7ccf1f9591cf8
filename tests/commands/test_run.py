"""The tasks of the command, run in this process."""

import pytest
import torch
from builders import atom_samples, atom_target, structure_target
from launching import SHORT_TRAINING, run_here

from lightning_scaler.commands.run import join_predictions


def test_predictions_need_a_single_process(tmp_path):
    devices = ["trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu"]
    with pytest.raises(ValueError, match=r"task=predict: expected one process, got 2; .*devices=1"):
        run_here(tmp_path, *devices, "task=predict", "ckpt_path=last.ckpt")


@pytest.mark.parametrize("task", ["test", "predict"])
def test_tasks_that_need_a_checkpoint_ask_for_it(tmp_path, task):
    message = f"task={task}: expected a checkpoint, got none; add ckpt_path=<file>"
    with pytest.raises(ValueError, match=message):
        run_here(tmp_path, f"task={task}")


def test_an_unknown_task_lists_the_known_ones(tmp_path):
    with pytest.raises(ValueError, match=r"task: expected one of \['train', 'test', 'predict'\]"):
        run_here(tmp_path, "task=tset")


def test_an_unknown_target_in_a_setting_suggests_the_nearest(tmp_path):
    message = r"fixed_scales names the target 'enrgy'.*did you mean 'energy'\?"
    with pytest.raises(ValueError, match=message):
        run_here(tmp_path, *SHORT_TRAINING, "callbacks.target_scaler.fixed_scales={enrgy: 1}")


def test_joined_predictions_number_the_systems_of_the_dataset():
    """A batch of two systems, then a batch of one; energies have positions gradients."""
    first = {
        "energy": structure_target([1.0, 2.0], gradient={"positions": [[[1, 0, 0]], [[2, 0, 0]]]}),
        "charges": atom_target([0.1, 0.2], atom_samples(1, 1)),
    }
    second = {
        "energy": structure_target([3.0], gradient={"positions": [[[3, 0, 0], [4, 0, 0]]]}),
        "charges": atom_target([0.3, 0.4], atom_samples(2)),
    }
    joined = join_predictions([first, second])
    energy = joined["energy"].block()
    assert energy.samples.values.reshape(-1).tolist() == [0, 1, 2]
    assert energy.values.reshape(-1).tolist() == [1.0, 2.0, 3.0]
    gradient = energy.gradient("positions")
    assert gradient.samples.column("sample").tolist() == [0, 1, 2, 2]
    assert torch.equal(gradient.values[:, 0, 0], torch.tensor([1.0, 2, 3, 4]).double())
    charges = joined["charges"].block()
    assert charges.samples.values.tolist() == [[0, 0], [1, 0], [2, 0], [2, 1]]
    assert charges.values.reshape(-1).tolist() == [0.1, 0.2, 0.3, 0.4]
