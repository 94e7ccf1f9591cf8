"""Means with weights."""

import torch

from lightning_scaler.metrics import WeightedMean


def test_a_weighted_mean_uses_weights_and_propagates_nan():
    mean = WeightedMean()
    mean.update(torch.tensor(1.0), 3)
    mean.update(torch.tensor(7.0), 0)
    mean.update(torch.tensor(5.0), 1)
    assert mean.compute().item() == 2.0
    mean.update(torch.tensor(torch.nan), 1)
    assert mean.compute().isnan()
    mean.reset()
    mean.update(torch.tensor(4.0), 2)
    assert mean.compute().item() == 4.0
