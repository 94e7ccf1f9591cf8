"""Copies of what was made in inference mode, anywhere in a batch."""

from collections import OrderedDict, namedtuple
from dataclasses import dataclass

import pytest
import torch
from builders import structure_target, system

from lightning_scaler.batches import clone_inference_tensors

Pair = namedtuple("Pair", ["first", "second"])


@dataclass(frozen=True)
class Frozen:
    positions: object
    name: str = "frozen"


class WithClone:
    """As the batches of graph libraries: tensors in a dict, and a method that copies all."""

    def __init__(self, positions):
        self.store = {"positions": positions}
        self.n_clones = 0

    @property
    def positions(self):
        return self.store["positions"]

    def clone(self):
        copied = type(self)(self.positions.clone())
        copied.n_clones = self.n_clones + 1
        return copied


class Slots:
    __slots__ = ("_positions",)

    def __init__(self, positions):
        self._positions = positions

    @property
    def positions(self):
        return self._positions


class Cyclic:
    def __init__(self, positions):
        self.positions = positions
        self.itself = self


class Own(dict):
    pass


def attribute(part):
    return part.positions


NESTINGS = {
    "tensor": (lambda t: t, lambda b: b),
    "dict": (lambda t: {"a": {"b": t}, "c": 1}, lambda b: b["a"]["b"]),
    "dict of its own class": (lambda t: Own(a=t), lambda b: b["a"]),
    "ordered dict": (lambda t: OrderedDict(a=1, b=t), lambda b: b["b"]),
    "list in a tuple": (lambda t: ([1, t], "a"), lambda b: b[0][1]),
    "named tuple": (lambda t: Pair("a", Pair(t, None)), lambda b: b.second.first),
    "dataclass": (Frozen, attribute),
    "object": (Cyclic, attribute),
    "object with slots": (Slots, attribute),
    "object with clone": (WithClone, attribute),
    "objects in a list": (lambda t: {"a": [WithClone(t)]}, lambda b: b["a"][0].positions),
    "object in an object": (lambda t: Frozen(WithClone(t)), lambda b: b.positions.positions),
}


@pytest.mark.parametrize(("make", "find"), NESTINGS.values(), ids=NESTINGS)
def test_inference_tensors_are_cloned_wherever_they_are(make, find):
    with torch.inference_mode():
        batch = make(torch.tensor([1.0, 2.0]))
    cloned = clone_inference_tensors(batch)
    assert type(cloned) is type(batch)
    positions = find(cloned)
    assert positions.tolist() == [1, 2]
    assert not positions.is_inference()
    positions.requires_grad_().sum().backward()
    # The loader may keep the batch.
    assert find(batch).is_inference()


@pytest.mark.parametrize("make", [make for make, _ in NESTINGS.values()], ids=NESTINGS)
def test_batches_without_inference_tensors_are_the_same_objects(make):
    batch = make(torch.tensor([1.0, 2.0]))
    assert clone_inference_tensors(batch) is batch


def test_systems_and_tensormaps_inside_objects_are_copied():
    with torch.inference_mode():
        batch = {"a": Frozen([system(8, 1), system(6)]), "b": (structure_target([1.0]),)}
    normal = system(1)
    cloned = clone_inference_tensors({**batch, "c": [normal]})
    assert not any(s.positions.is_inference() for s in cloned["a"].positions)
    assert not cloned["b"][0].block().values.is_inference()
    assert cloned["c"][0] is normal


def test_blocks_and_labels_are_copied():
    with torch.inference_mode():
        block = structure_target([1.0]).block().copy()
        batch = [block, block.samples]
    copied, samples = clone_inference_tensors(batch)
    assert not copied.values.is_inference()
    assert not samples.values.is_inference()
    assert samples == block.samples


def test_modules_in_a_batch_are_left_alone():
    with torch.inference_mode():
        layer = torch.nn.Linear(1, 1)
    assert clone_inference_tensors([layer])[0] is layer


def test_systems_of_which_only_the_positions_were_made_in_inference_mode_are_copied():
    """As ``system.to(dtype)`` gives them, which keeps the types."""
    one = system(1, 8)
    with torch.inference_mode():
        moved = one.to(torch.float32)
    assert not moved.types.is_inference()
    assert moved.positions.is_inference()
    for copied in (clone_inference_tensors([moved])[0], clone_inference_tensors(moved)):
        assert not copied.positions.is_inference()
        assert copied.positions.tolist() == moved.positions.tolist()
