"""The mean squares in loss space that the loss divides by."""

import math

import numpy as np
import pytest
import torch
from builders import (
    Springs,
    atom_samples,
    atom_target,
    block,
    cartesian,
    fit,
    labels,
    mask_of,
    pair_target,
    single,
    spherical,
    structure_target,
    system,
)
from merge_battery import MergeTester
from metatensor.torch import TensorBlock, TensorMap

from lightning_scaler import CompositionBaseline, ScaleAccumulator, Scaler

NAN, INF = math.nan, math.inf
# O and H2O. The energies per atom are -3 and 2, so that σ² = (9 + 4) / 2 = 6.5.
SYSTEMS = [system(8), system(1, 1, 8)]
ENERGIES = [-3.0, 6.0]
# Squares: 9; 25, 4 and 1.
POSITIONS = [[[1.0, 2.0, 2.0]], [[0.0, 3.0, 4.0], [2.0, 0.0, 0.0], [0.0, 0.0, 1.0]]]


def energy(values=ENERGIES, dtype=torch.float64, **gradient):
    lists = {name: [np.asarray(one).tolist() for one in of] for name, of in gradient.items()}
    return structure_target(values, gradient=lists, dtype=dtype)


def mean_squares(targets, systems=SYSTEMS, **settings):
    return fit(systems, targets, **settings).mean_squares


def test_the_mean_square_of_a_gradient_is_that_of_its_values_over_the_squared_scale():
    found = mean_squares({"energy": energy(positions=POSITIONS)})
    assert list(found) == ["energy", "energy/positions"]
    assert found["energy"] == pytest.approx(1.0, rel=1e-14)
    assert found["energy/positions"] == pytest.approx((9 + 25 + 4 + 1) / 12 / 6.5, rel=1e-14)


def test_the_units_of_the_target_do_not_change_the_mean_square():
    target = energy(positions=POSITIONS)
    other = energy([2e-3 * e for e in ENERGIES], positions=[2e-3 * np.array(p) for p in POSITIONS])
    expected = mean_squares({"energy": target})["energy/positions"]
    assert mean_squares({"energy": other})["energy/positions"] == pytest.approx(expected, rel=1e-13)


def test_strain_gradients_of_extensive_targets_are_divided_by_the_number_of_atoms():
    strain = [np.full((3, 3), 2.0), np.full((3, 3), 6.0)]
    target = {"energy": energy(strain=strain)}
    # 2 for one atom, and 6 / 3 for three.
    found = mean_squares(target)["energy/strain"]
    assert found == pytest.approx(4 / 6.5, rel=1e-14)
    # Intensive: nothing is divided, and σ² = (9 + 36) / 2.
    found = mean_squares(target, intensive_targets=["energy"])["energy/strain"]
    assert found == pytest.approx((4 + 36) / 2 / 22.5, rel=1e-14)


def test_missing_gradients_enter_neither_the_sum_nor_the_count():
    positions = [[[1.0, NAN, 2.0]], [[0.0, 3.0, 4.0], [NAN, NAN, NAN], [0.0, 0.0, 1.0]]]
    found = mean_squares({"energy": energy(positions=positions)})["energy/positions"]
    assert found == pytest.approx((1 + 4 + 25 + 1) / 8 / 6.5, rel=1e-14)


def test_the_mean_square_of_a_gradient_without_any_value_is_unknown():
    positions = [np.full((1, 3), NAN), np.full((3, 3), NAN)]
    with pytest.warns(UserWarning, match=r"gradients have no value at all .* 'positions' of 'en"):
        assert list(mean_squares({"energy": energy(positions=positions)})) == ["energy"]


def test_all_blocks_of_a_gradient_are_one_term():
    values = spherical({0: [[[3.0]]], 1: [[[1.0], [2.0], [2.0]]]}, labels("system", [0]))
    blocks = [of_block.copy() for of_block in values.blocks()]
    axes = [labels("xyz_1", [0, 1, 2]), labels("xyz_2", [0, 1, 2])]
    for of_block, strain in zip(blocks, (2.0, 1.0), strict=True):
        values_of_strain = torch.full((1, 3, 3, *of_block.values.shape[1:]), strain).double()
        components = [*axes, *of_block.components]
        of_block.add_gradient(
            "strain",
            TensorBlock(values_of_strain, labels("sample", [0]), components, of_block.properties),
        )
    target = TensorMap(values.keys, blocks)
    found = mean_squares({"t": target}, [system(8)])
    # σ² = (9 + 9) / 4; squares are 9 · 4 and 27 · 1.
    assert found["t/strain"] == pytest.approx((36 + 27) / 36 / 4.5, rel=1e-14)


def test_gradients_of_per_atom_targets_are_divided_by_the_scale_of_the_type():
    values = block([3.0, 1.0, 2.0], atom_samples(1, 2))
    rows = labels(["sample", "atom"], [[0, 0], [1, 0], [2, 1]])
    gradient = torch.tensor([[6.0, 0, 0], [1.0, 2.0, 2.0], [0, 4.0, 3.0]]).double()[..., None]
    values.add_gradient("positions", TensorBlock(gradient, rows, cartesian(), values.properties))
    # σ² is 9 for O; (1 + 4) / 2 for H.
    found = mean_squares({"q": single(values)}, [system(8), system(1, 1)])
    assert found["q"] == pytest.approx(1.0, rel=1e-14)
    assert found["q/positions"] == pytest.approx((36 / 9 + (9 + 25) / 2.5) / 9, rel=1e-14)


@pytest.mark.filterwarnings("ignore:subtracting the baseline makes these targets larger")
def test_gradients_of_an_additive_module_are_subtracted():
    places = [[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 2.0, 0.0]]
    systems = [system(8, positions=[[0.0, 0.0, 3.0]]), system(1, 1, 8, positions=places)]
    # The module gives 0.5 Σ r², which is 4.5 and 2.5, and the gradient r.
    residual = [[[1.0, 2.0, 2.0]], [[0.0, 3.0, 4.0], [2.0, 0.0, 0.0], [0.0, 0.0, 1.0]]]
    positions = [[[1.0, 2.0, 5.0]], [[0.0, 3.0, 4.0], [3.0, 0.0, 0.0], [0.0, 2.0, 1.0]]]
    target = energy([-3.0 + 4.5, 6.0 + 2.5], positions=positions)
    found = mean_squares({"energy": target}, systems, additive=Springs(names=("energy",)))
    squares = math.fsum(x * x for rows in residual for row in rows for x in row)
    assert found["energy"] == pytest.approx(1.0, rel=1e-12)
    assert found["energy/positions"] == pytest.approx(squares / 12 / 6.5, rel=1e-12)


@pytest.mark.filterwarnings("ignore:these data are zero")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_an_additive_module_explains_has_no_mean_square(dtype):
    """Rounding noise must not be divided by rounding noise."""
    systems = [system(1, 8), system(1, 1, 8)]
    module = Springs(k=0.37, names=("energy",))
    target = module(systems, ["energy"])["energy"].to(dtype=dtype)
    found = mean_squares({"energy": target}, systems, additive=module)
    assert found == {"energy": 0.0, "energy/positions": 0.0}


def test_the_contribution_to_a_missing_gradient_is_no_rounding_noise():
    """The module gives a force of 1e9, whose rounding in float32 is 100, where none is known.

    The other structure is left with (1, 2, 2) and an energy of 3.
    """
    systems = [system(8, positions=[[0.0, 0.0, 3.0]]), system(8, positions=[[1e9, 0.0, 0.0]])]
    positions = [[[1.0, 2.0, 5.0]], [[NAN, NAN, NAN]]]
    target = energy([3.0 + 4.5, NAN], torch.float32, positions=positions)
    found = mean_squares({"energy": target}, systems, additive=Springs(names=("energy",)))
    assert found["energy/positions"] == pytest.approx(9 / 3 / 9, rel=1e-12)


def test_zero_gradients_have_a_mean_square_of_zero():
    zero = [np.zeros((1, 3)), np.zeros((3, 3))]
    assert mean_squares({"energy": energy(positions=zero)})["energy/positions"] == 0.0


def test_fixed_scales_have_the_mean_squares_of_the_data_under_them():
    targets = {
        "energy": energy(positions=POSITIONS),
        "charges": atom_target([1.0, 2.0, 4.0, 3.0], atom_samples(1, 3)),
    }
    fixed = {"energy": 0.5, "charges": {8: 2.0, 1: 4.0}}
    found = mean_squares(targets, fixed_scales=fixed)
    assert found["energy"] == pytest.approx(6.5 / 0.25, rel=1e-14)
    assert found["energy/positions"] == pytest.approx((39 / 12) / 0.25, rel=1e-14)
    # O: 1 / 2 and 3 / 2; H: 2 / 4 and 4 / 4.
    assert found["charges"] == pytest.approx((0.25 + 2.25 + 0.25 + 1.0) / 4, rel=1e-14)


def test_without_scales_mean_squares_are_those_of_the_residuals():
    accumulator = ScaleAccumulator(baseline=CompositionBaseline({"energy": {1: 1.0, 8: -1.0}}))
    accumulator.update(SYSTEMS, {"energy": energy(positions=POSITIONS)})
    found = accumulator.compute(enabled=False).mean_squares
    # -3 + 1 for one atom, (6 - 2 + 1) / 3 for three; gradients have no baseline.
    assert found["energy"] == pytest.approx((4 + 25 / 9) / 2, rel=1e-14)
    assert found["energy/positions"] == pytest.approx(39 / 12, rel=1e-14)


def test_values_below_rounding_noise_count_as_zero():
    charges = atom_target([[3.0, 0.0], [4.0, 5.0]], atom_samples(1, 1))
    found = mean_squares({"q": charges}, [system(1), system(8)])
    # H has σ² = 9 / 2 with one of its properties zero, O (16 + 25) / 2: both have a mean of 1.
    assert found["q"] == pytest.approx(1.0, rel=1e-14)
    with pytest.warns(UserWarning, match="these data are zero"):
        found = mean_squares({"q": atom_target([0.0, 0.0], atom_samples(1, 1))}, SYSTEMS[:1] * 2)
    assert found == {"q": 0.0}


def test_atom_pairs_have_the_mean_square_of_their_values():
    rows = [[0, 0, 0, 0, 0, 0], [1, 0, 1, 0, 0, 0], [1, 1, 2, 0, 0, 0]]
    pairs = pair_target([[3.0, NAN], [-4.0, 5.0], [0.0, 7.0]], rows)
    found = mean_squares({"t": pairs, "energy": energy()})["t"]
    assert found == pytest.approx((9 + 16 + 25 + 49) / 5, rel=1e-14)
    masks = {"t": mask_of(pairs, [[[True, True], [True, False], [True, True]]])}
    found = fit(SYSTEMS, {"t": pairs, "energy": energy()}, masks).mean_squares["t"]
    assert found == pytest.approx((9 + 16 + 49) / 4, rel=1e-14)


@pytest.mark.parametrize("parameter", ["positions", "strain"])
def test_infinite_gradients_are_an_error_and_change_nothing(parameter):
    gradients = {"positions": POSITIONS, "strain": [np.eye(3), np.eye(3)]}
    infinite = [np.array(numbers) for numbers in gradients[parameter]]
    infinite[1][1, 1:] = -INF
    accumulator = ScaleAccumulator()
    accumulator.update(SYSTEMS, {"energy": energy(**gradients)})
    before = accumulator.compute().mean_squares
    message = (
        rf"target 'energy', block \(_=0\), gradient '{parameter}': expected finite numbers, or "
        r"NaN for missing ones, got 2 infinite values"
    )
    with pytest.raises(ValueError, match=message):
        accumulator.update(SYSTEMS, {"energy": energy(**{parameter: infinite})})
    assert accumulator.compute().mean_squares == before


def test_infinite_values_of_atom_pairs_are_an_error_unless_masked():
    pairs = pair_target([[3.0], [-INF]], [[0, 0, 0, 0, 0, 0], [1, 0, 1, 0, 0, 0]])
    targets = {"t": pairs, "energy": energy()}
    with pytest.raises(ValueError, match=r"target 't', block \(_=0\): .* got 1 infinite value"):
        fit(SYSTEMS, targets)
    masks = {"t": mask_of(pairs, [[[True], [False]]])}
    assert fit(SYSTEMS, targets, masks).mean_squares["t"] == 9.0


def test_a_mean_square_that_overflows_is_unknown():
    scaler = fit(SYSTEMS, {"energy": energy()}, fixed_scales={"energy": 1e-200})
    assert "energy" not in scaler.mean_squares
    Scaler().load_state_dict(scaler.state_dict())


def test_gradients_whose_squares_overflow_are_an_error():
    huge = [1e200 * np.ones((1, 3)), np.ones((3, 3))]
    with pytest.raises(ValueError, match="gradient 'positions': the sum of squares overflows"):
        mean_squares({"energy": energy(positions=huge)})


def test_mean_squares_are_saved_with_the_scales(tmp_path):
    scaler = fit(SYSTEMS, {"energy": energy(positions=POSITIONS)})
    scaler.save(tmp_path / "scaler")
    assert Scaler.load(tmp_path / "scaler").mean_squares == scaler.mean_squares
    assert "energy/positions" in scaler.mean_squares


class TestMeanSquares(MergeTester):
    """Of energies with forces and strain, and of per-atom gradients, some of them missing."""

    n_observations = 15
    rtol = 1e-13

    @staticmethod
    def observation(i):
        generator = np.random.default_rng(i)
        types = generator.choice([1, 6, 8], size=1 + i % 3)
        values = {
            "energy": generator.normal(size=1),
            "positions": generator.normal(size=(len(types), 3)),
            "strain": generator.normal(size=(1, 3, 3)),
            "charges": generator.normal(size=len(types)),
            "charge gradient": generator.normal(size=(len(types), 3)),
        }
        if i % 4 == 1:
            values["positions"][0, 1] = NAN
            values["charge gradient"][0] = NAN
        return types.tolist(), values

    def read(self, observations):
        accumulator = ScaleAccumulator()
        for i in observations:
            types, values = self.observation(i)
            gradient = {"positions": [values["positions"]], "strain": values["strain"]}
            charges = block(values["charges"], atom_samples(len(types)))
            rows = labels(["sample", "atom"], [[a, a] for a in range(len(types))])
            of_charges = torch.tensor(values["charge gradient"])[..., None]
            charges.add_gradient(
                "positions", TensorBlock(of_charges, rows, cartesian(), charges.properties)
            )
            targets = {
                "energy": energy(values["energy"].tolist(), **gradient),
                "charges": single(charges),
            }
            accumulator.update([system(*types)], targets)
        return accumulator

    def results(self, statistic):
        empty = not statistic.state()["statistics"]
        return {} if empty else statistic.compute().mean_squares

    def from_state(self, state):
        accumulator = ScaleAccumulator()
        accumulator.merge_state(state)
        return accumulator

    def expected(self):
        found = [self.observation(i) for i in range(self.n_observations)]
        per_atom = [v["energy"][0] / len(types) for types, v in found]
        variance = math.fsum(x * x for x in per_atom) / len(per_atom)
        expected = {}
        parts = {
            "positions": [v["positions"].ravel() for _, v in found],
            "strain": [v["strain"].ravel() / len(types) for types, v in found],
        }
        for parameter, arrays in parts.items():
            numbers = [x for x in np.concatenate(arrays) if not math.isnan(x)]
            mean = math.fsum(x * x for x in numbers) / len(numbers)
            expected[f"energy/{parameter}"] = mean / variance
        charges, gradients = {}, {}
        for types, values in found:
            for atom, z in enumerate(types):
                charges.setdefault(z, []).append(values["charges"][atom])
                gradients.setdefault(z, []).extend(values["charge gradient"][atom])
        scaled = [
            x * x * len(charges[z]) / math.fsum(q * q for q in charges[z])
            for z, numbers in gradients.items()
            for x in numbers
            if not math.isnan(x)
        ]
        expected["charges/positions"] = math.fsum(scaled) / len(scaled)
        return expected
