"""The tasks of the command, run in this process."""

import pytest
from launching import SHORT_TRAINING, run_here


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
