"""Fits and evaluations in several real processes, against one; the cases are in processes.py."""

import itertools
import re
import time
import warnings

import processes
import pytest
import torch
import torch.multiprocessing
from small_training import SmallData, SmallNet, quiet_trainer, scaler_callback

from lightning_scaler.scaling.scaler import Scaler

pytestmark = pytest.mark.distributed

# About five times what it takes.
SECONDS_UNTIL_IT_HANGS = 180
EPSILON = torch.finfo(torch.float64).eps


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What one process gives."""
    folder = tmp_path_factory.mktemp("alone")
    trainer, net = quiet_trainer(folder, callbacks=[scaler_callback()]), SmallNet()
    trainer.fit(net, SmallData())
    trainer.save_checkpoint(folder / "net.ckpt")
    with warnings.catch_warnings():
        # Lightning, about loaders that drop their only batch; the pass reads it.
        warnings.simplefilter("ignore")
        return folder, processes.run(folder, 1)


@pytest.fixture(scope="module", params=[2, 3])
def together(request, alone, tmp_path_factory):
    """What each of several processes gives, all cases in one process group."""
    folder, world_size = tmp_path_factory.mktemp("together"), request.param
    (folder / "net.ckpt").write_bytes((alone[0] / "net.ckpt").read_bytes())
    arguments = (str(folder), world_size)
    context = torch.multiprocessing.spawn(processes.spawned, arguments, world_size, join=False)
    deadline = time.monotonic() + SECONDS_UNTIL_IT_HANGS
    while not context.join(timeout=5):
        if time.monotonic() > deadline:
            for process in context.processes:
                process.kill()
            pytest.fail(f"{world_size} processes wait for each other")
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(world_size)]


def largest_difference(first, second):
    """The largest relative difference of any scale, over what rounding allows of its target."""
    largest = 0.0
    first, second = (scaler_of(state) for state in (first, second))
    assert first.targets.keys() == second.targets.keys()
    for name, ours in first.targets.items():
        theirs = second.targets[name]
        assert ours.types.tolist() == theirs.types.tolist()
        assert ours.per_property.keys() == theirs.per_property.keys()
        allowed = max(1e-12, EPSILON * ours.rms_before / (ours.rms_after or 1.0))
        pairs = [(ours.per_target, theirs.per_target)]
        pairs += [(ours.per_property[key], theirs.per_property[key]) for key in ours.per_property]
        for a, b in pairs:
            largest = max(largest, float(((a - b) / b).abs().max()) / allowed)
    return largest


def scaler_of(state):
    scaler = Scaler()
    scaler.set_extra_state(state)
    return scaler


def bits(state):
    """All numbers of a scaler."""
    targets = scaler_of(state).targets.values()
    return [
        part.tolist()
        for t in targets
        for part in (t.per_target, *t.per_property.values(), *t.weights.values())
    ]


def test_scales_are_those_of_one_process_whatever_the_loader(alone, together):
    reference = alone[1]["scales"]
    assert len(reference) == len(processes.KINDS) * len(processes.BATCH_SIZES) + 2
    for case, (expected, _) in reference.items():
        states = [answers["scales"][case][0] for answers in together]
        assert largest_difference(states[0], expected) <= 1.0, case
        for state in states[1:]:
            assert bits(state) == bits(states[0]), case


def test_every_sample_is_read_once_over_all_processes(alone, together):
    for case, (_, read_alone) in alone[1]["scales"].items():
        read = [index for answers in together for index in answers["scales"][case][1]]
        assert sorted(read) == sorted(read_alone), case
        assert case[0] == "stream" or read
    # One structure: all but one process have nothing to read.
    assert [len(a["scales"]["few", 1][1]) for a in together] == [1] + [0] * (len(together) - 1)


def test_one_pass_and_one_gather_of_the_numbers(together):
    """all_gather_object, of the skeletons, is two gathers: of lengths and of bytes."""
    gathers, drawn = {"gloo:all_gather": 3}, {"gloo:broadcast": 2}
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


@pytest.mark.parametrize("fault", processes.FAULTS)
def test_a_fault_stops_all_with_its_message(together, fault):
    answers = [answers["faults"][fault] for answers in together]
    expected = processes.FAULTS[fault].format(last=len(together) - 1)
    for answer in answers:
        assert re.search(expected, answer["message"]), answer["message"]
    raised = [*itertools.chain(*(answer["raised"] for answer in answers))]
    since = min(raised or [answer["start"] for answer in answers])
    assert max(answer["stopped"] for answer in answers) - since < 10.0
    if fault == "at once, the others busy":
        # They stop amid their part of the 22.
        assert max(answer["reads"] for answer in answers) < 22 // len(together)


def test_a_fit_after_a_fault_hears_nothing_of_it(alone, together):
    expected = alone[1]["scales"]["random", 4][0]
    for answers in together:
        assert largest_difference(answers["faults"]["afterwards"], expected) <= 1.0


def test_metrics_count_every_sample_once(alone, together):
    """Lightning repeats samples, so that all processes have equally many."""
    for case, expected in alone[1]["evaluation"].items():
        assert len(expected) == 11
        for answers in together:
            errors = answers["evaluation"][case]
            assert errors.keys() == expected.keys()
            for name, value in expected.items():
                # A loss is a mean over batches, and so depends on which structures share one.
                if not name.endswith("loss") or case[2] == 1:
                    assert errors[name] == pytest.approx(value, rel=1e-12), (case, name)


@pytest.mark.parametrize("strategy", ["ddp", "model-parallel"])
def test_a_restart_reads_nothing_and_goes_on_as_if_there_had_been_none(together, strategy):
    """ModelParallelStrategy restores the scales after the fit has started."""
    for answers in together:
        runs = answers[strategy]
        assert len(runs["whole"]["losses"]) > len(runs["first"]["losses"]) > 0
        assert runs["first"]["losses"] + runs["second"]["losses"] == runs["whole"]["losses"]
        assert bits(runs["second"]["state"]) == bits(runs["first"]["state"])
        assert bits(runs["second"]["state"]) == bits(together[0][strategy]["whole"]["state"])
        # The pass, and two epochs; no pass after the restart.
        epoch = runs["whole"]["reads"] - runs["first"]["reads"]
        assert runs["second"]["reads"] == epoch
        assert runs["first"]["reads"] > epoch


def test_spawned_processes_bring_the_scales_back(alone, tmp_path):
    """Strategy ddp_spawn: Lightning starts the processes by itself, and ends them."""
    net, options = SmallNet(), {"strategy": "ddp_spawn", "devices": 2}
    quiet_trainer(tmp_path, callbacks=[scaler_callback()], **options).fit(net, processes.LateData())
    assert largest_difference(net.scaler.get_extra_state(), alone[1]["scales"]["random", 4][0]) <= 1
