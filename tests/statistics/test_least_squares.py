"""Linear least squares over rows that arrive in chunks."""

import pickle

import mpmath
import numpy as np
import pytest
import torch
from by_hand import double

from lightning_scaler.statistics.least_squares import (
    MAX_PENDING_ROWS,
    LeastSquares,
    minimum_norm_weights,
    reduce_rows,
    sum_sq_residuals,
)

NAN = float("nan")


def problem_of(types, matrix, values):
    problem = LeastSquares(torch.tensor(types), len(values[0]))
    problem.add(double(matrix), double(values))
    return problem


def data(n_rows, n_types, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 6, (n_rows, n_types)).astype(float), rng.normal(size=(n_rows, 2))


def expected_residuals(matrix, values, weights):
    return ((values - matrix @ weights) ** 2).sum(0)


# Reduced rows


def test_reduced_rows_have_the_same_residuals_for_any_weights():
    matrix, values = data(9, 3)
    rows = reduce_rows(double(matrix), double(values))
    assert rows.matrix.shape == (3, 3)
    assert rows.values.shape == (3, 2)
    for weights in np.random.default_rng(3).normal(size=(4, 3, 2)):
        found = sum_sq_residuals(rows, double(weights)).numpy()
        expected = expected_residuals(matrix, values, weights)
        np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_weights_from_reduced_rows():
    matrix, values = data(7, 3)
    weights = minimum_norm_weights(reduce_rows(double(matrix), double(values)))
    expected = np.linalg.lstsq(matrix, values, rcond=None)[0]
    np.testing.assert_allclose(weights.numpy(), expected, rtol=1e-11)


def test_undetermined_weights_have_the_smallest_norm():
    # Only the sum 2 h + o = 5 is known: the solution parallel to (2, 1) is (2, 1).
    rows = reduce_rows(double([[2, 1], [4, 2], [2, 1]]), double([[5], [10], [5]]))
    weights = minimum_norm_weights(rows)
    np.testing.assert_allclose(weights.flatten().numpy(), [2, 1], rtol=1e-13)
    assert sum_sq_residuals(rows, weights).item() < 1e-26


@pytest.mark.parametrize("matrix", [[[3e8, 0], [0, 1]], [[3e8, 3e8], [0, 1]]])
def test_a_type_in_one_of_very_many_structures_has_its_weight(matrix):
    """Also if all others have a type that is as frequent in it as in them."""
    values = double(matrix) @ double([[2], [3]])
    weights = minimum_norm_weights(reduce_rows(double(matrix), values))
    np.testing.assert_allclose(weights.flatten().numpy(), [2, 3], rtol=1e-6)


def test_reduction_without_columns_and_without_rows():
    rows = reduce_rows(torch.zeros(2, 0).double(), double([[3], [4]]))
    weights = minimum_norm_weights(rows)
    assert weights.shape == (0, 1)
    assert sum_sq_residuals(rows, weights).tolist() == [25]
    no_rows = reduce_rows(torch.zeros(0, 2).double(), torch.zeros(0, 1).double())
    assert no_rows.residual_ss.item() == 0


def test_unit_change_by_a_power_of_two_is_exact():
    matrix, values = map(double, data(11, 3))
    units = double([1.0, 2.0**-30])
    rows, scaled = reduce_rows(matrix, values), reduce_rows(matrix, values * units)
    weights, scaled_weights = minimum_norm_weights(rows), minimum_norm_weights(scaled)
    assert torch.equal(scaled_weights, weights * units)
    expected = sum_sq_residuals(rows, weights) * units.square()
    assert torch.equal(sum_sq_residuals(scaled, scaled_weights), expected)


# The streaming problem


@pytest.mark.parametrize("n_rows", [1, 2, 3, 50, MAX_PENDING_ROWS + 90])
def test_weights_and_residuals(n_rows):
    matrix, values = data(n_rows, 3)
    problem = problem_of([1, 6, 8], matrix, values)
    expected = np.linalg.lstsq(matrix, values, rcond=None)[0]
    used = (matrix != 0).any(0)
    weights = problem.weights().numpy()
    np.testing.assert_allclose(weights[used], expected[used], rtol=1e-9, atol=1e-12)
    assert np.isnan(weights[~used]).all()
    guess = np.array([[0.3, -1.0], [2.0, 0.1], [-0.7, 4.0]])
    np.testing.assert_allclose(
        problem.sum_sq_residuals(double(guess)).numpy(),
        expected_residuals(matrix, values, guess),
        rtol=1e-12,
    )


def test_memory_does_not_grow_with_the_number_of_rows():
    generator = torch.Generator().manual_seed(0)
    problem = LeastSquares(torch.tensor([1, 8]), 1)
    largest = 0
    for _ in range(300):
        matrix = torch.rand(20, 2, generator=generator).double()
        problem.add(matrix, torch.rand(20, 1, generator=generator).double())
        largest = max(largest, len(pickle.dumps(problem)))
    # All 6000 rows of three numbers are 144 kB; 512 rows are 12 kB, in 26 chunks of two tensors.
    assert largest < 40_000
    assert sum(t.numel() for t in problem.state().values()) == 2 + 4 + 2 + 1


def test_merge_with_other_types_and_the_other_remains_unchanged():
    # Columns H, O and C, O: together H, C, O.
    (first, values_1), (second, values_2) = data(5, 2, seed=2), data(6, 2, seed=3)
    together = np.zeros((11, 3))
    together[:5, [0, 2]], together[5:, [1, 2]] = first, second
    problem, other = problem_of([1, 8], first, values_1), problem_of([6, 8], second, values_2)
    problem.merge(other)
    assert problem.types.tolist() == [1, 6, 8]
    expected = np.linalg.lstsq(together, np.concatenate([values_1, values_2]), rcond=None)[0]
    np.testing.assert_allclose(problem.weights().numpy(), expected, rtol=1e-11)
    assert other.types.tolist() == [6, 8]
    expected = np.linalg.lstsq(second, values_2, rcond=None)[0]
    np.testing.assert_allclose(other.weights().numpy(), expected, rtol=1e-11)


def test_type_in_no_row_has_no_weight():
    problem = problem_of([1, 6, 8], [[2, 0, 1], [0, 0, 1]], [[4.0], [3.0]])
    weights = problem.weights().flatten()
    assert weights[[0, 2]].tolist() == pytest.approx([0.5, 3.0])
    assert weights[1].isnan()
    assert problem.sum_sq_residuals(problem.weights()).item() < 1e-28


def test_weights_of_equal_compositions():
    # Weights parallel to (2, 1): mean energy -5.2, so -5.2 / 5 * (2, 1).
    problem = problem_of([1, 8], [[2, 1]] * 3, [[-5.0], [-5.5], [-5.1]])
    weights = problem.weights()
    np.testing.assert_allclose(weights.flatten().numpy(), [-2.08, -1.04], rtol=1e-13)
    # Residuals 0.2, -0.3 and 0.1.
    assert problem.sum_sq_residuals(weights).item() == pytest.approx(0.14, rel=1e-13)


def test_column_norms():
    problem = problem_of([1, 8], [[2, 1], [1, 0], [2, 3]], [[0.0]] * 3)
    # 4 + 1 + 4 and 1 + 9.
    expected = pytest.approx([3.0, 10**0.5], rel=1e-14)
    assert problem.column_norms().tolist() == expected


def test_selected_properties_are_a_copy():
    matrix, values = data(9, 3)
    problem = problem_of([1, 6, 8], matrix, values)
    second = problem.select([1])
    expected = np.linalg.lstsq(matrix, values, rcond=None)[0]
    np.testing.assert_allclose(second.weights().numpy(), expected[:, 1:], rtol=1e-11)
    second.add(torch.ones(1, 3).double(), torch.ones(1, 1).double())
    np.testing.assert_allclose(problem.weights().numpy(), expected, rtol=1e-11)


def test_rows_added_to_a_copy_do_not_reach_the_original():
    matrix, values = data(9, 3)
    problem = problem_of([1, 6, 8], matrix, values)
    problem.copy().add(torch.ones(1, 3).double(), torch.ones(1, 2).double())
    expected = np.linalg.lstsq(matrix, values, rcond=None)[0]
    np.testing.assert_allclose(problem.weights().numpy(), expected, rtol=1e-11)


def test_problem_without_rows():
    problem = LeastSquares(torch.tensor([1, 8]), 2)
    assert problem.weights().isnan().all()
    assert problem.sum_sq_residuals(problem.weights()).tolist() == [0, 0]
    assert LeastSquares(torch.empty(0, dtype=torch.int64), 1).weights().shape == (0, 1)


def test_small_residuals_of_large_totals():
    rng = np.random.default_rng(6)
    matrix = rng.integers(1, 12, (80, 3)).astype(float)
    noise = 1e-3 * matrix.sum(1) * rng.normal(size=80)
    values = (matrix @ [-16.0, -1030.0, -2040.0] + noise)[:, None]
    problem = LeastSquares(torch.tensor([1, 6, 8]), 1)
    for start in range(0, 80, 9):
        problem.add(double(matrix[start : start + 9]), double(values[start : start + 9]))
    with mpmath.workdps(40):
        exact, right = mpmath.matrix(matrix.tolist()), mpmath.matrix(values.tolist())
        solution = mpmath.lu_solve(exact.T * exact, exact.T * right)
        residual = right - exact * solution
        expected = float(sum(number**2 for number in residual))
        weights = [float(number) for number in solution]
    np.testing.assert_allclose(problem.weights().flatten().numpy(), weights, rtol=1e-12)
    found = problem.sum_sq_residuals(problem.weights()).item()
    assert found == pytest.approx(expected, rel=1e-8)
