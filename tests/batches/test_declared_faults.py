"""What batches, outputs and declarations of users get wrong, or get right in unusual ways."""

import numpy as np
import torch
from torch_geometric.data import Data

from lightning_scaler.batches.addresses import find, replace


def test_an_index_counted_from_the_end_is_replaced():
    for holder in ((1, 2, 3), [1, 2, 3]):
        assert find(holder, (-1,)) == 3
        assert replace(holder, (-1,), 5) == type(holder)([1, 2, 5])


def test_a_column_of_an_array_is_replaced_in_a_tensor():
    holder = {"y": np.ones((2, 2))}
    new = replace(holder, ("y", 1), torch.tensor([3.0, 4.0]))
    assert new["y"].tolist() == [[1.0, 3.0], [1.0, 4.0]]
    assert holder["y"].tolist() == [[1.0, 1.0], [1.0, 1.0]]


def test_a_tensor_of_a_graph_may_have_the_name_of_a_method():
    graph = Data(size=torch.ones(2))
    new = replace(graph, ("size",), torch.zeros(2))
    assert find(new, ("size",)).tolist() == [0.0, 0.0]
    assert find(graph, ("size",)).tolist() == [1.0, 1.0]
    assert find(graph, ("clone",)) is None
