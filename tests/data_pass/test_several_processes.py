"""Fits and evaluations in several real processes against one; the cases are in processes.py."""

import itertools
import os
import re
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import processes
import pytest
import torch
from small_training import (
    SmallData,
    SmallNet,
    assert_same_numbers,
    fitted_numbers,
    quiet_trainer,
    scaler_callback,
)

from lightning_scaler import ScaleAccumulator
from lightning_scaler.tensors import digest

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

# About five times what they take.
SECONDS_UNTIL_GROUPS_HANG = 180
EPSILON = torch.finfo(torch.float64).eps


@pytest.fixture(scope="module")
def groups(tmp_path_factory):
    """The folder and the running program of the groups of processes."""
    folder = tmp_path_factory.mktemp("groups")
    trainer = quiet_trainer(folder, callbacks=[scaler_callback()])
    trainer.fit(SmallNet(), SmallData())
    trainer.save_checkpoint(folder / "net.ckpt")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(processes.__file__)), str(folder)]
    with (folder / "log").open("w") as log:
        program = subprocess.Popen(
            command, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    yield folder, program
    if program.poll() is None:
        os.killpg(program.pid, signal.SIGKILL)
        program.wait()


@pytest.fixture(scope="module")
def alone(groups):
    """The answers of one process, found while the groups run."""
    folder, _ = groups
    with warnings.catch_warnings():
        # Lightning, about loaders that drop their only batch; the pass reads it.
        warnings.simplefilter("ignore")
        return processes.run(folder, 1)


@pytest.fixture(scope="module", params=processes.WORLD_SIZES)
def together(request, groups):
    """The answers of each process of a group."""
    folder, program = groups
    try:
        status = program.wait(SECONDS_UNTIL_GROUPS_HANG)
    except subprocess.TimeoutExpired:
        pytest.fail(f"processes wait for each other: {(folder / 'log').read_text()}")
    assert status == 0, (folder / "log").read_text()
    files = [folder / str(request.param) / f"{rank}.pt" for rank in range(request.param)]
    return [torch.load(file, weights_only=True) for file in files]


def largest_difference(first, second):
    """The largest relative difference of scales, over what rounding allows for the target."""
    largest = 0.0
    ours, theirs = fitted_numbers(first), fitted_numbers(second)
    assert ours.keys() == theirs.keys()
    for (target, name, *_), values in ours.items():
        other = theirs[(target, name, *_)]
        if name == "types":
            assert values.tolist() == other.tolist()
        elif name != "weights":
            saved = first["targets"][target]
            rounding = EPSILON * saved["rms_before"] / (saved["rms_after"] or 1.0)
            difference = float(((values - other) / other).abs().max())
            largest = max(largest, difference / max(1e-12, rounding))
    return largest


def test_ddp_spawn_returns_the_scales_to_the_main_process(alone, tmp_path):
    """The first test, since it can run while the groups do."""
    net, options = SmallNet(), {"strategy": "ddp_spawn", "devices": 2}
    quiet_trainer(tmp_path, callbacks=[scaler_callback()], **options).fit(net, processes.LateData())
    assert largest_difference(net.scaler.state(), alone["scales"]["random", 4][0]) <= 1


def test_scales_equal_those_of_one_process_for_every_kind_of_loader(alone, together):
    reference = alone["scales"]
    assert len(reference) == len(processes.KINDS) * len(processes.BATCH_SIZES) + 2
    for case, (expected, _) in reference.items():
        states = [answers["scales"][case][0] for answers in together]
        assert largest_difference(states[0], expected) <= 1.0, case
        for state in states[1:]:
            assert_same_numbers(state, states[0])


def test_every_sample_is_read_once_over_all_processes(alone, together):
    for case, (_, read_alone) in alone["scales"].items():
        read = [index for answers in together for index in answers["scales"][case][1]]
        assert sorted(read) == sorted(read_alone), case
        assert case[0] == "stream" or read
    # With one structure, only one process has something to read.
    assert [len(a["scales"]["few", 1][1]) for a in together] == [1] + [0] * (len(together) - 1)


def test_a_subset_inside_a_batch_sampler_is_lost_in_the_data_pass_as_in_training(together):
    """Lightning replaces the sampler by one over all 22 structures; training pads them."""
    of_pass = [i for answers in together for i in answers["lost subset"][0]]
    of_training = {i for answers in together for i in answers["lost subset"][1]}
    assert sorted(of_pass) == list(range(22))
    assert of_training == set(range(22))
    assert [len(answers["lost subset"][2]) for answers in together] == [1] + [0] * (
        len(together) - 1
    )


def test_overfit_batches_restricts_the_data_pass_to_the_batches_trained_on(together):
    """Batches of four of 48 structures; a number counts those of one process."""
    for batches, n_read in {1: 4 * len(together), 0.5: 24}.items():
        of_ranks = [answers["overfit"][batches] for answers in together]
        read = sorted(index for of_pass, _ in of_ranks for index in of_pass)
        trained_on = sorted(index for _, of_training in of_ranks for index in of_training)
        assert read == trained_on == list(range(n_read))


def test_a_fit_is_one_pass_and_one_gather_of_values(together):
    """The two other gathers are of states without values, by all_gather_object."""
    lightning = {"gloo:barrier": 3, "gloo:all_reduce": 2}  # it sets up the loader then
    gathers, drawn = {"gloo:all_gather": 3, **lightning}, {"gloo:broadcast": 2}
    for answers in together:
        found = {name: case["collectives"] for name, case in answers["collectives"].items()}
        assert found["random"] == gathers
        assert found["weighted"] == {**gathers, **drawn}
        assert found["all numbers fixed"] == gathers
        assert found["second fit"] == {}
    reads = {
        name: sum(answers["collectives"][name]["reads"] for answers in together) for name in found
    }
    assert reads == {"random": 22, "weighted": 30, "all numbers fixed": 4, "second fit": 0}


def test_partial_fits_equal_those_of_one_process(alone, together):
    for name in ("types", "baseline", "predictions", "scales"):
        expected = alone["refits"][name]
        states = [answers["refits"][name] for answers in together]
        # Batches on other processes are predicted in another order, in float32.
        rtol = 1e-6 if name == "predictions" else 1e-11
        assert_same_numbers(states[0], expected, rtol)
        for state in states[1:]:
            assert_same_numbers(state, states[0])
    for answers in together:
        for name, values in alone["refits"]["parameters"].items():
            torch.testing.assert_close(
                answers["refits"]["parameters"][name], values, rtol=1e-11, atol=0
            )


@pytest.mark.parametrize("fault", processes.FAULTS)
def test_a_failure_stops_all_processes_with_its_message(together, fault):
    answers = [answers["faults"][fault] for answers in together]
    expected = processes.FAULTS[fault].format(last=len(together) - 1)
    for answer in answers:
        assert re.search(expected, answer["message"]), answer["message"]
    raised = [*itertools.chain(*(answer["raised"] for answer in answers))]
    since = min(raised or [answer["start"] for answer in answers])
    assert max(answer["stopped"] for answer in answers) - since < 10.0
    if fault == "at once, the others busy":
        # The others stop in the middle of their part of the 22 structures.
        assert max(answer["reads"] for answer in answers) < 22 // len(together)


def test_a_fit_after_a_failure_works(alone, together):
    expected = alone["scales"]["random", 4][0]
    for answers in together:
        assert largest_difference(answers["faults"]["afterwards"], expected) <= 1.0


def test_the_cache_of_rank_0_is_used_by_all_processes(together):
    fits = [answers["cache"]["fits"] for answers in together]
    assert [answers["cache"]["exists"] for answers in together] == [True] + [False] * (
        len(together) - 1
    )
    # To identify the data, each process reads 32 samples; the data pass reads 50 in all.
    assert sum(first["reads"] for first, _, _ in fits) == 50 + 32 * len(together)
    for first, second, damaged in fits:
        assert second["reads"] == 32
        assert_same_numbers(second["state"], fits[0][0]["state"])
        assert_same_numbers(first["state"], fits[0][0]["state"])
        assert re.search(r"on rank 0: ValueError: cache: file .*truncated", damaged["message"])


def test_data_are_identified_alike_by_several_processes_and_by_one(together, tmp_path):
    callback = scaler_callback(cache=tmp_path / "cache.st")
    trainer = quiet_trainer(tmp_path, callbacks=[callback], max_epochs=0, limit_val_batches=0)
    trainer.fit(SmallNet(), SmallData(50))
    (part,) = ScaleAccumulator.load(tmp_path / "cache.st").parts
    assert together[0]["cache"]["data"] == part.data


def test_a_sample_is_that_of_one_process(alone, together):
    """The same structures are read, and all processes stop at the same number of batches."""
    expected, read_alone = alone["sampled"]["shared"]
    # More than the first 100 batches, so that the errors were compared several times.
    assert 400 < len(read_alone) < processes.SAMPLED_SIZE
    states = [answers["sampled"]["shared"][0] for answers in together]
    read = [index for answers in together for index in answers["sampled"]["shared"][1]]
    assert sorted(read) == sorted(read_alone)
    assert_same_numbers(states[0], expected, rtol=1e-12)
    for name, saved in expected["targets"].items():
        errors = [state["targets"][name]["relative_errors"] for state in states]
        torch.testing.assert_close(errors[0], saved["relative_errors"], rtol=1e-9, atol=0.0)
        assert all(other.equal(errors[0]) for other in errors[1:])
    for state in states[1:]:
        assert_same_numbers(state, states[0])


def test_a_sample_of_all_data_gives_the_scales_of_one_process(alone, together):
    expected, read_alone = alone["sampled"]["all"]
    read = [index for answers in together for index in answers["sampled"]["all"][1]]
    assert sorted(read) == sorted(read_alone) == list(range(processes.SAMPLED_SIZE))
    for answers in together:
        assert_same_numbers(answers["sampled"]["all"][0], expected, rtol=1e-12)


def test_processes_with_data_of_their_own_sample_the_same_fraction_of_them(alone, together):
    exact = alone["sampled"]["all"][0]
    answers = [one["sampled"]["split"] for one in together]
    for state, _ in answers[1:]:
        assert_same_numbers(state, answers[0][0])
    n_read = [len(read) for _, read in answers]
    n_all = [max(read) - min(read) for _, read in answers]
    fractions = [some / of_all for some, of_all in zip(n_read, n_all, strict=True)]
    assert max(fractions) < 0.95
    assert max(fractions) - min(fractions) < 0.05
    assert max(n_read) > 1.5 * min(n_read)
    for name, saved in answers[0][0]["targets"].items():
        ratio = saved["per_target"] / exact["targets"][name]["per_target"]
        assert float((ratio - 1.0).abs().max()) < 0.06  # four times the error


def test_a_failure_stops_a_sampled_pass_on_all_processes(alone, together):
    assert alone["sampled"]["fails"] == "structure 30 is truncated"
    for answers in together:
        message = f"failed on rank {len(together) - 1}: OSError: structure 30 is truncated"
        assert message in answers["sampled"]["fails"]


def test_metrics_count_padded_samples_once(alone, together):
    """Lightning repeats samples to give all processes equal numbers of them."""
    for case, expected in alone["evaluation"].items():
        # A loss and its five terms; for each of these mae and rmse, and four more in some cases.
        n_metrics = 2 if case[0] in ("fit", "pytorch_lightning") else 6
        assert len(expected) == 1 + 5 + 5 * n_metrics
        for answers in together:
            errors = answers["evaluation"][case]
            assert errors.keys() == expected.keys()
            for name, value in expected.items():
                # A loss is a mean over batches, so it depends on which structures share a batch.
                if "loss" not in name or case[2] == 1:
                    assert errors[name] == pytest.approx(value, rel=1e-12), (case, name)


def test_pictures_are_drawn_by_rank_0_with_the_missing_values_of_all_processes(alone, together):
    expected = alone["pictures"]
    assert expected["missing"]["charges"] > 0.1
    assert len(expected["files"]) == 3
    assert [answers["pictures"]["missing"] for answers in together] == [expected["missing"]] + [
        {} for _ in together[1:]
    ]
    for answers in together:
        assert answers["pictures"]["files"] == expected["files"]
        # Structures that pad the validation are counted once.
        assert answers["pictures"]["rms"] == pytest.approx(expected["rms"], rel=1e-6)


def test_distributed_checkpoints_restore_the_scales_of_a_fresh_module(together):
    for answers in together:
        saved, loaded = answers["shards"]
        assert saved["targets"]
        assert digest(loaded) == digest(saved)


@pytest.mark.parametrize("strategy", ["ddp", "model-parallel", "distributed-checkpoint"])
def test_a_resumed_run_has_no_data_pass_and_the_losses_of_an_uninterrupted_one(together, strategy):
    """ModelParallelStrategy restores the scales after on_fit_start."""
    for answers in together:
        runs = answers[strategy]
        assert len(runs["whole"]["losses"]) > len(runs["first"]["losses"]) > 0
        assert runs["first"]["losses"] + runs["second"]["losses"] == runs["whole"]["losses"]
        assert_same_numbers(runs["second"]["state"], runs["first"]["state"])
        assert_same_numbers(runs["second"]["state"], together[0][strategy]["whole"]["state"])
        # The pass, and two epochs; no pass after the restart.
        epoch = runs["whole"]["reads"] - runs["first"]["reads"]
        assert runs["second"]["reads"] == epoch
        assert runs["first"]["reads"] > epoch


def test_a_module_without_a_mixin_trains_as_in_one_process(alone, together):
    """All structures in one step: the mean of the losses of equal parts is the loss of all."""
    expected = alone["other module"]
    answers = [one["other module"] for one in together]
    for answer in answers:
        assert answer["class"] == "ScaledOtherModule"
        assert digest(answer["state"]) == digest(answers[0]["state"])
        assert_same_numbers(answer["state"], expected["state"], rtol=1e-12)
        torch.testing.assert_close(answer["weights"], expected["weights"], rtol=1e-9, atol=1e-9)


def test_warnings_of_the_first_batch_come_from_rank_0_alone(alone, together):
    (warning,) = alone["other module"]["warnings"]
    assert "some are 0, so they are indices" in warning
    given = [answers["other module"]["warnings"] for answers in together]
    assert given == [[warning]] + [[]] * (len(together) - 1)
