"""States as one tensor of bytes."""

import math

import pytest
import torch

from lightning_scaler.tensors import (
    InvalidStateError,
    digest,
    state_from_tensor,
    state_to_tensor,
)

STATE = {
    "types": torch.tensor([1, 8]),
    "sums": [torch.tensor([[0.1], [torch.nan]]).double(), None, True, -3, 0.1, -math.inf],
    "labels": torch.tensor([[1, 2]], dtype=torch.int32),
    "text": "ein Name: σ²",
    "by type": {1: 0.5, 8: torch.ones(0, 4)},
    "$tensor": {"$tensor": 0},
    "buffer": b"\x00\xff",
    "number": torch.tensor(2.5).double(),
    "half": torch.tensor([1.5, -0.1]).bfloat16(),
    "mask": torch.tensor([True, False]),
    "complex": torch.tensor([1 + 2j]),
    "view": torch.arange(12).reshape(3, 4).T[1:],
    "single element of a matrix": torch.arange(4.0).reshape(2, 2).T[:1, 1:],
}


def test_a_state_comes_back_to_the_bit():
    again = state_from_tensor(state_to_tensor(STATE))
    assert digest(again) == digest(STATE)
    assert list(again) == list(STATE)
    again["types"][0] = 7
    assert STATE["types"].tolist() == [1, 8]


def test_views_and_conjugates_come_back_as_what_they_show():
    state = state_from_tensor(
        state_to_tensor([torch.tensor([1 + 2j]).conj(), torch.ones(2).expand(3, 2)])
    )
    assert state[0].tolist() == [1 - 2j]
    assert state[1].tolist() == [[1.0, 1.0]] * 3


def test_the_tensor_has_bytes_from_0_to_255_as_float32():
    tensor = state_to_tensor(STATE)
    assert (tensor.dtype, tensor.device.type, tensor.shape) == (
        torch.float32,
        "cpu",
        torch.Size([16384]),
    )
    assert torch.equal(tensor, tensor.round())
    assert tensor.min() == 0.0
    assert 200.0 < tensor.max() <= 255.0
    assert state_to_tensor({}).shape == torch.Size([16384])


@pytest.mark.parametrize(
    ("n_bytes", "length"), [(10_000, 16384), (17_000, 32768), (100_000, 131072)]
)
def test_long_states_have_the_next_power_of_two_as_length(n_bytes, length):
    # Random bytes cannot be compressed.
    values = torch.randint(0, 256, (n_bytes,), generator=torch.Generator().manual_seed(0))
    state = {"weights": values.to(torch.uint8)}
    tensor = state_to_tensor(state)
    assert tensor.shape == torch.Size([length])
    assert digest(state_from_tensor(tensor)) == digest(state)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.uint8])
def test_any_dtype_that_holds_the_bytes_is_read(dtype):
    assert digest(state_from_tensor(state_to_tensor(STATE).to(dtype))) == digest(STATE)


@pytest.mark.parametrize("where", [0, 10, 20, 60, 300])
def test_a_changed_byte_is_an_error(where):
    tensor = state_to_tensor(STATE)
    tensor[where] = (tensor[where] + 1) % 256
    with pytest.raises(InvalidStateError, match=r"damaged, or a mixture|truncated"):
        state_from_tensor(tensor)


@pytest.mark.parametrize("length", [10, 40, 48, 100, 300])
def test_a_truncated_state_is_an_error(length):
    with pytest.raises(InvalidStateError, match=rf"truncated: expected at least \d+ .* {length}$"):
        state_from_tensor(state_to_tensor(STATE)[:length])


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.9])
def test_an_average_of_two_different_states_is_an_error(share):
    first, second = state_to_tensor(STATE), state_to_tensor({**STATE, "text": "another"})
    with pytest.raises(InvalidStateError, match="mixture of different states"):
        state_from_tensor(first.lerp(second, share))


def test_an_average_with_another_state_that_rounds_to_the_first_is_the_first():
    """After enough steps, nothing is left of what an average was started with."""
    first, second = state_to_tensor(STATE), state_to_tensor({**STATE, "text": "another"})
    assert digest(state_from_tensor(first.lerp(second, 1e-3))) == digest(STATE)


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.zeros(16384), "all zeros, and holds no state"),
        (torch.zeros(0), "empty, or all zeros"),
        (torch.ones(16384), "its first bytes are not those of a state"),
        (torch.full((16384,), 256.0), "its elements are not all from 0 to 255"),
        (torch.full((16384,), torch.nan), "its elements are not all from 0 to 255"),
        (torch.zeros(2, 8192), r"one dimension, got torch.float32 of shape \(2, 8192\)"),
        (
            torch.zeros(16384, dtype=torch.complex64),
            "expected a real tensor .* got torch.complex64",
        ),
        (torch.zeros(16384, device="meta"), "on the meta device and holds no values"),
    ],
)
def test_other_tensors_are_an_error(tensor, message):
    with pytest.raises(InvalidStateError, match=message):
        state_from_tensor(tensor)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (object(), r"the state\['a'\]\[0\]: a value of type object cannot be saved"),
        ({(1, 2): 3}, r"the state\['a'\]\[0\]: only strings and integers can be saved as keys"),
        (torch.eye(2).to_sparse(), r"\[0\]: a tensor of layout torch.sparse_coo cannot be saved"),
        (torch.ones(1, device="meta"), r"\[0\]: a tensor on the meta device cannot be saved"),
    ],
)
def test_what_cannot_be_saved_without_pickle_is_an_error_that_says_where(value, message):
    with pytest.raises(TypeError, match=message):
        state_to_tensor({"a": [value]})
