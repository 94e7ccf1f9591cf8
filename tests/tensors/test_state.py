"""States of plain Python objects and tensors: taken apart, put together, compared."""

import copy

import pytest
import torch

from lightning_scaler.tensors import digest, flatten_state, unflatten_state

STATE = {
    "name": "energy",
    "types": torch.tensor([1, 8]),
    "sums": [torch.arange(6).double().reshape(2, 3), None],
    "empty": torch.zeros(0, 4).double(),
    "nested": [([0, 1], {"rest": torch.tensor([0.5, torch.nan]).double()})],
}


def test_flattened_states_are_restored():
    skeleton, numbers = flatten_state(STATE)
    assert numbers.tolist()[:7] == [0, 1, 2, 3, 4, 5, 0.5]
    assert len(numbers) == 8
    assert not any(torch.is_tensor(part) for part in (skeleton["sums"][0], skeleton["empty"]))
    padded = torch.cat([numbers, torch.full((5,), 7.0).double()])
    assert digest(unflatten_state(skeleton, padded)) == digest(STATE)


def test_restored_states_share_no_memory():
    skeleton, numbers = flatten_state(STATE)
    again = unflatten_state(skeleton, numbers)
    again["sums"][0][0, 0] = 9.0
    assert numbers[0] == 0.0


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s["sums"][0].mul_(1 + 2.0**-52),
        lambda s: s.update(types=torch.tensor([1, 6])),
        lambda s: s.update(types=torch.tensor([1, 8]).int()),
        lambda s: s.update(name="energie"),
        lambda s: s.update(empty=torch.zeros(0, 5).double()),
        lambda s: s["sums"].append(None),
        lambda s: s["nested"][0][1].update(other=s["nested"][0][1].pop("rest")),
    ],
)
def test_any_difference_changes_the_digest(change):
    other = copy.deepcopy(STATE)
    assert digest(other) == digest(STATE)
    change(other)
    assert digest(other) != digest(STATE)
