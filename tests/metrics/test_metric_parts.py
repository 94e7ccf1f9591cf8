"""Which metrics change if a baseline is added to predictions and targets."""

import warnings

import pytest
import torch
import torchmetrics
import torchmetrics.regression
from torchmetrics import MeanAbsoluteError, MeanMetric, MetricCollection, R2Score
from torchmetrics.wrappers import BootStrapper, MinMaxMetric

from lightning_scaler import RelativeRootMeanSquaredError
from lightning_scaler.metrics import depends_on_baseline, parts_of, set_double_precision

OPTIONS = {"MinkowskiDistance": {"p": 3}, "CriticalSuccessIndex": {"threshold": 1.0}}
CASES = [(name, OPTIONS.get(name, {})) for name in torchmetrics.regression.__all__]
CASES += [("TweedieDevianceScore", {"power": 1.5})]
CASES += [("NormalizedRootMeanSquaredError", {"normalization": n}) for n in ("range", "std", "l2")]


def values(metric, shape):
    """The metric of one set of numbers, and with a baseline that depends on the composition."""
    generator = torch.Generator().manual_seed(0)

    def draw(*of):
        return torch.rand(*of, generator=generator, dtype=torch.float64)

    target = 0.5 + draw(*shape)
    prediction = target + 0.5 * draw(*shape)
    baseline = (1 + 4 * draw(shape[0], 2)).floor() @ torch.tensor([3.0, 7.0], dtype=torch.float64)
    baseline = baseline.reshape(-1, *[1] * (len(shape) - 1))
    if isinstance(metric, torchmetrics.regression.ContinuousRankedProbabilityScore):
        prediction = torch.stack([prediction, prediction + 0.1], 1)  # an ensemble of two
        shifted = prediction + baseline[:, None], target + baseline
    else:
        shifted = prediction + baseline, target + baseline
    found = []
    for pair in ((prediction, target), shifted):
        metric.reset()
        metric.update(*pair)
        found.append(metric.compute().item())
    return found


@pytest.mark.parametrize(("name", "options"), CASES)
def test_regression_metrics_of_torchmetrics_depend_on_the_baseline_or_not(name, options):
    """Adding the same numbers to predictions and targets tells."""
    # Distributions have two axes; the others take the flat values of a target.
    two_axes = ("CosineSimilarity", "JensenShannonDivergence", "KLDivergence")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchmetrics, about memory and distributions
        metric = getattr(torchmetrics.regression, name)(**options)
        set_double_precision(metric)
        without, added = values(metric, (40, 3) if name in two_axes else (40,))
    changes = abs(added - without) > 1e-9 * abs(without)
    if name == "ContinuousRankedProbabilityScore":
        # A function of differences, but it does not take the flat values of a target.
        assert not changes
    else:
        assert changes == (depends_on_baseline(metric) == name)


class OwnR2(R2Score):
    pass


def test_wrapped_and_derived_metrics_depend_on_the_baseline_too():
    assert depends_on_baseline(OwnR2()) == "OwnR2"
    assert depends_on_baseline(MinMaxMetric(R2Score())) == "R2Score"
    assert depends_on_baseline(BootStrapper(R2Score(), num_bootstraps=2)) == "R2Score"
    assert depends_on_baseline(MeanAbsoluteError() + R2Score()) == "R2Score"
    collection = MetricCollection({"mae": MeanAbsoluteError(), "r2": R2Score()})
    assert depends_on_baseline(collection) == "R2Score"
    assert depends_on_baseline(MinMaxMetric(MeanAbsoluteError())) is None


def test_other_metrics_are_not_known_to_depend_on_the_baseline():
    """This one is relative to the target without its baseline, on purpose."""
    assert depends_on_baseline(RelativeRootMeanSquaredError()) is None


def test_other_metrics_say_themselves_that_they_depend_on_the_baseline():
    class FromSums(MeanMetric):
        depends_on_baseline = True

    class OfResiduals(R2Score):
        depends_on_baseline = False

    assert depends_on_baseline(MinMaxMetric(FromSums())) == "FromSums"
    assert depends_on_baseline(OfResiduals()) is None


def test_states_inside_wrappers_are_float64():
    metric = MinMaxMetric(MeanAbsoluteError())
    set_double_precision(metric)
    inner = [part for part in parts_of(metric) if isinstance(part, MeanAbsoluteError)]
    assert [part.sum_abs_error.dtype for part in inner] == [torch.float64]
