"""One target from one space to another."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from builders import (
    PAIR_NAMES,
    atom_samples,
    atom_target,
    atomic_basis,
    block,
    cartesian,
    fit,
    forces,
    labels,
    pair_target,
    scale,
    single,
    spherical,
    structure_target,
    system,
    water_family,
    with_nested_gradient,
)
from metatensor.torch import TensorBlock, TensorMap
from torch.utils.checkpoint import checkpoint

from lightning_scaler import CompositionBaseline, ScaleAccumulator
from lightning_scaler.batches.atoms import Atoms

NAN = float("nan")
FITTED = CompositionBaseline()
SPACES = ("physical", "loss", "model")
DIRECTIONS = list(itertools.permutations(SPACES, 2))
SYSTEMS = [system(8), system(1, 8, 1), system(6, 8)]


def targets(dtype=torch.float64):
    rng = np.random.default_rng(0)
    return {
        "energy": structure_target(
            [-75.0, -76.4, -113.3],
            gradient={"strain": rng.normal(size=(3, 3, 3))},
            dtype=dtype,
        ),
        "alpha": spherical(
            {0: rng.normal(size=(3, 1, 2)) + 4, 2: rng.normal(size=(3, 5, 1))},
            labels("system", [0, 1, 2]),
            dtype=dtype,
        ),
        "forces": forces(rng.normal(size=(6, 3)), 1, 3, 2, dtype=dtype),
        "charges": atom_target(rng.normal(size=(6, 2)), atom_samples(1, 3, 2), dtype=dtype),
        "basis": atomic_basis(
            {(0, 8): rng.normal(size=(3, 1, 2)), (1, 1): rng.normal(size=(2, 3, 1))},
            {8: [[0, 0], [1, 1], [2, 1]], 1: [[1, 0], [1, 2]]},
            dtype=dtype,
        ),
    }


def fitted(baseline=None, **options):
    options = {"intensive_targets": ["alpha"], "unseen_types": "error"} | options
    return fit(SYSTEMS, targets(), baseline=baseline, **options)


def numbers(tensor):
    found = []
    for of in tensor.blocks():
        found.append(of.values.detach().flatten())
        found += [of.gradient(name).values.detach().flatten() for name in of.gradients_list()]
    return torch.cat(found)


@pytest.mark.filterwarnings("ignore:these data are zero")
@pytest.mark.parametrize("baseline", [None, FITTED], ids=["none", "composition"])
@pytest.mark.parametrize(("source", "target"), DIRECTIONS)
def test_conversions_and_their_inverses(source, target, baseline):
    scaler = fitted(baseline)
    for name, tensor in targets().items():
        there = scaler.convert(SYSTEMS, {name: tensor}, source, target)
        back = scaler.convert(SYSTEMS, there, target, source)[name]
        torch.testing.assert_close(numbers(back), numbers(tensor), rtol=1e-12, atol=1e-12)
        assert back.keys == tensor.keys
        for ours, theirs in zip(back.blocks(), tensor.blocks(), strict=True):
            assert ours.samples == theirs.samples
            assert ours.components == theirs.components
            assert ours.properties == theirs.properties
            assert ours.gradients_list() == theirs.gradients_list()


@pytest.mark.filterwarnings("ignore:these data are zero")
def test_two_steps_equal_one():
    scaler = fitted(FITTED)
    for name, tensor in targets().items():
        loss = scaler.convert(SYSTEMS, {name: tensor}, "physical", "loss")
        in_two = scaler.convert(SYSTEMS, loss, "loss", "model")[name]
        in_one = scaler.convert(SYSTEMS, {name: tensor}, "physical", "model")[name]
        torch.testing.assert_close(numbers(in_two), numbers(in_one), rtol=1e-13, atol=1e-13)


def test_factors_of_every_direction():
    # One structure of one atom, values 3 and 4: sigma = sqrt(12.5), relative 3 / sigma, 4 / sigma.
    target = structure_target([[3.0, 4.0]])
    scaler = fit([system(8)], {"t": target})
    sigma = math.sqrt(12.5)
    one = structure_target([[1.0, 1.0]])
    expected = {
        ("physical", "loss"): [1 / sigma, 1 / sigma],
        ("loss", "physical"): [sigma, sigma],
        ("loss", "model"): [sigma / 3, sigma / 4],
        ("model", "loss"): [3 / sigma, 4 / sigma],
        ("physical", "model"): [1 / 3, 1 / 4],
        ("model", "physical"): [3.0, 4.0],
    }
    for (source, space), factors in expected.items():
        values = scaler.convert([system(8)], {"t": one}, source, space)["t"].block().values
        assert values[0].tolist() == pytest.approx(factors, rel=1e-14)


def test_scale_of_the_type_of_each_atom():
    training = atom_target([[2.0, 1.0], [4.0, 8.0]], atom_samples(2))
    scaler = fit([system(8, 1)], {"q": training})
    # Full scales: O (2, 1), H (4, 8). Rows in another order, one system not at all.
    tensor = atom_target([[1.0, 1.0], [1.0, 10.0], [100.0, 1.0]], [[2, 1], [0, 0], [2, 0]])
    systems = [system(1), system(1, 1), system(8, 1)]
    values = scaler.convert(systems, {"q": tensor}, "model", "physical")["q"].block().values
    np.testing.assert_allclose(values.numpy(), [[4, 8], [4, 80], [200, 1]], rtol=1e-14)


def test_gradients_take_the_factor_of_their_block():
    gradients = {"positions": [[[1.0, 2, 3]], [[4, 5, 6]] * 3], "strain": np.ones((2, 3, 3))}
    energy = structure_target([3.0, 24.0], gradient=gradients)
    scaler = fit([system(8), system(1, 8, 1)], {"e": energy})
    sigma = math.sqrt((9 + 64) / 2)
    converted = scaler.convert([system(8), system(1, 8, 1)], {"e": energy})["e"].block()
    for name in ("positions", "strain"):
        ours, theirs = converted.gradient(name), energy.block().gradient(name)
        np.testing.assert_allclose(ours.values.numpy(), theirs.values.numpy() / sigma, rtol=1e-14)
        assert ours.samples == theirs.samples
        assert ours.components == theirs.components


def test_gradients_of_atoms_take_the_factor_of_their_row():
    training = atom_target([2.0, 4.0], atom_samples(2), "q")
    scaler = fit([system(8, 1)], {"q": training})
    given = block([1.0, 1.0], labels(["system", "atom"], [[0, 1], [0, 0]]), property_name="q")
    gradient_rows = labels(["sample", "atom"], [[0, 0], [1, 0], [1, 1]])
    values = torch.ones(3, 3, 1).double()
    given.add_gradient(
        "positions", TensorBlock(values, gradient_rows, cartesian(), given.properties)
    )
    converted = scaler.convert([system(8, 1)], {"q": single(given)}, "loss", "physical")["q"]
    # Row 0 is H (4), row 1 is O (2).
    gradient = converted.block().gradient("positions").values
    np.testing.assert_allclose(gradient[:, 0, 0].numpy(), [4, 2, 2], rtol=1e-14)


def test_gradients_of_a_multi_property_block():
    energy = block([[3.0, 4.0]], labels("system", [0]))
    strain = torch.ones(1, 3, 3, 2).double()
    energy.add_gradient(
        "strain", TensorBlock(strain, labels("sample", [0]), cartesian(2), energy.properties)
    )
    tensor = single(energy)
    scaler = fit([system(8)], {"e": tensor})
    model = scaler.convert([system(8)], {"e": tensor}, "physical", "model")["e"].block()
    np.testing.assert_allclose(
        model.gradient("strain").values[0, 1, 2].numpy(), [1 / 3, 1 / 4], rtol=1e-14
    )


def test_gradients_see_no_baseline():
    energy = targets()["energy"]
    scaler = fit(
        SYSTEMS, {"e": energy}, baseline=CompositionBaseline({"e": {1: -1, 6: -40, 8: -70}})
    )
    converted = scaler.convert(SYSTEMS, {"e": energy})["e"].block()
    sigma = scale(scaler, "e")[0][0]
    expected = energy.block().gradient("strain").values / sigma
    torch.testing.assert_close(converted.gradient("strain").values, expected, rtol=1e-13, atol=0)


def test_gradients_of_gradients_are_refused():
    scaler = fit([system(8)], {"e": structure_target([1.0])})
    with pytest.raises(NotImplementedError, match=r"target 'e', block .*gradients of gradients"):
        scaler.convert([system(8)], {"e": with_nested_gradient([1.0])})


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_dtype_is_kept(dtype):
    scaler = fitted()
    for name, tensor in targets(dtype).items():
        for source, space in DIRECTIONS:
            converted = scaler.convert(SYSTEMS, {name: tensor}, source, space)[name]
            assert all(b.values.dtype == dtype for b in converted.blocks())


def test_baseline_enters_physical_space_in_float64():
    energy = structure_target(
        [-1e5, -2e5 - 1e-3, -1.3e5],
        gradient={"strain": np.ones((3, 3, 3))},
    )
    scaler = fit(
        SYSTEMS, {"e": energy}, baseline=CompositionBaseline({"e": {1: -5e4, 6: -3e4, 8: -1e5}})
    )
    loss = scaler.convert(SYSTEMS, {"e": energy})["e"]
    single_precision = loss.to(dtype=torch.float32)
    for space in ("loss", "model"):
        physical = scaler.convert(SYSTEMS, {"e": single_precision}, space, "physical")["e"].block()
        assert physical.values.dtype == physical.gradient("strain").values.dtype == torch.float64
        left = physical.values.flatten() + torch.tensor([1e5, 2e5, 1.3e5]).double()
        np.testing.assert_allclose(left.numpy(), [0, -1e-3, 0], rtol=1e-6, atol=1e-9)
        other = scaler.convert(SYSTEMS, {"e": single_precision}, space, "physical", baseline=False)
        assert other["e"].block().values.dtype == torch.float32
    # Out of physical space the subtraction is in float64, the result as it came.
    again = scaler.convert(SYSTEMS, {"e": energy.to(dtype=torch.float32)})["e"]
    assert again.block().values.dtype == torch.float32


def test_scales_enter_physical_space_in_float64_too():
    # 0.1 is another number in float32; 3 is the same.
    fixed = {"baseline": CompositionBaseline({"e": {8: 0.0}}), "fixed_scales": {"e": 0.1}}
    scaler = fit([system(8)], {"e": structure_target([1.0])}, **fixed)
    three = structure_target([3.0], dtype=torch.float32)
    physical = scaler.convert([system(8)], {"e": three}, "loss", "physical")["e"].block().values
    assert physical.item() == pytest.approx(0.3, rel=1e-15)


def test_without_baseline_for_differences():
    energy = structure_target([-75.0, -76.4, -113.3])
    fixed = CompositionBaseline({"e": {1: -0.5, 6: -37.0, 8: -74.0}})
    scaler = fit(SYSTEMS, {"e": energy}, baseline=fixed)
    sigma = scale(scaler, "e")[0][0]
    one = structure_target([1.0, 2.0, 3.0])
    plain = scaler.convert(SYSTEMS, {"e": one}, "loss", "physical", baseline=False)["e"]
    np.testing.assert_allclose(
        plain.block().values.flatten().numpy(), np.array([1, 2, 3]) * sigma, rtol=1e-14
    )
    full = scaler.convert(SYSTEMS, {"e": one}, "loss", "physical")["e"]
    added = full.block().values - plain.block().values
    np.testing.assert_allclose(added.flatten().numpy(), [-74, -75, -111], rtol=1e-14)


def test_graph_is_kept():
    for baseline in (None, CompositionBaseline({"e": {1: -0.5, 6: -37.0, 8: -74.0}})):
        scaler = fit(SYSTEMS, {"e": structure_target([-75.0, -76.4, -113.3])}, baseline=baseline)
        sigma = scale(scaler, "e")[0][0]
        values = torch.tensor([[1.0], [2.0], [3.0]], requires_grad=True, dtype=torch.float64)
        out = scaler.convert(SYSTEMS, {"e": structure_target(values)}, "model", "physical")
        out["e"].block().values.sum().backward()
        np.testing.assert_allclose(values.grad.numpy(), sigma, rtol=1e-14)


@pytest.mark.filterwarnings("ignore:these data are zero")
@pytest.mark.parametrize("baseline", [None, FITTED], ids=["none", "composition"])
@pytest.mark.parametrize(("source", "target"), DIRECTIONS)
def test_derivatives_of_all_orders_are_those_of_the_formula(source, target, baseline):
    scaler, given = fitted(baseline), targets()
    ones = torch.ones(6, 2).double().requires_grad_()

    def converted(numbers):
        charges = atom_target(numbers, atom_samples(1, 3, 2))
        return scaler.convert(SYSTEMS, {**given, "charges": charges}, source, target)

    factors = torch.autograd.grad(converted(ones)["charges"].block().values.sum(), ones)[0]
    assert torch.autograd.gradcheck(lambda x: converted(x)["charges"].block().values, ones)

    def energy(numbers):
        return converted(numbers)["charges"].block().values.pow(3).sum()

    first = torch.autograd.grad(energy(ones), ones, create_graph=True)[0]
    second = torch.autograd.grad(first.sum(), ones)[0]
    offset = converted(torch.zeros_like(ones))["charges"].block().values
    expected = 6 * factors**2 * (factors + offset)
    torch.testing.assert_close(second, expected.detach(), rtol=1e-11, atol=1e-11)


def test_nothing_is_modified_in_place():
    scaler, given = fitted(), targets()
    before = {name: numbers(tensor).clone() for name, tensor in given.items()}
    scaler.convert(SYSTEMS, given)
    assert all(torch.equal(numbers(tensor), before[name]) for name, tensor in given.items())


@pytest.mark.parametrize("rows", [[[0, 0], [0, 1]], [[0, 1], [0, 0]], [[0, 1]]])
def test_large_types_and_types_in_tables_together(rows):
    training = atom_target([2.0, 4.0, 8.0], atom_samples(3))
    scaler = fit([system(8, 5000, 10**9)], {"q": training})
    one = atom_target([1.0] * len(rows), rows)
    values = scaler.convert([system(10**9, 8)], {"q": one}, "model", "physical")["q"].block().values
    assert values.flatten().tolist() == pytest.approx([(8.0, 2.0)[atom] for _, atom in rows])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_scales_that_half_precision_does_not_hold(dtype):
    scaler = fit([system(8)], {"e": structure_target([1.0])}, fixed_scales={"e": 1e-9})
    small = structure_target([3e-7], dtype=dtype)
    values = scaler.convert([system(8)], {"e": small})["e"].block().values
    assert values.dtype == dtype
    assert values.item() == pytest.approx(small.block().values.item() / 1e-9, rel=1e-2)


def test_missing_values_stay_missing():
    scaler = fit(SYSTEMS, {"e": structure_target([-75.0, NAN, -113.3])})
    values = scaler.convert(SYSTEMS, {"e": structure_target([1.0, NAN, 2.0])})["e"].block().values
    assert values.isnan().flatten().tolist() == [False, True, False]


def test_pairs_and_unknown_names_pass_unchanged():
    pairs = pair_target([5.0], [[1, 0, 2, 0, 0, 0]])
    junk = structure_target([1.0], name="junk")
    scaler = fit(SYSTEMS, {"h": pairs, "e": structure_target([1.0, 2.0, 3.0])})
    for source, space in DIRECTIONS:
        out = scaler.convert(SYSTEMS, {"h": pairs, "junk": junk}, source, space)
        assert torch.equal(out["h"].block().values, pairs.block().values)
        assert out["h"].block().samples.names == PAIR_NAMES
        assert out["junk"] is junk


def test_same_space_is_no_conversion():
    energy = structure_target([1.0, 2.0, 3.0])
    scaler = fit(SYSTEMS, {"e": energy})
    assert scaler.convert(SYSTEMS, {"e": energy}, "loss", "loss")["e"] is energy


# Unseen types.


@pytest.mark.parametrize(
    ("mode", "expected"),
    # H 4, O 2; over both sqrt((16 + 4) / 2).
    [("pooled", math.sqrt(10)), ("identity", 1.0)],
)
def test_policies_for_unseen_types(mode, expected):
    scaler = fit([system(8, 1)], {"q": atom_target([2.0, 4.0], atom_samples(2))}, unseen_types=mode)
    one = atom_target([1.0, 1.0], atom_samples(2))
    values = scaler.convert([system(6, 1)], {"q": one}, "model", "physical")["q"].block().values
    np.testing.assert_allclose(values.flatten().numpy(), [expected, 4], rtol=1e-14)


def test_pooled_scales_of_several_properties():
    training = atom_target([[2.0, 1.0], [4.0, 7.0]], atom_samples(2))
    scaler = fit([system(8, 1)], {"q": training}, unseen_types="pooled")
    one = atom_target([[1.0, 1.0]], atom_samples(1))
    physical = scaler.convert([system(6)], {"q": one}, "model", "physical")["q"].block().values
    np.testing.assert_allclose(physical.numpy(), [[math.sqrt(10), 5.0]], rtol=1e-14)
    loss = scaler.convert([system(6)], {"q": one}, "physical", "loss")["q"].block().values
    np.testing.assert_allclose(loss.numpy(), [[1 / math.sqrt(70 / 4)] * 2], rtol=1e-14)


def full_scale_of_unseen(values, fixed_scales=None):
    training = atom_target(values, atom_samples(len(values)))
    systems = [system(*(8, 1)[: len(values)])]
    scaler = fit(systems, {"q": training}, fixed_scales=fixed_scales, unseen_types="pooled")
    one = atom_target(np.ones((1, len(values[0]))), atom_samples(1))
    physical = scaler.convert([system(6)], {"q": one}, "model", "physical")["q"]
    return physical.block().values.flatten().tolist()


@pytest.mark.filterwarnings("ignore:these data are zero")
def test_pooled_scales_of_zeros_and_of_missing_properties():
    # Over both types sqrt((16 + 4 + 0 + 0) / 4): that of the zeros; 1 where there are no data.
    found = full_scale_of_unseen([[2.0, 0.0, NAN], [4.0, 0.0, NAN]])
    assert found == pytest.approx([math.sqrt(10), math.sqrt(5), 1.0], rel=1e-14)


def test_fixed_number_holds_for_unseen_types():
    assert full_scale_of_unseen([[2.0], [4.0]], {"q": 7}) == pytest.approx([7])
    # Of several properties: fixed * rms_p / sigma_data, over both types.
    found = full_scale_of_unseen([[2.0, 1.0], [4.0, 7.0]], {"q": 7})
    sigma = math.sqrt(70 / 4)
    assert found == pytest.approx([7 * math.sqrt(10) / sigma, 7 * 5 / sigma], rel=1e-14)


def test_fixed_scale_of_a_type_without_data():
    training = atom_target([2.0, 4.0], atom_samples(2))
    scaler = fit([system(8, 1)], {"q": training}, fixed_scales={"q": {1: 3, 6: 5, 8: 7}})
    one = atom_target([1.0, 1.0, 1.0], atom_samples(3))
    physical = scaler.convert([system(6, 8, 1)], {"q": one}, "model", "physical")["q"]
    assert physical.block().values.flatten().tolist() == [5, 7, 3]


def test_fixed_number_leaves_the_full_scale_of_missing_properties():
    found = full_scale_of_unseen([[2.0, NAN], [4.0, NAN]], {"q": 7})
    assert found == pytest.approx([7, 1], rel=1e-14)


def test_unseen_types_are_an_error():
    scaler = fit([system(8, 1)], {"q": atom_target([2.0, 4.0], atom_samples(2))})
    with pytest.raises(ValueError, match=r"target 'q': no scale for the atomic types \[6, 7\]"):
        scaler.convert([system(7, 1, 6)], {"q": atom_target([1.0] * 3, atom_samples(3))})


@pytest.mark.parametrize("mode", ["error", "pooled"])
def test_type_without_weight_is_an_error_whether_or_not_it_has_a_scale(mode):
    training = {
        "e": structure_target([-75.0, -76.0, -150.1]),
        "q": atom_target([2.0, 4.0, 5, 7], [[0, 0], [1, 0], [1, 1], [1, 2]]),
    }
    scaler = fit(
        [system(8), system(1, 8, 1), system(8, 8)], training, baseline=FITTED, unseen_types=mode
    )
    carbon = [system(6), system(6, 8)]
    for source, space in (("physical", "loss"), ("loss", "physical"), ("model", "physical")):
        with pytest.raises(ValueError, match=r"target 'e'.* no baseline for .* types \[6\]"):
            scaler.convert(carbon, {"e": structure_target([1.0, 2.0])}, source, space)
        with pytest.raises(ValueError, match=r"target 'q'.* no .* for .* types \[6\]"):
            scaler.convert(carbon, {"q": atom_target([1.0], [[0, 0]])}, source, space)
    # Where the baseline takes no part, neither does the weight.
    scaler.convert(carbon, {"e": structure_target([1.0, 2.0])}, "model", "loss")
    scaler.convert(carbon, {"e": structure_target([1.0, 2.0])}, "loss", "physical", baseline=False)


def test_fixed_baseline_of_a_type_without_data():
    fixed = CompositionBaseline({"e": {1: -1.0, 8: -2.0, 6: -3.0}, "q": {1: 1, 8: 2, 6: 3}})
    training = {
        "e": structure_target([-4.0, -7.0, -11.0]),
        "q": atom_target(np.arange(10.0), atom_samples(1, 3, 6)),
    }
    scaler = fit(water_family(), training, baseline=fixed, unseen_types="identity")
    zero = {"e": structure_target([0.0]), "q": atom_target([0.0, 0.0], atom_samples(2))}
    out = scaler.convert([system(6, 8)], zero, "loss", "physical")
    assert out["e"].block().values.item() == -5.0
    assert out["q"].block().values.flatten().tolist() == [3.0, 2.0]
    assert scaler.scales["q"].block().samples == labels("atomic_type", [1, 8])


def test_a_type_without_a_weight_is_an_error_after_it_was_ignored_once():
    training = {"e": structure_target([-4.0, -7.0, -11.0])}
    scaler = fit(water_family(), training, baseline=FITTED, unseen_types="identity")
    with pytest.warns(UserWarning, match=r"6"):
        scaler.convert([system(6)], {"e": structure_target([1.0])})
    scaler.settings = replace(scaler.settings, unseen_types="error")
    with pytest.raises(ValueError, match=r"no baseline for the atomic types \[6\]"):
        scaler.convert([system(6)], {"e": structure_target([1.0])})


# Only types of existing values need a baseline.


def test_only_types_of_rows_with_values_need_a_baseline():
    systems = [system(8, 1, 1), system(8)]
    charges = atom_target([1.0, 2.0], [[0, 0], [1, 0]])
    scaler = fit(systems, {"q": charges}, baseline=FITTED)
    # O: mean 1.5, spread 0.5.
    values = scaler.convert(systems, {"q": charges})["q"].block().values
    assert values.flatten().tolist() == pytest.approx([-1, 1])


def test_baseline_of_an_atomic_basis():
    systems = [system(1, 8, 1), system(8)]
    target = atomic_basis(
        {(0, 8): [[[1.0]], [[2.0]]], (0, 1): [[[3.0]], [[5.0]]]},
        {8: [[0, 1], [1, 0]], 1: [[0, 0], [0, 2]]},
    )
    scaler = fit(systems, {"c": target}, baseline=FITTED)
    loss = scaler.convert(systems, {"c": target}, "physical", "model")["c"]
    assert loss.block(0).values.flatten().tolist() == pytest.approx([-1, 1])
    assert loss.block(1).values.flatten().tolist() == pytest.approx([-1, 1])


def test_column_without_data_leaves_the_others_alone():
    systems = [system(8), system(8, 8), system(1, 8)]
    energy = structure_target([[-75.0, 1.0], [-150.2, 3.0], [-75.6, NAN]])
    with pytest.warns(UserWarning, match=r"property \(energy=1\), types \[1\]; predictions"):
        scaler = fit(systems, {"e": energy}, baseline=FITTED)
    values = scaler.convert(systems, {"e": energy})["e"].block().values
    assert values.isnan().tolist() == [[False, False], [False, False], [False, True]]


def test_rows_of_some_systems_only():
    training = structure_target([-75.0, -76.0, -150.1])
    scaler = fit([system(8), system(1, 8, 1), system(8, 8)], {"e": training}, baseline=FITTED)
    # Carbon has no energy here, so no weight is asked of it.
    part = structure_target([-75.0], [1])
    values = scaler.convert([system(6), system(8)], {"e": part})["e"].block().values
    assert values.isfinite().all()


def test_block_missing_where_a_type_first_appears():
    accumulator = ScaleAccumulator(baseline=FITTED)
    rows = labels("system", [0, 1, 2])
    first = spherical({0: [[[2.0]], [[12.0]], [[3.0]]], 2: np.ones((3, 5, 1))}, rows)
    systems = [system(8), system(1, 8, 1), system(8, 8)]
    accumulator.update(systems, {"p": first})
    second = spherical({2: np.ones((1, 5, 1))}, labels("system", [0]))
    accumulator.update([system(6, 1)], {"p": second})
    with pytest.warns(UserWarning, match=r"property \(property=0\), types \[6\]; predictions"):
        scaler = accumulator.compute()
    values = scaler.convert(systems, {"p": first})["p"].block(0).values
    assert values.isfinite().all()


# Labels.


def test_targets_by_id():
    systems = [system(8), system(1, 8, 1)]
    fixed = CompositionBaseline({"e": {1: -1.0, 8: -10.0}})
    accumulator = ScaleAccumulator(baseline=fixed, system_labels="id")
    energy = structure_target([-11.0, -15.0], [1, 0])
    accumulator.update(systems, {"e": energy})
    # Left per atom: -1 and -3 / 3.
    scaler = accumulator.compute()
    values = scaler.convert(systems, {"e": energy})["e"].block().values
    assert values.flatten().tolist() == pytest.approx([-1, -3])


def test_predictions_by_position_whatever_the_targets_are():
    systems = [system(8), system(1, 8, 1)]
    fixed = CompositionBaseline({"e": {1: -1.0, 8: -10.0}})
    accumulator = ScaleAccumulator(baseline=fixed, system_labels="id")
    accumulator.update(systems, {"e": structure_target([-11.0, -15.0], [7, 3])})
    scaler = accumulator.compute()
    swapped = structure_target([0.0, 0.0], [1, 0])
    values = scaler.convert(systems, {"e": swapped}, "model", "physical")["e"].block().values
    assert values.flatten().tolist() == [-12, -10]
    with pytest.raises(ValueError, match="is not in the batch of 2 systems"):
        scaler.convert(systems, {"e": structure_target([0.0], [7])}, "model", "physical")


# Other layouts.


def test_blocks_that_the_fit_has_not_seen():
    rows = labels("system", [0])
    scaler = fit([system(8)], {"t": spherical({0: [[[1.0]]], 2: np.ones((1, 5, 1))}, rows)})
    with pytest.raises(ValueError, match=r"no scale for the block \(o3_lambda=1, o3_sigma=1\)"):
        scaler.convert([system(8)], {"t": spherical({1: np.ones((1, 3, 1))}, rows)})
    # Fewer blocks, in another order, are normal.
    fewer = spherical({2: np.ones((1, 5, 1)), 0: [[[1.0]]]}, rows)
    assert scaler.convert([system(8)], {"t": fewer})["t"].block(0).values.shape == (1, 5, 1)


def test_blocks_in_another_order_take_their_own_scales():
    rows = labels("system", [0])
    scaler = fit([system(8)], {"t": spherical({0: [[[2.0]]], 1: [[[5.0], [5.0], [5.0]]]}, rows)})
    swapped = spherical({1: np.ones((1, 3, 1)), 0: [[[1.0]]]}, rows)
    physical = scaler.convert([system(8)], {"t": swapped}, "model", "physical")["t"]
    assert physical.block(0).values.flatten().tolist() == pytest.approx([5, 5, 5])
    assert physical.block(1).values.flatten().tolist() == pytest.approx([2])


def test_another_layout_is_refused():
    scaler = fit([system(8)], {"t": structure_target([1.0])})
    with pytest.raises(ValueError, match="target 't'"):
        scaler.convert([system(8)], {"t": structure_target([[1.0, 2.0]])})
    with pytest.raises(ValueError, match="target 't'"):
        scaler.convert([system(8)], {"t": atom_target([1.0], [[0, 0]], "energy")})


def test_target_without_blocks_passes():
    scaler = fit([system(8)], {"t": spherical({0: [[[2.0]]]}, labels("system", [0]))})
    nothing = TensorMap(labels(["o3_lambda", "o3_sigma"], []), [])
    assert len(scaler.convert([system(8)], {"t": nothing})["t"].keys) == 0


def test_half_precision_does_not_underflow():
    scaler = fit([system(8)], {"e": structure_target([1e-9])})
    small = structure_target([6e-8], dtype=torch.float16)
    values = scaler.convert([system(8)], {"e": small}, "physical", "loss")["e"].block().values
    assert values.isfinite().all()


def test_inputs_are_not_written_to():
    scaler = fitted()
    for name, tensor in targets().items():
        before = [b.values.clone() for b in tensor.blocks()]
        for source, space in DIRECTIONS:
            scaler.convert(SYSTEMS, {name: tensor}, source, space)
        for ours, theirs in zip(tensor.blocks(), before, strict=True):
            assert torch.equal(ours.values.view(torch.int64), theirs.view(torch.int64))


def test_activation_checkpointing_may_end_in_a_conversion():
    scaler = fit([system(8)], {"e": structure_target([4.0])})

    def physical(numbers):
        (old,) = structure_target([0.0]).blocks()
        target = single(TensorBlock(numbers[:, None], old.samples, [], old.properties))
        converted = scaler.convert([system(8)], {"e": target}, "model", "physical")
        return converted["e"].block().values

    numbers = torch.tensor([3.0], dtype=torch.float64, requires_grad=True)
    checkpoint(
        lambda given: physical(given.square()), numbers, use_reentrant=False
    ).sum().backward()
    assert numbers.grad.tolist() == [2 * 3.0 * 4.0]


def test_missing_values_of_a_new_type_in_the_second_block():
    """Blocks of a target may come in another order than that of the invariant one."""
    samples, rng = labels("system", [0, 1, 2, 3]), np.random.default_rng(0)
    tensor = spherical({2: rng.normal(size=(4, 5, 1)), 0: rng.normal(size=(4, 1, 1))}, samples)
    scaler = fit([*SYSTEMS, system(8)], {"alpha": tensor}, baseline=FITTED)
    known = tensor.block_by_id(1).values.clone()
    known[3] = NAN
    unknown = spherical({2: tensor.block_by_id(0).values, 0: known}, samples)
    new = [*SYSTEMS, system(9, 8)]
    found = scaler.convert(new, {"alpha": unknown})["alpha"].block_by_id(1).values
    assert found.isnan().flatten().tolist() == [False, False, False, True]
    with pytest.raises(ValueError, match=r"no baseline for the atomic types \[9\]"):
        scaler.convert(new, {"alpha": tensor})


def test_two_scalers_and_one_batch():
    """Each compares a target with its own layout, even if they share the atoms of a batch."""
    atoms, charges = Atoms.from_systems(SYSTEMS), targets()["charges"]
    scaler = fit(SYSTEMS, {"charges": charges})
    single = atom_target(np.ones((6, 1)), atom_samples(1, 3, 2))
    other = fit(SYSTEMS, {"charges": single})
    scaler.convert(atoms, {"charges": charges})
    with pytest.raises(ValueError, match=r"'charges', block .*: expected properties"):
        other.convert(atoms, {"charges": charges})
    assert list(scaler.convert(atoms, {"charges": charges})) == ["charges"]
