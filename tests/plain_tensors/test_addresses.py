"""Addresses of tensors in batches and outputs: found, and replaced in a copy."""

from collections import namedtuple
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch_geometric.data import Data

from lightning_scaler.plain_tensors.addresses import find, names_in, parse_address, replace

Pair = namedtuple("Pair", ["inputs", "labels"])


@dataclass(frozen=True)
class Output:
    energy: torch.Tensor
    extra: dict


TWO = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
HOLDERS = {
    "dict": ({"energy": TWO}, "energy", TWO),
    "nested": ({"a": {"energy": TWO}}, ["a", "energy"], TWO),
    "tuple": ((None, {"energy": TWO}), [1, "energy"], TWO),
    "list": ([0, TWO], 1, TWO),
    "named tuple": (Pair(0, TWO), "labels", TWO),
    "named tuple by index": (Pair(0, TWO), 1, TWO),
    "frozen dataclass": (Output(TWO, {}), "energy", TWO),
    "in a dataclass": (Output(None, {"q": TWO}), ["extra", "q"], TWO),
    "PyTorch Geometric": (Data(energy=TWO), "energy", TWO),
    "column": ({"y": TWO}, ["y", 1], TWO[:, 1]),
    "the holder itself": (TWO, [], TWO),
}


@pytest.mark.parametrize(("holder", "address", "value"), HOLDERS.values(), ids=HOLDERS)
def test_a_value_is_found_and_replaced_in_a_copy(holder, address, value):
    path = parse_address("tensor", address)
    torch.testing.assert_close(find(holder, path), value, rtol=0, atol=0)
    new = replace(holder, path, value + 10)
    torch.testing.assert_close(find(new, path), value + 10, rtol=0, atol=0)
    torch.testing.assert_close(find(holder, path), value, rtol=0, atol=0)
    assert type(new) is type(holder)


def test_other_columns_and_members_stay_in_the_wider_dtype():
    holder = {"y": TWO, "z": 1}
    new = replace(holder, ("y", 1), torch.tensor([0.1, 0.2], dtype=torch.float64))
    assert new["z"] == 1
    assert new["y"].dtype == torch.float64
    assert new["y"].tolist() == [[1.0, 0.1], [3.0, 0.2]]


def test_a_column_can_be_replaced_under_autograd():
    weight = torch.tensor(2.0, requires_grad=True)
    new = replace({"y": TWO}, ("y", 1), weight * TWO[:, 1])
    new["y"].sum().backward()
    assert weight.grad.item() == 6.0


MISSING = {
    "key": ({"energy": TWO}, "enrgy"),
    "attribute": (Data(energy=TWO), "forces"),
    "None": (Data(), "y"),
    "index": ((1, 2), 2),
    "method": (Data(x=TWO), "size"),
    "column of a vector": ({"y": torch.ones(3)}, ["y", 0]),
    "column out of range": ({"y": TWO}, ["y", 2]),
    "attribute of a tensor": ({"y": TWO}, ["y", "T"]),
    "column of an array": ({"y": np.ones(3)}, ["y", 0]),
}


@pytest.mark.parametrize(("holder", "address"), MISSING.values(), ids=MISSING)
def test_nothing_is_found_where_there_is_nothing(holder, address):
    assert find(holder, parse_address("tensor", address)) is None


@pytest.mark.parametrize("address", [None, True, 1.5, {"a": 1}, ["a", None], [["a"]]])
def test_other_addresses_are_refused(address):
    with pytest.raises(TypeError, match=r"tensor: expected the address of a tensor: a name"):
        parse_address("tensor", address)


def test_names_of_members_are_listed():
    assert names_in({"b": 1, "a": 2}) == ["a", "b"]
    assert names_in(Pair(1, 2)) == ["inputs", "labels"]
    assert names_in(Output(TWO, {})) == ["energy", "extra"]
    assert names_in(Data(x=TWO, energy=TWO)) == ["energy", "x"]
    assert names_in(TWO) == []
