"""Least-squares problems of several properties with missing values."""

import pytest
import torch
from by_hand import double

from lightning_scaler.statistics.least_squares import make_problems, merge_problems

NAN = float("nan")


def test_properties_without_missing_values_share_a_problem():
    values = [[1.0, NAN, 3.0, 4.0], [5.0, 6.0, 7.0, NAN]]
    problems = make_problems(double([[1], [2]]), double(values)[:, None], torch.tensor([8]))
    assert [properties for properties, _ in problems] == [[0, 2], [1], [3]]
    # (1 * 1 + 2 * 5) / 5 and (3 + 14) / 5; 6 / 2; 4.
    weights = [problem.weights().flatten().tolist() for _, problem in problems]
    assert weights == [pytest.approx([2.2, 3.4]), pytest.approx([3.0]), pytest.approx([4.0])]


def test_components_of_a_sample_share_its_composition():
    # One sample with components 1, 2, 6 and composition 2: 2 w = 3, residuals -2, -1, 3.
    values = double([1, 2, 6]).reshape(1, 3, 1)
    ((_, problem),) = make_problems(double([[2]]), values, torch.tensor([8]))
    assert problem.weights().item() == pytest.approx(1.5)
    assert problem.sum_sq_residuals(problem.weights()).item() == pytest.approx(14)


def test_merge_splits_a_problem_where_the_other_side_does():
    first = make_problems(double([[1]]), double([[[1.0, 2.0, 3.0]]]), torch.tensor([8]))
    second = make_problems(double([[1]]), double([[[5.0, NAN, 7.0]]]), torch.tensor([8]))
    merged = merge_problems(first, second)
    assert [properties for properties, _ in merged] == [[0, 2], [1]]
    assert merged[0][1].weights().flatten().tolist() == pytest.approx([3.0, 5.0])
    assert merged[1][1].weights().item() == pytest.approx(2.0)
    # Neither side is changed.
    assert first[0][1].weights().flatten().tolist() == pytest.approx([1.0, 2.0, 3.0])
    assert second[0][1].weights().flatten().tolist() == pytest.approx([5.0, 7.0])


def test_problems_do_not_change_with_the_tensor_of_the_caller():
    values = double([[[1.0, 2.0]]])
    ((_, problem),) = make_problems(double([[1]]), values, torch.tensor([8]))
    values.fill_(50.0)
    assert problem.weights().flatten().tolist() == pytest.approx([1.0, 2.0])
