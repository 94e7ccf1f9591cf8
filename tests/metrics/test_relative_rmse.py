import pytest
import torch

from lightning_scaler import RelativeRootMeanSquaredError


def test_batches_are_joined_before_the_root():
    # Errors 1, 0, -2 against targets 3, 4, 12: sqrt(5 / 169).
    metric = RelativeRootMeanSquaredError()
    metric.update(torch.tensor([4.0, 4.0]), torch.tensor([3.0, 4.0]))
    metric.update(torch.tensor([10.0]), torch.tensor([12.0]))
    assert metric.compute().item() == pytest.approx(5**0.5 / 13)


def test_the_baseline_alone_is_one():
    metric = RelativeRootMeanSquaredError()
    assert metric(torch.zeros(3), torch.tensor([0.1, -2.0, 3.0])).item() == 1.0
