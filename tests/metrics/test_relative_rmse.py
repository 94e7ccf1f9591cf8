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


def test_processes_are_joined_before_the_root():
    # Errors 1 and -2 against targets 4 and 12: sqrt(5 / 160), not the mean of 1 / 4 and 2 / 12.
    metrics = [RelativeRootMeanSquaredError() for _ in range(2)]
    metrics[0].update(torch.tensor([5.0]), torch.tensor([4.0]))
    metrics[1].update(torch.tensor([10.0]), torch.tensor([12.0]))
    metrics[0].merge_state(metrics[1])
    assert metrics[0].compute().item() == pytest.approx((5 / 160) ** 0.5)


def test_shapes_that_pytorch_would_expand_are_refused():
    with pytest.raises(
        ValueError, match=r"of the same shape, got \(2, 1\) and \(2,\); flatten both"
    ):
        RelativeRootMeanSquaredError()(torch.zeros(2, 1), torch.zeros(2))
