"""Torchmetrics in the units of the dataset."""

import copy
import math
import re
import warnings

import numpy as np
import pytest
import torch
from builders import (
    atom_samples,
    atom_target,
    cartesian,
    fit,
    forces,
    labels,
    spherical,
    structure_target,
    system,
)
from torchmetrics import (
    MeanAbsoluteError,
    MeanAbsolutePercentageError,
    MeanSquaredError,
    MetricCollection,
    R2Score,
)
from torchmetrics.wrappers import MinMaxMetric

from lightning_scaler import CompositionBaseline, PhysicalUnits, ScaleAccumulator
from lightning_scaler.batches import unpack
from lightning_scaler.scaling import predictions_to_loss, targets_to_loss

NAN = float("nan")
SYSTEMS = [system(8), system(1, 8, 1)]
BASELINE = CompositionBaseline({"energy": {1: -5.0e4, 8: -1.0e5}})

# In physical units. Energies per atom differ by 0.5 and 6 / 3, strain gradients by 6 and 6 / 3.
TARGETS = {
    "energy": structure_target(
        [-1e5 + 1.0, -2e5 - 7.0],
        gradient={"strain": np.zeros((2, 3, 3)), "positions": [[[1, 2, 3]], [[4, 5, 6]] * 3]},
    ),
    "forces": forces([[1, 2, 3], [4, 5, 6], [7, 8, 9], [1, 1, 1]], 1, 3),
}
PREDICTIONS = {
    "energy": structure_target(
        [-1e5 + 1.5, -2e5 - 1.0],
        gradient={"strain": np.full((2, 3, 3), 6.0), "positions": [[[1, 2, 4]], [[4, 5, 6]] * 3]},
    ),
    "forces": forces([[1, 2, 3.5], [4, 5, 6], [7, 10, 9], [1, 1, 1]], 1, 3),
}


def scaler_and_loss_space():
    scaler = fit(SYSTEMS, TARGETS, baseline=BASELINE)
    both = [scaler.convert(SYSTEMS, tensors) for tensors in (PREDICTIONS, TARGETS)]
    return scaler, *both


def measured(metric, target, **options):
    scaler, predictions, targets = scaler_and_loss_space()
    wrapped = PhysicalUnits(metric, target, **options)
    wrapped.update(scaler, SYSTEMS, predictions, targets)
    return wrapped.compute()


def rmse():
    return MeanSquaredError(squared=False)


def test_extensive_targets_are_compared_per_atom():
    assert measured(MeanAbsoluteError(), "energy").item() == pytest.approx((0.5 + 2) / 2, rel=1e-9)
    assert measured(rmse(), "energy").item() == pytest.approx(math.sqrt((0.25 + 4) / 2), rel=1e-9)


def test_intensive_targets_are_compared_as_they_are():
    options = {"baseline": BASELINE, "intensive_targets": ["energy"]}
    targets, predictions = {"energy": TARGETS["energy"]}, {"energy": PREDICTIONS["energy"]}
    scaler = fit(SYSTEMS, targets, **options)
    metric = PhysicalUnits(MeanAbsoluteError(), "energy")
    in_loss = [scaler.convert(SYSTEMS, tensors) for tensors in (predictions, targets)]
    metric.update(scaler, SYSTEMS, *in_loss)
    assert metric.compute().item() == pytest.approx((0.5 + 6) / 2, rel=1e-9)


def test_forces_are_compared_in_the_units_of_the_data_set():
    # Twelve components, two of which differ, by 0.5 and 2.
    assert measured(MeanAbsoluteError(), "forces").item() == pytest.approx(2.5 / 12, rel=1e-12)
    assert measured(rmse(), "forces").item() == pytest.approx(math.sqrt(4.25 / 12), rel=1e-12)


def test_gradients_are_compared_instead_of_values():
    # Strain: 9 components of 6 / 1 and 9 of 6 / 3. Positions: one of twelve components by 1.
    strain = measured(MeanAbsoluteError(), "energy", gradient="strain")
    assert strain.item() == pytest.approx((6 + 2) / 2, rel=1e-12)
    positions = measured(MeanAbsoluteError(), "energy", gradient="positions")
    assert positions.item() == pytest.approx(1 / 12, rel=1e-9)


def test_metrics_of_one_block():
    rows = labels("system", [0, 1])
    target = spherical({0: [[[1.0]], [[2.0]]], 2: np.zeros((2, 5, 1))}, rows)
    prediction = spherical({0: [[[2.0]], [[2.0]]], 2: np.full((2, 5, 1), 3.0)}, rows)
    scaler = fit(SYSTEMS, {"t": prediction}, intensive_targets=["t"])
    in_loss = [scaler.convert(SYSTEMS, {"t": t}) for t in (prediction, target)]
    for block, expected in [({"o3_lambda": 0}, 0.5), ({"o3_lambda": 2}, 3.0), (None, 31 / 12)]:
        metric = PhysicalUnits(MeanAbsoluteError(), "t", block=block)
        metric.update(scaler, SYSTEMS, *in_loss)
        assert metric.compute().item() == pytest.approx(expected, rel=1e-12)


def test_every_name_in_the_key_of_one_block_counts():
    # Blocks (0, 1), (0, -1) and (1, 1) with errors 1, 2 and 4.
    rows, sizes = labels("system", [0, 1]), {(0, 1): 1, (0, -1): 1, (1, 1): 3}
    target = spherical({key: np.zeros((2, n, 1)) for key, n in sizes.items()}, rows)
    errors = dict(zip(sizes, (1.0, 2.0, 4.0), strict=True))
    prediction = spherical({k: np.full((2, n, 1), errors[k]) for k, n in sizes.items()}, rows)
    scaler = fit(SYSTEMS, {"t": prediction}, intensive_targets=["t"])
    in_loss = [scaler.convert(SYSTEMS, {"t": t}) for t in (prediction, target)]
    for (o3_lambda, o3_sigma), expected in errors.items():
        block = {"o3_lambda": o3_lambda, "o3_sigma": o3_sigma}
        metric = PhysicalUnits(MeanAbsoluteError(), "t", block=block)
        metric.update(scaler, SYSTEMS, *in_loss)
        assert metric.compute().item() == pytest.approx(expected, rel=1e-12)


def test_missing_entries_are_left_out():
    target = atom_target([1.0, NAN, 3.0, NAN], atom_samples(1, 3))
    prediction = atom_target([2.0, 50.0, 3.0, 60.0], atom_samples(1, 3))
    scaler = fit(SYSTEMS, {"q": prediction})
    metric = PhysicalUnits(MeanAbsoluteError(), "q")
    in_loss = [scaler.convert(SYSTEMS, {"q": t}) for t in (prediction, target)]
    metric.update(scaler, SYSTEMS, *in_loss)
    assert metric.compute().item() == pytest.approx(0.5, rel=1e-13)


def test_batches_without_entries_or_without_the_target():
    target = atom_target([NAN, NAN], [[0, 0], [1, 0]])
    prediction = atom_target([1.0, 2.0], [[0, 0], [1, 0]])
    scaler = fit(SYSTEMS, {"q": prediction})
    metric = PhysicalUnits(MeanAbsoluteError(), "q")
    assert metric(scaler, SYSTEMS, {"q": prediction}, {"q": target}) is None
    assert metric(scaler, SYSTEMS, {}, {}) is None
    metric.update(scaler, SYSTEMS, {"q": prediction}, {"q": target})
    metric.update(scaler, SYSTEMS, {}, {})
    assert not metric.metric.update_called


def test_predictions_may_have_their_rows_in_another_order():
    scaler, predictions, targets = scaler_and_loss_space()
    rows = [[1, 2], [0, 0], [1, 0], [1, 1]]
    values = predictions["forces"].block().values[[3, 0, 1, 2]]
    shuffled = {"forces": atom_target(values, rows, "forces", cartesian())}
    metric = PhysicalUnits(MeanAbsoluteError(), "forces")
    metric.update(scaler, SYSTEMS, shuffled, targets)
    assert metric.compute().item() == pytest.approx(2.5 / 12, rel=1e-12)


def test_targets_with_ids_as_system_labels():
    fixed = CompositionBaseline({"e": {1: -1.0, 8: -10.0}})
    accumulator = ScaleAccumulator(baseline=fixed, system_labels="id")
    target = structure_target([-11.0, -15.0], [1, 0])
    accumulator.update(SYSTEMS, {"e": target})
    scaler = accumulator.compute()
    in_loss = scaler.convert(SYSTEMS, {"e": target})
    # A perfect prediction, in the order of the batch.
    prediction = structure_target(in_loss["e"].block().values)
    metric = PhysicalUnits(MeanAbsoluteError(), "e")
    metric.update(scaler, SYSTEMS, {"e": prediction}, in_loss)
    assert metric.compute().item() == 0


def test_every_entry_has_the_same_weight_in_all_batches():
    systems = [system(8), system(8), system(8)]
    target = {"q": atom_target([0.0, 0.0, 0.0], atom_samples(1, 1, 1))}
    scaler = fit(systems, {"q": atom_target([1.0, 2.0, 6.0], atom_samples(1, 1, 1))})
    physical = [1.0, 2.0, 6.0]
    metric = PhysicalUnits(rmse(), "q")
    for chosen in ([0, 1], [2]):
        rows = atom_samples(*[1] * len(chosen))
        batch = [
            {"q": atom_target([numbers[i] for i in chosen], rows)}
            for numbers in (physical, [0.0] * 3)
        ]
        in_loss = [scaler.convert(systems[: len(chosen)], tensors) for tensors in batch]
        metric.update(scaler, systems[: len(chosen)], *in_loss)
    assert metric.compute().item() == pytest.approx(math.sqrt(41 / 3), rel=1e-13)
    metric.reset()
    metric.update(scaler, systems, scaler.convert(systems, target), scaler.convert(systems, target))
    assert metric.compute().item() == 0


def test_forward_returns_the_metric_of_the_batch_and_accumulates():
    scaler, predictions, targets = scaler_and_loss_space()
    metric = PhysicalUnits(MeanAbsoluteError(), "energy")
    assert metric(scaler, SYSTEMS, targets, targets).item() == 0
    batch = metric(scaler, systems=SYSTEMS, predictions=predictions, targets=targets)
    assert batch.item() == pytest.approx(1.25, rel=1e-9)
    assert metric.compute().item() == pytest.approx(0.625, rel=1e-9)


def test_metric_collections():
    found = measured(MetricCollection({"mae": MeanAbsoluteError(), "rmse": rmse()}), "forces")
    assert set(found) == {"mae", "rmse"}
    assert found["mae"].item() == pytest.approx(2.5 / 12, rel=1e-12)
    assert found["rmse"].item() == pytest.approx(math.sqrt(4.25 / 12), rel=1e-12)


def test_metric_collections_over_several_batches():
    scaler, predictions, targets = scaler_and_loss_space()
    metric = PhysicalUnits(MetricCollection({"mae": MeanAbsoluteError(), "rmse": rmse()}), "forces")
    for _ in range(3):
        metric.update(scaler, SYSTEMS, predictions, targets)
    assert metric.compute()["rmse"].item() == pytest.approx(math.sqrt(4.25 / 12), rel=1e-12)


def test_large_energies_in_float32_keep_small_errors():
    # Loss space is float32; the totals of 1e5 would leave 0.008 of a difference of 1e-4.
    scaler = fit(SYSTEMS, {"energy": TARGETS["energy"]}, baseline=BASELINE)
    target = structure_target([-1e5 + 1.0, -2e5 - 7.0])
    prediction = structure_target([-1e5 + 1.0001, -2e5 - 7.0003])
    in_loss = [
        {"energy": scaler.convert(SYSTEMS, {"energy": t})["energy"].to(dtype=torch.float32)}
        for t in (prediction, target)
    ]
    metric = PhysicalUnits(MeanAbsoluteError(), "energy")
    metric.update(scaler, SYSTEMS, *in_loss)
    assert metric.compute().dtype == torch.float64
    assert metric.compute().item() == pytest.approx(1e-4, rel=3e-3)


def test_state_is_float64():
    metric = PhysicalUnits(MeanAbsoluteError(), "energy")
    assert metric.metric.sum_abs_error.dtype == torch.float64


def test_updates_inside_and_outside_of_inference_mode():
    scaler, predictions, targets = scaler_and_loss_space()
    metric = PhysicalUnits(rmse(), "forces")
    for inside in (True, False, True, False):
        with torch.inference_mode(inside):
            metric.update(scaler, SYSTEMS, predictions, targets)
    once = PhysicalUnits(rmse(), "forces")
    once.update(scaler, SYSTEMS, predictions, targets)
    assert metric.compute() == once.compute()
    with torch.inference_mode():
        metric.reset()
        metric.update(scaler, SYSTEMS, predictions, targets)
    metric.update(scaler, SYSTEMS, predictions, targets)
    assert metric.compute() == once.compute()


def test_clones_are_independent():
    scaler, predictions, targets = scaler_and_loss_space()
    metric = PhysicalUnits(MeanAbsoluteError(), "energy")
    metric.update(scaler, SYSTEMS, predictions, targets)
    for other in (metric.clone(), copy.deepcopy(metric)):
        assert other.compute().item() == pytest.approx(1.25, rel=1e-9)
        other.update(scaler, SYSTEMS, targets, targets)
        assert other.compute().item() == pytest.approx(0.625, rel=1e-9)
    assert metric.compute().item() == pytest.approx(1.25, rel=1e-9)
    assert not any("scaler" in name for name in vars(metric))


def test_metrics_keep_no_graph():
    scaler, predictions, targets = scaler_and_loss_space()
    values = predictions["forces"].block().values.clone().requires_grad_()
    grown = {"forces": forces(values, 1, 3)}
    metric = PhysicalUnits(MeanAbsoluteError(), "forces")
    metric.update(scaler, SYSTEMS, grown, targets)
    assert not metric.compute().requires_grad


def test_inputs_are_not_written_to():
    scaler, predictions, targets = scaler_and_loss_space()
    tensors = [predictions["energy"], targets["energy"], predictions["forces"], targets["forces"]]
    before = [tensor.block().values.clone() for tensor in tensors]
    for name in ("energy", "forces"):
        PhysicalUnits(rmse(), name).update(scaler, SYSTEMS, predictions, targets)
    assert all(torch.equal(t.block().values, b) for t, b in zip(tensors, before, strict=True))


def test_missing_scales_and_predictions_are_refused():
    scaler, predictions, targets = scaler_and_loss_space()
    with pytest.raises(
        TypeError, match=r"expected a torchmetrics Metric or MetricCollection, got 'mae'; pass an"
    ):
        PhysicalUnits("mae", "energy")
    with pytest.raises(ValueError, match=r"no prediction for the target 'energy', only for \['fo"):
        PhysicalUnits(rmse(), "energy").update(
            scaler, SYSTEMS, {"forces": predictions["forces"]}, targets
        )
    with pytest.raises(
        ValueError, match=r"no scales for the target 'gap', only for \['energy', 'fo"
    ):
        PhysicalUnits(rmse(), "gap").update(
            scaler, SYSTEMS, predictions, {"gap": targets["energy"]}
        )
    part = {"energy": structure_target([1.0])}
    with pytest.raises(ValueError, match="no prediction for 1 of 2 rows"):
        PhysicalUnits(rmse(), "energy").update(
            scaler, SYSTEMS, part, {"energy": structure_target([1.0, 2.0])}
        )


def test_arguments_of_another_type():
    with pytest.raises(
        TypeError, match="got the class MeanSquaredError; pass an instance, such as"
    ):
        PhysicalUnits(MeanSquaredError, "energy")
    for argument, values, example in (
        ("target", [["energy"], None], "'energy'"),
        ("gradient", [True, ["positions"]], "'positions'"),
        ("block", ["o3_lambda", ("o3_lambda", 2)], "{'o3_lambda': 2}"),
        ("baseline", ["yes"], "True"),
    ):
        for value in values:
            message = f"PhysicalUnits, {argument}: expected a value such as {example}, got "
            with pytest.raises(TypeError, match=re.escape(message)):
                PhysicalUnits(rmse(), **{"target": "energy", argument: value})


def test_batches_of_another_type():
    scaler, predictions, targets = scaler_and_loss_space()
    metric = PhysicalUnits(rmse(), "energy")
    for other in (None, torch.nn.Linear(1, 1), ScaleAccumulator()):
        with pytest.raises(TypeError, match=r"expected a Scaler, such as model\.scaler, got "):
            metric.update(other, SYSTEMS, predictions, targets)
    for other in (predictions["energy"], {"energy": torch.zeros(2)}, SYSTEMS):
        for both in ((other, targets), (predictions, other)):
            message = r"expected a dict of TensorMaps in loss space .*; targets_to_loss and predic"
            with pytest.raises(TypeError, match=message):
                metric.update(scaler, SYSTEMS, *both)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"target": "enrgy"}, r"no scales for the target 'enrgy', only for \['energy', 'forces'\]"),
        ({"gradient": "position"}, r"no gradient 'position'; did you mean 'positions'\? known: "),
        ({"block": {"o3_lambda": 2}}, r"block={'o3_lambda': 2} to be the key .*which are \(_=0\)"),
        (
            {"block": {"_": 1}},
            r"block={'_': 1} to be the key of one of its blocks, which are \(_=0\)",
        ),
    ],
)
def test_parts_that_targets_do_not_have(part, message):
    """They would leave out every batch."""
    scaler, predictions, targets = scaler_and_loss_space()
    with pytest.raises(ValueError, match=message):
        PhysicalUnits(rmse(), **{"target": "energy", **part}).update(
            scaler, SYSTEMS, predictions, targets
        )


def test_repr_names_target_and_block():
    metric = PhysicalUnits(rmse(), "t", block={"o3_lambda": 2})
    assert "target='t', block={'o3_lambda': 2}" in repr(metric)


def test_gradients_are_compared_by_name_in_any_order():
    # Three water molecules: positions and strain have the same number of entries.
    waters = [system(8, 1, 1)] * 3
    rng = np.random.default_rng(0)
    numbers = {name: rng.normal(size=(3, 3, 3)).tolist() for name in ("positions", "strain")}
    zero = {name: np.zeros((3, 3, 3)).tolist() for name in numbers}
    target = structure_target([1.0, 2.0, 3.0], gradient=zero)
    swapped = {name: numbers[name] for name in ("strain", "positions")}
    prediction = structure_target([1.0, 2.0, 3.0], gradient=swapped)
    assert prediction.block().gradients_list() != target.block().gradients_list()
    scaler = fit(waters, {"energy": target}, fixed_scales={"energy": 1.0})
    for parameter, expected in numbers.items():
        divisor = 3.0 if parameter == "strain" else 1.0  # per atom
        wrapped = PhysicalUnits(MeanAbsoluteError(), "energy", gradient=parameter)
        wrapped.update(scaler, waters, {"energy": prediction}, {"energy": target})
        error = float(np.abs(expected).mean()) / divisor
        assert wrapped.compute().item() == pytest.approx(error, rel=1e-12)


def test_a_replaced_target_is_compared_in_its_own_rows():
    """The scales of H and O are 5 and 2 (RMS of 1, 7 and of 2, 2)."""
    systems = [system(8), system(1, 1, 8)]
    scaler = fit(systems, {"q": atom_target([2.0, 1.0, 7.0, 2.0], atom_samples(1, 3))})
    targets = targets_to_loss(scaler, systems, {"q": atom_target([0.0] * 4, atom_samples(1, 3))})
    predictions = {"q": atom_target([1.0] * 4, atom_samples(1, 3))}
    for replaced, expected in [
        (None, (2 + 5 + 5 + 2) / 4),
        (atom_target([0.0, 0.0, 0.0], [[1, 2], [1, 1], [1, 0]]), (2 + 5 + 5) / 3),
        (atom_target([0.0], [[1, 1]]), 5),
    ]:
        if replaced is not None:
            targets["q"] = replaced
        metric = PhysicalUnits(MeanAbsoluteError(), "q")
        metric.update(scaler, systems, predictions, targets)
        assert metric.compute().item() == pytest.approx(expected, rel=1e-6)


# Energies per atom (N = 1, 3): targets -1e5 + 1 and (-2e5 - 7) / 3, predictions -1e5 + 1.5 and
# (-2e5 - 1) / 3.
PER_ATOM = ([-1e5 + 1, (-2e5 - 7) / 3], [-1e5 + 1.5, (-2e5 - 1) / 3])
MAPE = (0.5 / (1e5 - 1) + 2 / ((2e5 + 7) / 3)) / 2
MEAN = math.fsum(PER_ATOM[0]) / 2
R2 = 1 - (0.5**2 + 2**2) / math.fsum((y - MEAN) ** 2 for y in PER_ATOM[0])


@pytest.mark.parametrize("per_atom_already", [False, True], ids=["convert", "mixin"])
@pytest.mark.parametrize(
    ("metric", "expected"), [(MeanAbsolutePercentageError(), MAPE), (R2Score(), R2)]
)
def test_metrics_that_are_not_a_function_of_the_difference_see_the_baseline(
    metric, expected, per_atom_already
):
    scaler, predictions, targets = scaler_and_loss_space()
    if per_atom_already:
        model = scaler.convert(SYSTEMS, PREDICTIONS, target="model")
        targets = targets_to_loss(scaler, SYSTEMS, TARGETS, dtype=torch.float64)
        predictions = predictions_to_loss(scaler, SYSTEMS, model, targets)
    wrapped = PhysicalUnits(metric.clone(), "energy", baseline=True)
    wrapped.update(scaler, SYSTEMS, predictions, targets)
    # R2 from sums of squares of 1e10, whose differences of 1e9 keep 15 digits.
    assert wrapped.compute().item() == pytest.approx(expected, rel=1e-10)
    assert wrapped.compute().dtype == torch.float64


def test_a_baseline_leaves_out_missing_values_and_changes_no_difference():
    scaler = scaler_and_loss_space()[0]
    energies = structure_target([NAN, -2e5 - 7.0], gradient={"strain": np.zeros((2, 3, 3))})
    moved = structure_target([-1e5, -2e5 - 1.0], gradient={"strain": np.ones((2, 3, 3))})
    in_loss = [scaler.convert(SYSTEMS, {"energy": t}) for t in (moved, energies)]
    for gradient, expected in ((None, 6 / 3), ("strain", (1 + 1 / 3) / 2)):
        metric = PhysicalUnits(MeanAbsoluteError(), "energy", gradient, baseline=True)
        metric.update(scaler, SYSTEMS, *in_loss)
        assert metric.compute().item() == pytest.approx(expected, rel=1e-9)


def test_a_missing_value_needs_no_baseline_for_the_types_of_its_structure():
    """Neither of a type that was not in the fit, nor of one without data, F and O."""
    systems = [system(1, 1), system(1), system(8, 1)]
    energies = {"e": structure_target([-2.0, -1.5, NAN])}
    with pytest.warns(UserWarning, match="some atomic types have no data"):
        scaler = fit(systems, energies, baseline=CompositionBaseline())
    targets = {"e": structure_target([-2.0, NAN, NAN])}
    predictions = {"e": structure_target([0.5, 0.25, 0.25])}
    systems = [system(1, 1), system(9, 1), system(8, 1)]
    in_loss = targets_to_loss(scaler, systems, targets, dtype=torch.float64)
    metric = PhysicalUnits(MeanAbsolutePercentageError(), "e", baseline=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing is predicted for O yet
        metric.update(
            scaler, systems, predictions_to_loss(scaler, systems, predictions, in_loss), in_loss
        )
    weight, sigma = scaler.targets["e"].weights[0,][0].item(), scaler.scales["e"][0].values.item()
    # H2 alone, per atom.
    expected = abs((weight + sigma * 0.5 / 2) - -1.0) / 1.0
    assert metric.compute().item() == pytest.approx(expected, rel=1e-12)


def test_a_baseline_per_atom_is_added():
    """The means of O and H are 4 and 6; predictions are 10 % too large."""
    charges = atom_target([3.0, 5.0, 5.0, 7.0], atom_samples(1, 3))
    predicted = atom_target([3.3, 5.5, 5.5, 7.7], atom_samples(1, 3))
    scaler = fit(SYSTEMS, {"q": charges}, baseline=CompositionBaseline())
    in_loss = [scaler.convert(SYSTEMS, {"q": t}) for t in (predicted, charges)]
    metric = PhysicalUnits(MeanAbsolutePercentageError(), "q", baseline=True)
    metric.update(scaler, SYSTEMS, *in_loss)
    assert metric.compute().item() == pytest.approx(0.1, rel=1e-12)


def test_metrics_of_torchmetrics_that_need_the_baseline_are_refused_without_it():
    words = r"target 'energy': R2Score is not a function of the difference .* write "
    words += r"PhysicalUnits\(R2Score\(\.\.\.\), target='energy', baseline=True\)"
    for metric in (R2Score(), MinMaxMetric(R2Score()), MetricCollection({"r2": R2Score()})):
        with pytest.raises(ValueError, match=words):
            PhysicalUnits(metric, "energy")
    assert "baseline=True" in repr(PhysicalUnits(R2Score(), target="energy", baseline=True))


def test_metrics_that_return_a_dict_give_a_dict():
    found = measured(MinMaxMetric(MeanAbsoluteError()), "forces")
    assert set(found) == {"raw", "min", "max"}
    assert found["raw"].item() == pytest.approx(2.5 / 12, rel=1e-12)


def test_results_of_targets_to_loss_are_divided_by_the_number_of_atoms_once():
    scaler, _, targets = scaler_and_loss_space()
    model = scaler.convert(SYSTEMS, PREDICTIONS, target="model")
    targets = targets_to_loss(scaler, SYSTEMS, TARGETS, dtype=torch.float64)
    predictions = predictions_to_loss(scaler, SYSTEMS, model, targets)
    metric = PhysicalUnits(MeanAbsoluteError(), "energy")
    metric.update(scaler, SYSTEMS, predictions, targets)
    assert metric.compute().item() == pytest.approx((0.5 + 2) / 2, rel=1e-9)


def test_results_of_targets_to_loss_carry_positions_whatever_the_labels_of_the_data():
    """Ids 7 and 3 of the two systems, whose energies per atom, 30 and 1, come in reverse order."""
    systems = unpack({"system": SYSTEMS, "sample_id": [7, 3]}).systems
    accumulator = ScaleAccumulator(baseline=None, system_labels="id")
    target = structure_target([3.0, 30.0], [3, 7])
    accumulator.update(systems, {"e": target})
    scaler = accumulator.compute()
    targets = targets_to_loss(scaler, systems, {"e": target}, dtype=torch.float64)
    sigma = scaler.per_target_scales["e"].block().values.item()
    model = {"e": structure_target([31.0 / sigma, 9.0 / sigma])}  # per atom 31 and 3
    predictions = predictions_to_loss(scaler, systems, model, targets)
    metric = PhysicalUnits(MeanAbsoluteError(), "e")
    metric.update(scaler, systems, predictions, targets)
    assert metric.compute().item() == pytest.approx((1 + 2) / 2, rel=1e-12)
