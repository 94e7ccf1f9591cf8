"""Streaming linear least squares."""

import mpmath
import numpy as np
import pytest
import torch

from lightning_scaler.statistics.least_squares import ROWS_AT_ONCE, LeastSquares


def problem_of(types, matrix, values):
    problem = LeastSquares(torch.tensor(types), values.shape[1])
    problem.add(torch.as_tensor(matrix).double(), torch.as_tensor(values).double())
    return problem


def data(n_rows, n_types, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 6, (n_rows, n_types)).astype(float), rng.normal(size=(n_rows, 2))


def left_over(matrix, values, weights):
    return ((values - matrix @ weights) ** 2).sum(0)


@pytest.mark.parametrize("n_rows", [1, 2, 3, 50, ROWS_AT_ONCE + 90])
def test_weights_and_residuals(n_rows):
    matrix, values = data(n_rows, 3)
    problem = problem_of([1, 6, 8], matrix, values)
    expected = np.linalg.lstsq(matrix, values)[0]
    used = (matrix != 0).any(0)
    np.testing.assert_allclose(
        problem.weights()[used].numpy(), expected[used], rtol=1e-9, atol=1e-12
    )
    assert problem.weights()[~used].isnan().all()
    guess = np.array([[0.3, -1.0], [2.0, 0.1], [-0.7, 4.0]])
    np.testing.assert_allclose(
        problem.squares_left(torch.from_numpy(guess)).numpy(),
        left_over(matrix, values, guess),
        rtol=1e-12,
    )


def test_any_chunks_in_any_order():
    matrix, values = data(700, 3)
    expected = np.linalg.lstsq(matrix, values)[0]
    order = np.random.default_rng(1).permutation(700)
    problem = LeastSquares(torch.tensor([1, 6, 8]), 2)
    for rows in np.split(order, [1, 4, 5, 100, 640]):
        problem.add(torch.from_numpy(matrix[rows]), torch.from_numpy(values[rows]))
    np.testing.assert_allclose(problem.weights().numpy(), expected, rtol=1e-11)
    np.testing.assert_allclose(
        problem.squares_left(problem.weights()).numpy(),
        left_over(matrix, values, expected),
        rtol=1e-12,
    )


def test_memory_does_not_grow_with_the_rows():
    problem = LeastSquares(torch.tensor([1, 8]), 1)
    for _ in range(300):
        problem.add(torch.rand(20, 2).double(), torch.rand(20, 1).double())
    held = sum(matrix.shape[0] for matrix in problem._matrix)
    assert held <= ROWS_AT_ONCE + 2
    assert problem.rows().matrix.shape == (2, 2)


def test_merge_of_other_types():
    # Columns H, O and C, O: together H, C, O.
    first, values_1 = data(5, 2, seed=2)
    second, values_2 = data(6, 2, seed=3)
    together = np.zeros((11, 3))
    together[:5, [0, 2]], together[5:, [1, 2]] = first, second
    values = np.concatenate([values_1, values_2])
    problem = problem_of([1, 8], first, values_1)
    other = problem_of([6, 8], second, values_2)
    problem.merge(other)
    assert problem.types.tolist() == [1, 6, 8]
    expected = np.linalg.lstsq(together, values)[0]
    np.testing.assert_allclose(problem.weights().numpy(), expected, rtol=1e-11)
    # The other one is as it was.
    assert other.types.tolist() == [6, 8]
    np.testing.assert_allclose(
        other.weights().numpy(), np.linalg.lstsq(second, values_2)[0], rtol=1e-11
    )


def test_merge_counts_what_both_had_reduced():
    matrix, values = data(2 * ROWS_AT_ONCE + 50, 2, seed=4)
    half = ROWS_AT_ONCE + 25
    problem = problem_of([1, 8], matrix[:half], values[:half])
    problem.rows()
    other = problem_of([1, 8], matrix[half:], values[half:])
    other.rows()
    problem.merge(other)
    weights = np.array([[0.5, -1.0], [2.0, 3.0]])
    np.testing.assert_allclose(
        problem.squares_left(torch.from_numpy(weights)).numpy(),
        left_over(matrix, values, weights),
        rtol=1e-12,
    )


def test_types_without_a_row_have_no_weight():
    problem = problem_of([1, 6, 8], [[2, 0, 1], [0, 0, 1.0]], np.array([[4.0], [3.0]]))
    weights = problem.weights().flatten()
    assert weights[[0, 2]].tolist() == pytest.approx([0.5, 3.0])
    assert weights[1].isnan()
    assert problem.squares_left(problem.weights()).item() < 1e-28


def test_all_the_same_composition():
    # Weights parallel to (2, 1): mean energy -5.2, so -5.2 / 5 * (2, 1).
    values = np.array([[-5.0], [-5.5], [-5.1]])
    problem = problem_of([1, 8], [[2, 1]] * 3, values)
    np.testing.assert_allclose(problem.weights().flatten().numpy(), [-2.08, -1.04], rtol=1e-13)
    # Left: 0.2² + 0.3² + 0.1².
    assert problem.squares_left(problem.weights()).item() == pytest.approx(0.14, rel=1e-13)


def test_selected_columns():
    matrix, values = data(9, 3)
    problem = problem_of([1, 6, 8], matrix, values)
    second = problem.select([1])
    expected = np.linalg.lstsq(matrix, values)[0]
    np.testing.assert_allclose(second.weights().numpy(), expected[:, 1:], rtol=1e-11)
    second.add(torch.ones(1, 3).double(), torch.ones(1, 1).double())
    np.testing.assert_allclose(problem.weights().numpy(), expected, rtol=1e-11)


def test_state_comes_back():
    matrix, values = data(20, 2)
    problem = problem_of([1, 8], matrix, values)
    again = LeastSquares.from_state(problem.state())
    more, more_values = data(7, 2, seed=9)
    for each in (problem, again):
        each.add(torch.from_numpy(more), torch.from_numpy(more_values))
    assert torch.equal(again.types, problem.types)
    torch.testing.assert_close(again.weights(), problem.weights(), rtol=1e-13, atol=0)
    weights = problem.weights()
    torch.testing.assert_close(
        again.squares_left(weights), problem.squares_left(weights), rtol=1e-13, atol=0
    )


def test_nothing():
    problem = LeastSquares(torch.tensor([1, 8]), 2)
    assert problem.weights().isnan().all()
    assert problem.squares_left(problem.weights()).tolist() == [0, 0]
    assert LeastSquares(torch.empty(0, dtype=torch.int64), 1).weights().shape == (0, 1)


def test_small_residuals_of_large_totals():
    rng = np.random.default_rng(6)
    matrix = rng.integers(1, 12, (80, 3)).astype(float)
    noise = 1e-3 * matrix.sum(1) * rng.normal(size=80)
    values = (matrix @ [-16.0, -1030.0, -2040.0] + noise)[:, None]
    problem = LeastSquares(torch.tensor([1, 6, 8]), 1)
    for start in range(0, 80, 9):
        problem.add(
            torch.from_numpy(matrix[start : start + 9]), torch.from_numpy(values[start : start + 9])
        )
    with mpmath.workdps(40):
        exact = mpmath.matrix(matrix.tolist())
        right = mpmath.matrix(values.tolist())
        solution = mpmath.lu_solve(exact.T * exact, exact.T * right)
        residual = right - exact * solution
        expected = float(sum(entry**2 for entry in residual))
        weights = [float(entry) for entry in solution]
    np.testing.assert_allclose(problem.weights().flatten().numpy(), weights, rtol=1e-12)
    assert problem.squares_left(problem.weights()).item() == pytest.approx(expected, rel=1e-8)
