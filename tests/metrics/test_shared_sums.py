"""Means and errors from shared sums, these against torchmetrics with the values themselves."""

import copy

import pytest
import torch
from torchmetrics import MeanAbsoluteError, MeanSquaredError, R2Score

from lightning_scaler.metrics import MeanOfSums, SharedSums, SummedError, is_summable
from lightning_scaler.scaling import TargetPart

ENERGY, GRADIENT = TargetPart("energy", (0,)), TargetPart("energy", (0,), "positions")
BLOCKS = [TargetPart("polarizability", (0, 1)), TargetPart("polarizability", (2, 1))]
PARTS = [ENERGY, GRADIENT, *BLOCKS]
METRICS = [MeanAbsoluteError(), MeanSquaredError(), MeanSquaredError(squared=False)]


def sums_of(errors):
    return torch.stack([errors.abs().sum(), errors.square().sum(), torch.tensor(len(errors))])


@pytest.mark.parametrize("parts", [[ENERGY], [GRADIENT], BLOCKS])
@pytest.mark.parametrize("metric", METRICS)
def test_errors_from_sums_are_those_of_the_values(metric, parts):
    """Batches have some of the parts only, in any order; several blocks are one error."""
    generator = torch.Generator().manual_seed(0)
    sums, metric = SharedSums(PARTS, 3), copy.deepcopy(metric).set_dtype(torch.float64)
    error = SummedError(sums, parts, metric)
    for in_batch in (PARTS, PARTS[::-1], [GRADIENT, BLOCKS[1]], [ENERGY, BLOCKS[0]]):
        found = []
        for part in in_batch:
            size = int(torch.randint(1, 9, (), generator=generator))
            values = torch.randn(size, dtype=torch.float64, generator=generator)
            found.append(sums_of(values))
            if part in parts:
                metric.update(values, torch.zeros_like(values))
        error.update(in_batch, torch.stack(found))
    torch.testing.assert_close(error.compute(), metric.compute(), rtol=1e-14, atol=0.0)


def test_errors_that_share_sums_are_reset_together():
    sums = SharedSums(PARTS, 3)
    errors = [SummedError(sums, [part], MeanAbsoluteError()) for part in PARTS[:2]]
    assert not any(error.update_called for error in errors)
    sums.update([ENERGY], torch.tensor([[6.0, 20.0, 2.0]]))
    assert [error.update_called for error in errors] == [True, False]
    assert errors[0].compute() == 3.0
    assert errors[1].compute() is None  # Lightning logs nothing then
    copied = copy.deepcopy(torch.nn.ModuleList(errors))
    errors[1].reset()
    assert not errors[0].update_called
    assert not sums.sums.any()
    assert copied[0].compute() == 3.0


def test_missing_values_only_are_no_error_and_nan_predictions_are():
    sums = SharedSums([ENERGY], 3)
    error = SummedError(sums, [ENERGY], MeanSquaredError(squared=False))
    sums.update([ENERGY], torch.zeros(1, 3))
    assert error.update_called
    assert error.compute() is None
    sums.update([ENERGY], torch.tensor([[torch.nan, torch.nan, 1.0]]))
    assert error.compute().isnan()


def test_a_batch_without_targets_may_be_on_another_device():
    sums = SharedSums([ENERGY], 3).to("meta")
    sums.update([], torch.zeros(0, 3))  # computed from no tensor at all
    assert sums.sums.device.type == "meta"


def add(sums, **weighted):
    """Add values with weights under their names."""
    rows = [[value * weight, weight] for value, weight in weighted.values()]
    sums.update(list(weighted), torch.tensor(rows, dtype=torch.float64))


def test_means_have_weights_and_are_updated_by_name_in_any_order():
    sums = SharedSums(["a", "b", "c"], 2)
    means = {name: MeanOfSums(sums, [name]) for name in sums.names}
    add(sums, a=(1.0, 1), b=(2.0, 0), c=(3.0, 2))
    add(sums, c=(6.0, 1), a=(5.0, 3), other=(9.0, 1))
    assert means["a"].compute() == 4.0  # (1 + 3 * 5) / 4
    assert means["c"].compute() == 4.0  # (2 * 3 + 6) / 3
    assert means["b"].compute().isnan()
    add(sums, b=(torch.nan, 1))
    assert means["b"].compute().isnan()
    means["a"].reset()
    assert not sums.found
    add(sums, b=(7.0, 2))
    assert [name for name, mean in means.items() if mean.update_called] == ["b"]
    assert means["b"].compute() == 7.0


class OwnError(MeanAbsoluteError):
    """Whatever a derived class does is left to it."""


def test_only_plain_errors_are_replaced_by_sums():
    assert all(is_summable(metric) for metric in METRICS)
    persistent = MeanAbsoluteError()
    persistent.persistent(True)
    for metric in (
        OwnError(),
        R2Score(),
        MeanAbsoluteError(num_outputs=3),
        MeanSquaredError(sync_on_compute=False),
        MeanAbsoluteError(dist_sync_fn=lambda *args: args),
        MeanAbsoluteError(distributed_available_fn=lambda: False),
        persistent,
    ):
        assert not is_summable(metric)
