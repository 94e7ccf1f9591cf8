"""What training loops of one's own do to a state dict: average it, cast it, keep the best one."""

import copy
import warnings
from collections.abc import Callable

import pytest
import safetensors.torch
import torch
import torch.distributed.checkpoint
from builders import fit, structure_target, system

from lightning_scaler import CompositionBaseline, Scaler
from lightning_scaler.tensors import InvalidStateError

SYSTEMS = [system(8), system(1, 8, 1), system(6, 8), system(1, 6, 1)]
ENERGIES = [-75.0, -76.4, -113.3, -39.1]


def fitted(factor: float = 1.0) -> Scaler:
    targets = {"energy": structure_target([factor * energy for energy in ENERGIES])}
    return fit(SYSTEMS, targets, baseline=CompositionBaseline())


class Model(torch.nn.Module):
    def __init__(self, scaler: Scaler | None = None) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 2)
        self.scaler = scaler or Scaler()


def per_atom_energies(scaler: Scaler) -> list[float]:
    """What the scaler makes of energies in loss space: all that it holds for them."""
    energies = structure_target([1.0, 2.0, 3.0, 4.0])
    return scaler.convert(SYSTEMS, {"energy": energies}, "loss", "physical")["energy"][
        0
    ].values.tolist()


def assert_restored(model: torch.nn.Module) -> None:
    assert per_atom_energies(model.scaler) == per_atom_energies(fitted())


def ema(state: dict, step: Callable, n_steps: int = 100) -> dict:
    average = {name: tensor.clone() for name, tensor in state.items()}
    for _ in range(n_steps):
        for name, tensor in state.items():
            step(average[name], tensor)
    return average


def foreach_lerp(tensors: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    return torch._foreach_lerp(tensors, tensors, 0.3)


LOOPS = {
    "lerp": lambda state: ema(state, lambda mean, new: mean.lerp_(new, 0.001)),
    "mul and add": lambda state: ema(
        state, lambda mean, new: mean.mul_(0.999).add_(new, alpha=0.001)
    ),
    "fast decay": lambda state: ema(state, lambda mean, new: mean.mul_(0.9).add_(new, alpha=0.1)),
    "arithmetic": lambda state: ema(state, lambda mean, new: mean.copy_(0.99 * mean + 0.01 * new)),
    "foreach": lambda state: dict(
        zip(
            state, torch._foreach_lerp(list(state.values()), list(state.values()), 0.3), strict=True
        )
    ),
    "mean of 7 copies": lambda state: {
        name: sum(tensor / 7 for _ in range(7)) for name, tensor in state.items()
    },
    "sum divided by 3": lambda state: {
        name: torch.stack([tensor] * 3).sum(0) / 3 for name, tensor in state.items()
    },
    "half": lambda state: {name: tensor.half() for name, tensor in state.items()},
    "bfloat16": lambda state: {name: tensor.bfloat16() for name, tensor in state.items()},
    "double": lambda state: {name: tensor.double() for name, tensor in state.items()},
    "ema in half": lambda state: ema(
        {name: tensor.half() for name, tensor in state.items()},
        lambda mean, new: mean.mul_(0.99).add_(new, alpha=0.01),
    ),
    "noise of mixed precision": lambda state: {
        name: tensor + 0.1 * torch.rand_like(tensor) for name, tensor in state.items()
    },
    "deepcopy": copy.deepcopy,
    "clone": lambda state: {name: tensor.detach().cpu().clone() for name, tensor in state.items()},
    "numpy": lambda state: {name: torch.tensor(t.numpy().tolist()) for name, t in state.items()},
    "empty_like and copy_": lambda state: {
        name: torch.empty_like(tensor).copy_(tensor) for name, tensor in state.items()
    },
}


@pytest.mark.parametrize("loop", LOOPS)
def test_a_state_that_went_through_a_loop_over_the_state_dict_loads(loop):
    state = LOOPS[loop](Model(fitted()).state_dict())
    fresh = Model()
    fresh.load_state_dict(state)
    assert_restored(fresh)


def test_averages_in_bfloat16_load_or_are_an_error():
    """bfloat16 has no number between 204 and 205, so averages may be off by one."""
    state = {name: tensor.bfloat16() for name, tensor in Model(fitted()).state_dict().items()}
    average = ema(state, lambda mean, new: mean.mul_(0.9).add_(new, alpha=0.1))
    with pytest.raises(InvalidStateError, match="damaged, or a mixture of different states"):
        Model().load_state_dict(average)


def test_best_weights_are_restored_after_the_scales_were_replaced():
    model = Model(fitted())
    best = copy.deepcopy(model.state_dict())
    model.scaler = fitted(3.0)
    model.load_state_dict(best)
    assert_restored(model)


def test_extra_state_is_a_copy():
    model = Model(fitted())
    for entry in model.state_dict().values():
        entry.zero_()
    model.scaler.state()["targets"]["energy"]["per_target"].zero_()
    assert_restored(model)


@pytest.mark.parametrize("started", ["before the fit", "before a refit"])
def test_an_average_across_a_fit_is_an_error_and_keeps_the_scales(started):
    start = Model(None if started == "before the fit" else fitted(3.0)).state_dict()
    average = {name: tensor.clone() for name, tensor in start.items()}
    model = Model(fitted())
    for _ in range(100):
        for name, tensor in model.state_dict().items():
            average[name].lerp_(tensor, 0.01)
    with pytest.raises(
        InvalidStateError, match=r"mixture of different states.*leave this entry out"
    ):
        model.load_state_dict(average)
    assert_restored(model)
    # The way out.
    del average["scaler._extra_state"]
    model.load_state_dict(average)
    assert_restored(model)
    assert torch.equal(model.layer.weight, average["layer.weight"])


def test_save_model_of_safetensors(tmp_path):
    safetensors.torch.save_model(Model(fitted()), tmp_path / "model.safetensors")
    fresh = Model()
    assert safetensors.torch.load_model(fresh, tmp_path / "model.safetensors") == (set(), [])
    assert_restored(fresh)


def test_distributed_checkpoint_of_one_process(tmp_path):
    saved = Model(fitted()).state_dict()
    fresh = Model()
    state = fresh.state_dict()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled, unavailable")
        torch.distributed.checkpoint.save(saved, checkpoint_id=tmp_path)
        torch.distributed.checkpoint.load(state, checkpoint_id=tmp_path)
    fresh.load_state_dict(state)
    assert_restored(fresh)


@pytest.mark.parametrize("kind", [torch.optim.swa_utils.AveragedModel, copy.deepcopy])
def test_averaged_models_keep_the_scales(kind):
    model = Model(fitted())
    averaged = kind(model)
    if averaged is not model and hasattr(averaged, "update_parameters"):
        averaged.update_parameters(model)
        averaged.update_parameters(model)
        averaged = averaged.module
    assert_restored(averaged)
    fresh = Model()
    fresh.load_state_dict(averaged.state_dict())
    assert_restored(fresh)


def test_state_is_on_the_cpu_whatever_the_default_device():
    with torch.device("meta"):
        state = fitted_on_cpu.get_extra_state()
        scaler = Scaler()
        scaler.set_extra_state(state)
    assert state.device.type == "cpu"
    assert per_atom_energies(scaler) == per_atom_energies(fitted_on_cpu)


fitted_on_cpu = fitted()


def test_a_state_loaded_in_inference_mode_serves_training():
    scaler = Scaler()
    with torch.inference_mode():
        scaler.set_extra_state(fitted_on_cpu.get_extra_state())
    energies = structure_target([1.0, 2.0, 3.0, 4.0])
    energies[0].values.requires_grad_(True)
    scaler.convert(SYSTEMS, {"energy": energies}, "loss", "physical")["energy"][
        0
    ].values.sum().backward()
    assert energies[0].values.grad is not None
