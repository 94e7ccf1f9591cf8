"""Lists of atomic types."""

import torch

from lightning_scaler.batches import find_types


def test_types_are_found_in_a_sorted_list():
    index, known = find_types(torch.tensor([8, 1, 99, 0, 6]), torch.tensor([1, 6, 8]))
    assert known.tolist() == [True, True, False, False, True]
    assert index[known].tolist() == [2, 0, 1]
    assert not find_types(torch.tensor([1]), torch.empty(0, dtype=torch.int64))[1].any()
