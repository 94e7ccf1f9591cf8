"""The fitted scales of one target."""

import copy
import pickle
from dataclasses import replace

import pytest
import torch
from builders import atom_samples, labels, spherical, structure_target

from lightning_scaler.scaling.target_scales import TargetScales
from lightning_scaler.tensors.layout import TargetLayout

TWO_BLOCKS = spherical({0: torch.ones(1, 1, 2), 1: torch.ones(1, 3, 1)}, labels("system", [0]))


def scales():
    # Types H and O, then the RMS over all types, then ones.
    return TargetScales(
        layout=TargetLayout.of("t", TWO_BLOCKS),
        extensive=False,
        types=torch.tensor([1, 8]),
        per_target=torch.tensor([2.0, 3.0, 5.0, 1.0]).double(),
        per_property={
            (0, 1): torch.tensor([[1, 2], [3, 4], [5, 6], [1, 1]]).double(),
            (1, 1): torch.tensor([[7], [8], [9], [1]]).double(),
        },
    )


def test_full_is_the_product_of_both():
    assert scales().values("full", (0, 1)).tolist() == [[2, 4], [9, 12], [25, 30], [1, 1]]
    assert scales().values("per_target", (0, 1))[:2].tolist() == [[2, 2], [3, 3]]
    assert scales().values("per_property", (1, 1))[:2].tolist() == [[7], [8]]


def test_shown_as_tensormaps_without_the_stand_ins():
    shown = scales().as_tensormap("full", torch.device("cpu"))
    assert shown.keys == TWO_BLOCKS.keys
    for block, like in zip(shown.blocks(), TWO_BLOCKS.blocks(), strict=True):
        assert block.samples == labels("atomic_type", [1, 8])
        assert block.components == []
        assert block.properties == like.properties
        assert block.values.dtype == torch.float64
    assert shown.block(1).values.tolist() == [[14], [24]]


def test_what_is_shown_is_a_copy():
    ours = scales()
    ours.as_tensormap("per_property", torch.device("cpu")).block(0).values.fill_(100)
    assert ours.per_property[0, 1][0].tolist() == [1, 2]


def test_rows_of_types():
    types = torch.tensor([8, 1, 8])
    for unseen in ("error", "pooled", "identity"):
        assert scales().rows(types, unseen).tolist() == [1, 0, 1]
    other = torch.tensor([8, 6, 1, 92])
    assert scales().rows(other, "pooled").tolist() == [1, 2, 0, 2]
    assert scales().rows(other, "identity").tolist() == [1, 3, 0, 3]
    with pytest.raises(
        ValueError, match=r"target 't': no scale for the atomic types \[6, 92\].*\[1, 8"
    ):
        scales().rows(other, "error")


def by_type(ours, kinds=(1, 8), which="full"):
    tables = ours.by_type(which, kinds, torch.device("cpu"))
    return (
        None
        if tables is None
        else {key: table.nan_to_num(-1).tolist() for key, table in tables.items()}
    )


def per_atom():
    """As above, for a target of atoms that has a fixed scale for carbon too."""
    ours = scales()
    tensor = spherical(
        {0: torch.ones(2, 1, 2), 1: torch.ones(2, 3, 1)}, atom_samples(2), dtype=torch.float64
    )
    ours.layout, ours.fixed_only_types = TargetLayout.of("t", tensor), torch.tensor([6])
    ours.per_target = torch.cat([ours.per_target, torch.tensor([7.0]).double()])
    ours.per_property = {
        key: torch.cat([table, torch.full_like(table[:1], 10)])
        for key, table in ours.per_property.items()
    }
    return ours


def test_tables_by_type():
    assert by_type(scales()) == {(0, 1): [[2, 4]], (1, 1): [14]}
    ours = per_atom()
    found = ours.by_type("full", [1, 6], torch.device("cpu"))
    types = torch.tensor([1, 6, 8])
    assert found[0, 1][types].tolist() == [[2, 4], [70, 70], [9, 12]]
    assert found[1, 1][types].tolist() == [14, 70, 24]
    assert found[0, 1].shape == (9, 2)
    assert found[0, 1][7].isnan().all()
    assert ours.by_type("per_target", [1], torch.device("cpu"))[1, 1][types].tolist() == [2, 7, 3]


def test_types_that_no_table_has():
    assert by_type(per_atom(), [1, 92]) is None
    assert by_type(per_atom(), [0]) is None
    ours = per_atom()
    ours.types, ours.fixed_only_types = torch.tensor([1, 4096]), torch.tensor([10**9])
    assert by_type(ours, [4096]) is None
    assert by_type(ours, [10**9]) is None
    assert by_type(ours, [1]) is not None


def test_tables_follow_the_scales():
    ours = per_atom()
    before = by_type(ours)
    assert by_type(ours) == before
    ours.per_target[0] = 20.0
    assert by_type(ours)[1, 1][1] == 140
    ours.per_property[1, 1] = 2 * ours.per_property[1, 1]
    assert by_type(ours)[1, 1][1] == 280
    ours.per_target = torch.ones_like(ours.per_target)
    assert by_type(ours)[1, 1][1] == 14
    ours.types = torch.tensor([1, 7])
    assert by_type(ours) is None


def test_copies_have_tables_of_their_own():
    ours = per_atom()
    before, state = by_type(ours), set(ours.state())
    for other in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours)), replace(ours)):
        other.per_target = 2 * other.per_target
        assert by_type(other)[1, 1][1] == 28
    assert by_type(ours) == before
    assert set(ours.state()) == set(per_atom().state()) == state
    assert "_tables" not in state


def test_tables_made_in_inference_mode_serve_autograd():
    ours = scales()
    with torch.inference_mode():
        ours.by_type("full", [], torch.device("cpu"))
    weight = torch.ones(1, requires_grad=True, dtype=torch.float64)
    (weight / ours.by_type("full", [], torch.device("cpu"))[1, 1]).sum().backward()
    assert weight.grad.tolist() == [1 / 14]


def test_state_comes_back(tmp_path):
    ours = scales()
    ours.fixed, ours.fixed_weights = {1: 2.0, 8: 3.0}, {1: -0.5}
    ours.weights = {(0, 1): torch.ones(2, 2).double()}
    torch.save(ours.state(), tmp_path / "scales.pt")
    again = TargetScales.from_state("t", torch.load(tmp_path / "scales.pt", weights_only=True))
    assert torch.equal(again.per_target, ours.per_target)
    assert list(again.per_property) == [(0, 1), (1, 1)]
    assert torch.equal(again.per_property[1, 1], ours.per_property[1, 1])
    assert torch.equal(again.weights[0, 1], ours.weights[0, 1])
    assert (again.fixed, again.fixed_weights) == ({1: 2.0, 8: 3.0}, {1: -0.5})
    assert again.layout.union(ours.layout) is again.layout


def test_no_baseline_to_begin_with():
    ours = TargetScales(
        TargetLayout.of("e", structure_target([1.0])),
        True,
        torch.tensor([-1]),
        torch.ones(3).double(),
        {(0,): torch.ones(3, 1).double()},
    )
    assert ours.weights == {}
    assert ours.baseline_types.numel() == 0
