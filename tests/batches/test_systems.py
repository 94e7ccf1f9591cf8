"""Systems, and lists of them that remember what was read."""

import torch
from builders import structure_target, system

from lightning_scaler.batches import is_system


def test_is_system():
    assert is_system(system(1))
    for other in (structure_target([1.0]), None, torch.zeros(1)):
        assert not is_system(other)
