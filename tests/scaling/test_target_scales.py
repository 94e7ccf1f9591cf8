"""The fitted scales of one target."""

import copy
import pickle
from dataclasses import FrozenInstanceError, replace

import pytest
import torch
from builders import atom_samples, labels, spherical, structure_target

from lightning_scaler.scaling import TargetScales
from lightning_scaler.scaling.scaler_state import read_target_scales, write_target_scales
from lightning_scaler.tensors import TargetLayout

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


def tables(ours, kind="full"):
    found = ours.tables(kind, torch.device("cpu"))
    return {key: table.nan_to_num(-1).tolist() for key, table in found.items()}


def has_tables(ours, *types):
    return ours.has_tables_for({*types})


def per_atom(**changes):
    """As above, for a per-atom target that has a fixed scale for carbon too."""
    ours = scales()
    tensor = spherical(
        {0: torch.ones(2, 1, 2), 1: torch.ones(2, 3, 1)}, atom_samples(2), dtype=torch.float64
    )
    carbon = {
        "layout": TargetLayout.of("t", tensor),
        "fixed_only_types": torch.tensor([6]),
        "per_target": torch.cat([ours.per_target, torch.tensor([7.0]).double()]),
        "per_property": {
            key: torch.cat([table, torch.full_like(table[:1], 10)])
            for key, table in ours.per_property.items()
        },
    }
    return replace(ours, **carbon | changes)


def test_tables_by_type():
    assert tables(scales()) == {(0, 1): [[2, 4]], (1, 1): [14]}
    assert has_tables(scales(), 92)
    ours = per_atom()
    assert has_tables(ours, 1, 6)
    found = ours.tables("full", torch.device("cpu"))
    types = torch.tensor([1, 6, 8])
    assert found[0, 1][types].tolist() == [[2, 4], [70, 70], [9, 12]]
    assert found[1, 1][types].tolist() == [14, 70, 24]
    assert found[0, 1].shape == (9, 2)
    assert found[0, 1][7].isnan().all()
    assert ours.tables("per_target", torch.device("cpu"))[1, 1][types].tolist() == [2, 7, 3]


def test_types_that_no_table_has():
    assert not has_tables(per_atom(), 1, 92)
    assert not has_tables(per_atom(), 0)
    large = per_atom(types=torch.tensor([1, 4096]), fixed_only_types=torch.tensor([10**9]))
    assert not has_tables(large, 4096)
    assert not has_tables(large, 10**9)
    assert has_tables(large, 1)
    assert has_tables(large)
    assert len(tables(large)[1, 1]) == 2


def test_changed_copies_have_tables_of_their_own():
    ours = per_atom()
    before = tables(ours)
    assert tables(ours) == before
    assert before[1, 1][1] == 14
    twice = 2 * ours.per_target
    assert tables(replace(ours, per_target=twice))[1, 1][1] == 28
    first = torch.cat([torch.tensor([20.0]).double(), ours.per_target[1:]])
    assert tables(replace(ours, per_target=first))[1, 1][1] == 140
    per_property = ours.per_property | {(1, 1): 2 * ours.per_property[1, 1]}
    assert tables(replace(ours, per_property=per_property))[1, 1][1] == 28
    assert tables(replace(ours, per_target=torch.ones_like(twice)))[1, 1][1] == 7
    other = replace(ours, types=torch.tensor([1, 7]))
    assert not has_tables(other, 1, 8)
    assert has_tables(other, 1, 7)
    assert tables(ours) == before


def test_attributes_cannot_be_replaced():
    with pytest.raises(FrozenInstanceError, match="per_target"):
        scales().per_target = torch.ones(4).double()


def test_scales_can_be_compared_and_hashed_by_identity():
    ours, other = scales(), scales()
    assert ours in [other, ours]
    assert ours != other
    assert len({ours, other}) == 2


def test_tables_are_part_of_no_copy_or_state():
    ours = per_atom()
    size, state = len(pickle.dumps(ours)), set(write_target_scales(ours))
    before = tables(ours)
    assert len(pickle.dumps(ours)) == size
    for other in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours)), replace(ours)):
        assert tables(other) == before
        changed = replace(other, per_target=2 * other.per_target)
        assert tables(changed)[1, 1][1] == 28
    assert tables(ours) == before
    assert set(write_target_scales(ours)) == set(write_target_scales(per_atom())) == state
    assert not any("tables" in name for name in state)


def test_tables_made_in_inference_mode_serve_autograd():
    ours = scales()
    with torch.inference_mode():
        ours.tables("full", torch.device("cpu"))
    weight = torch.ones(1, requires_grad=True, dtype=torch.float64)
    (weight / ours.tables("full", torch.device("cpu"))[1, 1]).sum().backward()
    assert weight.grad.tolist() == [1 / 14]


def test_state_comes_back(tmp_path):
    ours = replace(
        scales(),
        layout=replace(scales().layout, sample_kind="atom"),
        fixed={1: 2.0, 8: 3.0},
        fixed_weights={1: -0.5},
        baseline_types=torch.tensor([1, 8]),
        weights={(0, 1): torch.ones(2, 2).double()},
    )
    torch.save(write_target_scales(ours), tmp_path / "scales.pt")
    again = read_target_scales("t", torch.load(tmp_path / "scales.pt", weights_only=True))
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
