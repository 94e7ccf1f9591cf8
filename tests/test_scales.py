"""The fitted scales of one target."""

import pytest
import torch
from builders import labels, spherical, structure_target

from lightning_scaler.scales import TargetScales
from lightning_scaler.target import TargetLayout

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
    assert again.layout.united(ours.layout) is again.layout


def test_no_baseline_to_begin_with():
    ours = TargetScales(
        TargetLayout.of("e", structure_target([1.0])),
        True,
        torch.tensor([-1]),
        torch.ones(3).double(),
        {(0,): torch.ones(3, 1).double()},
    )
    assert ours.weights == {}
    assert ours.composition_types.numel() == 0
