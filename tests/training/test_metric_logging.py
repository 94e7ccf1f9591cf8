"""ScaleKind metrics are logged of a target, and under what names."""

import pytest
import torch
from builders import atom_samples, spherical, structure_target
from torchmetrics import MeanAbsoluteError, MetricCollection

from lightning_scaler.tensors.layout import TargetLayout
from lightning_scaler.training.metric_logging import WeightedMean, metrics_of_part, parts_of_target


def names(tensor, extensive, per_block=()):
    layout = TargetLayout.of("t", tensor)
    return [part.name("mae") for part in parts_of_target(layout, extensive, per_block)]


def test_gradients_of_positions_are_not_divided_by_atoms_and_those_of_strain_are():
    gradient = {"positions": [[[1.0, 0, 0]]], "strain": [[[1.0, 0, 0]] * 3]}
    energy = structure_target([1.0], gradient=gradient)
    assert names(energy, True) == ["t/mae_per_atom", "t/positions/mae", "t/strain/mae_per_atom"]
    assert names(energy, False) == ["t/mae", "t/positions/mae", "t/strain/mae"]


def test_blocks_are_named_by_what_tells_them_apart():
    values = {(0, 1): [[[1.0]]], (1, -1): [[[1.0], [2.0], [3.0]]]}
    tensor = spherical(values, atom_samples(1))
    assert names(tensor, False) == ["t/mae"]
    blocks = ["t/o3_lambda_0/mae", "t/o3_lambda_1_o3_sigma_-1/mae"]
    assert names(tensor, False, per_block=["t"]) == ["t/mae", *blocks]


def test_metrics_are_copied_and_a_single_one_is_refused():
    metrics = MetricCollection({"mae": MeanAbsoluteError()})
    first, second = (metrics_of_part(metrics)["mae"] for _ in range(2))
    assert first is not second
    first.update(torch.zeros(1, dtype=torch.float64), torch.full((1,), 1e-9, dtype=torch.float64))
    assert first.compute() == torch.tensor(1e-9, dtype=torch.float64)
    assert not second.update_called
    with pytest.raises(TypeError, match=r"expected a torchmetrics MetricCollection.*MeanAbsolute"):
        metrics_of_part(MeanAbsoluteError())


def test_a_mean_weighs_and_keeps_nan():
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
