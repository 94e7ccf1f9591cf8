"""The fit of one target: scales, and the rules for edge cases."""

import math
import re
import warnings

import pytest
import torch
from builders import (
    atom_samples,
    atom_target,
    atomic_basis,
    cartesian,
    fit,
    forces,
    labels,
    mask_of,
    pair_target,
    scale,
    spherical,
    structure_target,
    system,
    water_family,
)
from by_hand import near, rms

from lightning_scaler import CompositionBaseline, ScaleAccumulator, Scaler

NAN = float("nan")
FITTED = CompositionBaseline()


def test_scale_of_energies_is_the_rms_per_atom():
    # O, H2O and H4O2 with 3, 4 and 12 per atom: sqrt((9 + 16 + 144) / 3) = 13 / sqrt(3).
    energy = structure_target([3.0, 12.0, 72.0])
    scaler = fit(water_family(), {"energy": energy})
    for which in ("per_target_scales", "scales"):
        assert scale(scaler, "energy", which) == [near(13 / math.sqrt(3))]
    assert scale(scaler, "energy", "per_property_scales") == [[1.0]]
    assert scaler.scales["energy"].block().samples == labels("atomic_type", [-1])
    values = scaler.convert(water_family(), {"energy": energy})["energy"].block().values
    factor = math.sqrt(3) / 13
    assert values.flatten().tolist() == near(3 * factor, 12 * factor, 72 * factor)


def test_intensive_targets_are_not_divided_by_the_number_of_atoms():
    gap = structure_target([3.0, 12.0, 72.0])
    scaler = fit(water_family(), {"gap": gap}, intensive_targets=["gap"])
    assert scale(scaler, "gap") == [near(rms(3, 12, 72))]
    assert not scaler.targets["gap"].extensive


def test_scales_of_forces_are_those_of_each_type():
    numbers = [[1, 2, 3], [4, 5, 6], [7, 8, 9], [10, 11, NAN]]
    scaler = fit(water_family()[:2], {"forces": forces(numbers, 1, 3)})
    # Atoms O | H O H.
    assert scaler.scales["forces"].block().samples == labels("atomic_type", [1, 8])
    assert scale(scaler, "forces") == [near(rms(4, 5, 6, 10, 11)), near(rms(1, 2, 3, 7, 8, 9))]
    assert scaler.scales["forces"].block().components == []


def test_per_property_scales_are_relative_to_the_target():
    # Per atom [1, 30], [2, 40]; a block each for lambda 0 and 1.
    values = {0: [[[1, 30]], [[2, 40]]], 1: [[[1], [2], [3]], [[4], [5], [6]]]}
    target = spherical(values, labels("system", [0, 1]))
    scaler = fit([system(8), system(1)], {"t": target})
    sigma = rms(1, 30, 2, 40, 1, 2, 3, 4, 5, 6)
    assert scale(scaler, "t", "per_target_scales", 0) == [near(sigma, sigma)]
    assert scale(scaler, "t", "per_target_scales", 1) == [near(sigma)]
    assert scale(scaler, "t", "per_property_scales", 0) == [
        near(rms(1, 2) / sigma, rms(30, 40) / sigma)
    ]
    assert scale(scaler, "t", "per_property_scales", 1) == [near(rms(1, 2, 3, 4, 5, 6) / sigma)]
    assert scale(scaler, "t", "scales", 0) == [near(rms(1, 2), rms(30, 40))]


def test_two_blocks_of_one_property_are_a_multi_property_target():
    target = spherical({0: [[[2.0]]], 1: [[[1.0], [2.0], [3.0]]]}, labels("system", [0]))
    scaler = fit([system(8)], {"t": target})
    assert scale(scaler, "t", "scales", 0) == [near(2)]
    assert scale(scaler, "t", "per_property_scales", 0) == [near(2 / rms(2, 1, 2, 3))]


def test_masks_and_missing_values_enter_neither_sum():
    energy = structure_target([3.0, NAN, 72.0])
    scaler = fit(water_family(), {"e": energy}, {"e": mask_of(energy, [[False, True, True]])})
    assert scale(scaler, "e") == [near(12)]


def test_seen_type_without_data_has_the_scale_one():
    target = atom_target([[3.0, 4.0]], [[0, 0]])
    scaler = fit([system(8, 1)], {"q": target})
    for which in ("per_target_scales", "per_property_scales", "scales"):
        assert scale(scaler, "q", which)[0] == [1, 1]
    assert scale(scaler, "q")[1] == near(3, 4)


def test_padded_property_has_the_full_scale_one():
    # H has no second function, as in padded blocks: its full scale is 1 = sigma_H * (1 / sigma_H).
    target = atom_target([[3.0, 5.0], [4.0, NAN]], atom_samples(2))
    scaler = fit([system(8, 1)], {"q": target})
    assert scale(scaler, "q", "per_target_scales") == [near(4, 4), near(rms(3, 5), rms(3, 5))]
    assert scale(scaler, "q", "per_property_scales")[0] == near(1, 1 / 4)
    assert scale(scaler, "q")[0] == near(4, 1)


def test_full_scale_is_the_product_without_exception():
    values = [[3.0, NAN, 0.0], [4.0, NAN, 2.0], [0.0, NAN, NAN]]
    target = atom_target(values, atom_samples(3))
    scaler = fit([system(8, 1, 6)], {"q": target}, fixed_scales={"q": {8: 2, 1: 3, 6: 5}})
    for row in range(3):
        first = scale(scaler, "q", "per_target_scales")[row]
        second = scale(scaler, "q", "per_property_scales")[row]
        assert scale(scaler, "q")[row] == near(*(a * b for a, b in zip(first, second, strict=True)))
        assert scale(scaler, "q")[row][1] == pytest.approx(1, rel=1e-14)


def test_zeros_have_the_scale_of_their_target_or_of_all_types():
    # Types H (0, 0) | C (0, 5) | O (3, 4), atoms O, H, C.
    target = atom_target([[3.0, 4.0], [0.0, 0.0], [0.0, 5.0]], atom_samples(3), "n")
    scaler = fit([system(8, 1, 6)], {"q": target})
    pooled = rms(3, 4, 0, 0, 0, 5)
    assert scale(scaler, "q") == [near(pooled, pooled), near(rms(0, 5), 5), near(3, 4)]
    assert scale(scaler, "q", "per_property_scales")[1][0] == 1


def test_noise_after_a_baseline_has_the_scale_of_its_target_or_of_all_types():
    # The numbers of the test above, as differences from 1.
    fixed = CompositionBaseline({"q": {1: 1.0, 6: 1.0, 8: 1.0}})
    blocks = {(0, z): [[[x + 1.0]]] for z, x in ((8, 3.0), (1, 0.0), (6, 5.0))}
    target = atomic_basis(blocks, {8: [[0, 0]], 1: [[0, 1]], 6: [[0, 2]]})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        scaler = fit([system(8, 1, 6)], {"q": target}, baseline=fixed)
    assert scale(scaler, "q", "per_target_scales") == [near(rms(3, 0, 5)), near(5), near(3)]
    assert len(caught) == 1
    message = str(caught[0].message)
    assert "target 'q', block (o3_lambda=0, o3_sigma=1, atom_type=1), property (n=0)" in message
    assert "type 8" not in message
    assert caught[0].filename == __file__ or "builders" in caught[0].filename


def test_more_than_eight_properties_below_noise_are_counted():
    # Nine columns of one number each, which the mean of the type explains; the tenth varies.
    values = [[float(n) for n in range(1, 10)] + [x] for x in (0.0, 2.0)]
    target = atom_target(values, atom_samples(2))
    with pytest.warns(UserWarning, match=r"below their rounding noise.*target 'q', 9 properties$"):
        fit([system(1, 1)], {"q": target}, baseline=CompositionBaseline())


def test_zeros_are_a_line_under_the_table():
    values = [[1.0, 0.0, 0.0], [3.0, 0.0, 1.0]]
    target = atom_target(values, atom_samples(2), "n")
    scaler = fit([system(1, 8)], {"q": target})
    assert scaler.table().caption.splitlines()[-1] == (
        "All values of these are 0, so they take the scale of their target: target 'q', block "
        "(_=0), property (n=1), type H (1); block (_=0), property (n=2), type H (1); block (_=0), "
        "property (n=1), type O (8)"
    )
    restored = Scaler()
    restored.set_extra_state(scaler.get_extra_state())
    assert restored.table().caption == scaler.table().caption
    padded = atom_target([[1.0] + [0.0] * 9] * 2, atom_samples(2))
    caption = fit([system(1, 1)], {"q": padded}).table().caption
    assert caption.endswith("target 'q', 9 properties")
    without = fit([system(1, 1)], {"q": atom_target([1.0, 2.0], atom_samples(2))})
    assert "0" not in without.table().caption


def test_one_warning_names_several_targets():
    targets = {"a": structure_target([0.0, 0.0]), "b": structure_target([0.0, NAN])}
    with pytest.warns(UserWarning, match=r"target 'a'.*target 'b'") as caught:
        scaler = fit([system(8), system(1)], targets)
    assert len(caught) == 1
    assert scale(scaler, "a") == scale(scaler, "b") == [[1.0]]


def test_small_units_are_not_rounding_noise():
    small = [x * 1e-30 for x in (3.0, 12.0, 72.0)]
    assert scale(fit(water_family(), {"e": structure_target(small)}), "e") == [
        near(13e-30 / math.sqrt(3))
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_residuals_below_the_rounding_of_stored_values_are_noise(dtype):
    # Sums over atoms of numbers that the dtype cannot represent: the residuals are rounding only.
    totals = [0.1 + 0.7 * n for n in range(1, 5)]
    systems = [system(8, *[1] * n) for n in range(1, 5)]
    with pytest.warns(UserWarning, match="rounding noise"):
        scaler = fit(systems, {"e": structure_target(totals, dtype=dtype)}, baseline=FITTED)
    assert scale(scaler, "e") == [[1.0]]


def test_float64_residuals_below_float32_rounding_are_data():
    totals = [1e4 * (0.1 + 0.7 * n) + 1e-4 * (-1) ** n for n in range(1, 6)]
    systems = [system(8, *[1] * n) for n in range(1, 6)]
    scaler = fit(systems, {"e": structure_target(totals)}, baseline=FITTED)
    assert 1e-6 < scale(scaler, "e")[0][0] < 1e-4
    # In float32 the residuals of the same numbers are rounding only.
    rounded = structure_target(totals, dtype=torch.float32)
    with pytest.warns(UserWarning, match="rounding noise"):
        assert scale(fit(systems, {"e": rounded}, baseline=FITTED), "e") == [[1.0]]


def test_small_data_without_baseline_are_not_noise():
    # A tiny float32 value next to a huge one of another type is still data.
    target = atom_target([1e8, 1e-8], atom_samples(2), dtype=torch.float32)
    scaler = fit([system(8, 1)], {"q": target})
    assert scale(scaler, "q")[0] == [pytest.approx(1e-8, rel=1e-6)]


def test_atomic_basis_blocks_have_scales_of_their_own_type_only():
    values = {(0, 1): [[[3.0, 1.0]], [[4.0, 2.0]]], (1, 8): [[[1.0], [2.0], [6.0]]]}
    target = atomic_basis(values, {1: [[0, 0], [0, 2]], 8: [[0, 1]]})
    scaler = fit([system(1, 8, 1)], {"c": target})
    assert scale(scaler, "c", "scales", 0) == [near(rms(3, 4), rms(1, 2)), near(1, 1)]
    assert scale(scaler, "c", "scales", 1) == [near(1), near(rms(1, 2, 6))]
    assert scale(scaler, "c", "per_target_scales", 0)[0] == near(rms(3, 4, 1, 2), rms(3, 4, 1, 2))


def test_gradients_do_not_enter_the_scales():
    energy = structure_target([3.0, 12.0, 72.0], gradient={"strain": torch.full((3, 3, 3), 1e6)})
    assert scale(fit(water_family(), {"e": energy}), "e") == [near(13 / math.sqrt(3))]


def test_atom_pairs_have_identity_scales():
    rows = [[0, 0, 1, 0, 0, 0], [0, 1, 0, 0, 0, 0]]
    scaler = fit([system(8, 1)], {"h": pair_target([5.0, 7.0], rows)}, baseline=FITTED)
    for which in ("per_target_scales", "per_property_scales", "scales"):
        assert scale(scaler, "h", which) == [[1.0]]
    with pytest.raises(ValueError, match="atom-pair targets are not scaled"):
        fit([system(8, 1)], {"h": pair_target([5.0, 7.0], rows)}, fixed_scales={"h": 2.0})


def test_fixed_baseline_of_atom_pairs_is_an_error():
    pairs = pair_target([5.0], [[0, 0, 1, 0, 0, 0]])
    with pytest.raises(ValueError, match="fixed_baseline of target 'h'"):
        fit(
            [system(8, 1)],
            {"h": pairs},
            baseline=CompositionBaseline(fixed={"h": {1: 1.0, 8: 1.0}}),
        )


def test_fixed_scales_for_a_target_and_per_type():
    targets = {"e": structure_target([3.0, 12.0]), "f": forces(torch.ones(4, 3), 1, 3)}
    fixed = {"e": 2, "f": {"1": 0.5, 8: 4, 6: 9.0}}
    scaler = fit(water_family()[:2], targets, fixed_scales=fixed)
    assert scale(scaler, "e") == [[2.0]]
    assert scale(scaler, "f") == [[0.5], [4.0]]
    one_number = fit(water_family()[:2], targets, fixed_scales={"f": 3})
    assert scale(one_number, "f") == [[3.0], [3.0]]
    assert scale(one_number, "e") == [near(rms(3, 4))]


def test_scales_of_types_without_a_fixed_number_are_fitted():
    charges = atom_target([[2.0, 3.0], [4.0, 1.0], [6.0, 7.0]], atom_samples(1, 2))
    systems = [system(8), system(1, 8)]
    fitted = fit(systems, {"q": charges})
    scaler = fit(systems, {"q": charges}, fixed_scales={"q": {"H": 10.0}})
    # H has 4 and 1, O has 2, 6 and 3, 7.
    sigma = rms(2, 6, 3, 7)
    assert scale(scaler, "q", "per_target_scales") == [[10.0, 10.0], near(sigma, sigma)]
    factor = 10 / rms(4, 1)
    assert scale(scaler, "q") == [near(4 * factor, factor), near(rms(2, 6), rms(3, 7))]
    assert scale(scaler, "q")[1] == scale(fitted, "q")[1]


def test_a_fixed_scale_of_some_types_needs_the_data_of_the_others():
    accumulator = ScaleAccumulator(["q"])
    accumulator.update([system(8)], {"q": atom_target([2.0], atom_samples(1))})
    assert accumulator.all_fixed({"q": {8: 0.5}})
    assert not accumulator.all_fixed({"q": {1: 0.5}})
    accumulator.update([system(1, 8)], {"q": atom_target([4.0, 6.0], atom_samples(2))})
    assert not accumulator.all_fixed({"q": {8: 0.5}})
    assert scale(accumulator.compute({"q": {8: 0.5}}), "q") == [near(4), [0.5]]


def test_fixed_scale_of_a_multi_property_target():
    # full = fixed * rms_p / sigma_data, here 10 * (1, 7) / rms(1, 7).
    scaler = fit([system(8)], {"t": structure_target([[1.0, 7.0]])}, fixed_scales={"t": 10.0})
    factor = 10 / rms(1, 7)
    assert scale(scaler, "t") == [near(factor, 7 * factor)]
    assert scale(scaler, "t", "per_target_scales") == [[10.0, 10.0]]


@pytest.mark.parametrize(
    ("fixed", "message"),
    [
        ({"e": 0}, "fixed_scales of target 'e': expected a positive number, got 0"),
        ({"e": float("nan")}, "expected a finite number"),
        ({"energy": 1.0}, "fixed_scales names the target 'energy', which the data do not have"),
        ({"f": {1: 1.0, "1": 2.0}}, "type 1 is given twice"),
        ({"e": {1: 1.0, 8: 1.0}}, "expected one number for a per-structure target"),
    ],
)
def test_fixed_scales_that_do_not_suit_the_target_are_an_error(fixed, message):
    targets = {"e": structure_target([3.0, 12.0]), "f": forces(torch.ones(4, 3), 1, 3)}
    with pytest.raises(ValueError, match=re.escape(message)):
        fit(water_family()[:2], targets, fixed_scales=fixed)


def test_units_by_a_power_of_two_scale_results_exactly():
    generator = torch.Generator().manual_seed(0)
    systems = [*water_family(), system(6, 8, 8), system(6, 1, 1, 1, 1)]
    values = torch.randn(5, 2, generator=generator).double() - 40
    charges = torch.randn(18, 3, 2, generator=generator).double()
    n_atoms = sum(len(s) for s in systems)
    factor = 2.0**-37

    def scaled(unit):
        targets = {
            "e": structure_target(values * unit),
            "q": atom_target(
                charges[:n_atoms] * unit, atom_samples(*map(len, systems)), "q", cartesian()
            ),
        }
        return fit(systems, targets, baseline=FITTED), targets

    (first, plain), (second, small) = scaled(1.0), scaled(factor)
    for name in ("e", "q"):
        ours = torch.tensor(scale(first, name), dtype=torch.float64) * factor
        assert torch.equal(ours, torch.tensor(scale(second, name), dtype=torch.float64))
        ours = first.convert(systems, plain, target="model")[name].block().values
        theirs = second.convert(systems, small, target="model")[name].block().values
        assert torch.equal(ours, theirs)


def test_disabled_scales_keep_the_baseline():
    accumulator = ScaleAccumulator(baseline=FITTED)
    energy = structure_target([-75.0, -76.5, -153.5])
    accumulator.update(water_family(), {"e": energy})
    scaler = accumulator.compute(enabled=False)
    assert scale(scaler, "e") == [[1.0]]
    ours = scaler.convert(water_family(), {"e": energy})["e"].block().values
    sigma = scale(accumulator.compute(), "e")[0][0]
    theirs = accumulator.compute().convert(water_family(), {"e": energy})["e"].block().values
    torch.testing.assert_close(ours, theirs * sigma, rtol=1e-12, atol=1e-14)


def test_disabled_scales_do_not_warn():
    accumulator = ScaleAccumulator()
    accumulator.update([system(8)], {"e": structure_target([0.0])})
    assert scale(accumulator.compute(enabled=False), "e") == [[1.0]]


def test_rms_before_and_after_the_baseline():
    fixed = CompositionBaseline(fixed={"e": {1: 0.0, 8: -2.0}})
    scaler = fit(water_family(), {"e": structure_target([-3.0, -8.0, -10.0])}, baseline=fixed)
    # Before, per atom -3, -8/3, -10/6; after: -1, -6/3, -6/6.
    assert scaler.targets["e"].rms_before == pytest.approx(rms(3, 8 / 3, 10 / 6), rel=1e-13)
    assert scaler.targets["e"].rms_after == pytest.approx(rms(1, 2, 1), rel=1e-13)
