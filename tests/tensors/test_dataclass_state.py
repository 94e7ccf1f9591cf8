"""States of dataclasses and named tuples."""

from dataclasses import dataclass, field
from typing import Annotated, Literal, NamedTuple

import pytest
import torch

from lightning_scaler.tensors import InvalidStateError, TensorCheck, from_state, to_state


class Pair(NamedTuple):
    first: torch.Tensor
    second: float


class OwnState:
    def __init__(self, number):
        self.number = number

    def state(self):
        return {"half": self.number / 2}

    @classmethod
    def from_state(cls, state):
        return cls(2 * state["half"])


@dataclass
class Everything:
    tensor: torch.Tensor
    text: str
    pair: Pair
    optional: Pair | None
    missing: Pair | None
    by_key: dict[tuple[int, int], Pair]
    by_name: dict[str, list[int]]
    grouped: list[tuple[list[int], OwnState]]
    names: set[str]
    seen: set[tuple[str, str]]
    sizes: tuple[int, ...] = ()
    number: int | float = 1
    derived: int = field(default=7, init=False)


def everything():
    pair = Pair(torch.tensor([0.1, float("nan")]).double(), 0.1)
    return Everything(
        tensor=torch.tensor([3, 1]),
        text="a",
        pair=pair,
        optional=pair,
        missing=None,
        by_key={(0, 1): pair, (2, 1): pair},
        by_name={"b": [1, 2], "c": []},
        grouped=[([0, 2], OwnState(3.0))],
        names={"y", "x"},
        seen={("b", "c")},
        sizes=(2, 3),
        number=2.5,
    )


def test_state_is_restored(tmp_path):
    value = everything()
    torch.save(to_state(value), tmp_path / "state.pt")
    again = from_state(Everything, torch.load(tmp_path / "state.pt", weights_only=True))
    assert type(again) is Everything
    assert torch.equal(again.tensor, value.tensor)
    assert type(again.pair) is type(again.optional) is type(again.by_key[2, 1]) is Pair
    for pair in (again.pair, again.optional, *again.by_key.values()):
        assert torch.equal(pair.first.view(torch.int64), value.pair.first.view(torch.int64))
        assert pair.second == 0.1
    assert again.missing is None
    assert list(again.by_key) == [(0, 1), (2, 1)]
    (((properties, own),),) = (again.grouped,)
    assert properties == [0, 2]
    assert own.number == 3.0
    for name in ("text", "by_name", "names", "seen", "sizes", "number"):
        assert getattr(again, name) == getattr(value, name), name


def test_state_holds_plain_objects_in_a_fixed_order():
    state = to_state(everything())
    assert state["names"] == ["x", "y"]
    assert state["by_key"][0][0] == [0, 1]
    assert state["grouped"] == [[[0, 2], {"half": 1.5}]]
    assert "derived" not in state


def test_unknown_and_missing_parts_are_refused():
    state = to_state(everything())
    with pytest.raises(InvalidStateError, match="unknown fields: other"):
        from_state(Everything, {**state, "other": 1})
    del state["text"]
    with pytest.raises(InvalidStateError, match="missing fields: text"):
        from_state(Everything, state)


def test_empty_dict_with_any_keys():
    assert from_state(dict[int, str], to_state({})) == {}
    assert from_state(dict[str, Pair], to_state({})) == {}


@dataclass
class Checked:
    sums: Annotated[torch.Tensor, TensorCheck("n_types")]
    label: Literal["a", "b"] = "a"
    numbers: dict[int, float] = field(default_factory=dict)


def test_a_missing_field_takes_its_default_in_states_of_earlier_versions_alone():
    state = {"sums": torch.ones(2).double(), "numbers": {}}
    assert from_state(Checked, state, complete=False).label == "a"
    with pytest.raises(InvalidStateError, match="missing fields: label"):
        from_state(Checked, state)
    with pytest.raises(InvalidStateError, match="missing fields: sums"):
        from_state(Checked, {"label": "a"}, complete=False)


@pytest.mark.parametrize(
    ("field_name", "value", "message"),
    [
        ("sums", torch.ones(2), "sums: expected torch.float64, got torch.float32"),
        ("sums", torch.ones(2, 2).double(), r"sums: expected the shape \(n_types\), got \(2, 2\)"),
        ("sums", torch.tensor([1, torch.nan]).double(), r"sums: expected finite .* \[nan\]"),
        ("sums", torch.tensor([1, -torch.inf]).double(), r"sums: expected finite .* \[-inf\]"),
        ("sums", [1.0], r"sums: expected a Tensor, got \[1.0\]"),
        ("label", "c", r"label: expected one of \['a', 'b'\], got 'c'"),
        ("label", torch.ones(1), r"label: expected one of \['a', 'b'\], got tensor"),
        ("numbers", [1], "numbers: expected a key and a value, got 1"),
        ("numbers", 3, "numbers: expected a dict, got 3"),
        ("numbers", {1: "x"}, "numbers: 1: expected a finite number, got 'x'"),
        ("numbers", {1: float("nan")}, "numbers: 1: expected a finite number, got nan"),
        ("numbers", {1.5: 1.0}, "numbers: expected an integer, got 1.5"),
        ("numbers", {True: 1.0}, "numbers: expected an integer, got True"),
        ("numbers", [[1, 1.0], [1, 2.0]], "numbers: expected no key twice"),
    ],
)
def test_values_of_the_wrong_kind_are_refused_with_their_field(field_name, value, message):
    state = {**to_state(Checked(torch.ones(2).double())), field_name: value}
    with pytest.raises(InvalidStateError, match=message):
        from_state(Checked, state)


@pytest.mark.parametrize("state", [None, 1, "text", [], torch.ones(2)])
def test_a_state_that_is_no_dict_is_refused(state):
    with pytest.raises(InvalidStateError, match="expected a dict of its fields, got"):
        from_state(Checked, state)
