"""Tensors whose layouts are known."""

import pytest
import torch
from builders import (
    atom_samples,
    cartesian,
    labels,
    layout_of,
    spherical,
    structure_target,
    with_nested_gradient,
)
from other_device import META, Readings

from lightning_scaler.tensors import CPU, find_known_layouts, match_layouts


def test_a_layout_holds_for_tensors_with_its_blocks():
    samples = labels("system", [0, 1])
    scalar, matrix = torch.ones(2, 1, 1), torch.ones(2, 5, 3)
    tensor = spherical({0: scalar, 2: matrix}, samples)
    known = layout_of(tensor)
    same = {
        "same": tensor,
        "no rows": spherical({0: scalar[:0], 2: matrix[:0]}, labels("system", [])),
    }
    others = {
        "other order": spherical({2: matrix, 0: scalar}, samples),
        "no block": spherical({0: scalar}, samples),
    }
    tensors = {**same, **others, "unknown": tensor}
    found = match_layouts(dict.fromkeys([*same, *others], known), tensors, CPU)
    assert {name for name, layout in found.items() if layout is known} == {"same", "no rows"}
    assert {name: list(layout.blocks) for name, layout in found.items()} == {
        "same": [(0, 1), (2, 1)],
        "no rows": [(0, 1), (2, 1)],
        "other order": [(2, 1), (0, 1)],
        "no block": [(0, 1)],
        "unknown": [(0, 1), (2, 1)],
    }


@pytest.mark.parametrize(
    ("values", "samples", "dtype", "message"),
    [
        ({2: torch.ones(2, 5, 2)}, labels("system", [0, 1]), torch.float64, "expected properties"),
        ({2: torch.ones(2, 5, 3)}, atom_samples(2), torch.float64, "expected per-structure"),
        ({2: torch.ones(2, 5, 3)}, labels("system", [0, 1]), torch.int32, "expected real floating"),
    ],
    ids=["properties", "samples", "integers"],
)
def test_tensors_that_disagree_with_a_known_layout_are_refused(values, samples, dtype, message):
    known = layout_of(spherical({2: torch.ones(2, 5, 3)}, labels("system", [0, 1])))
    with pytest.raises(ValueError, match=rf"target 't'.*{message}"):
        match_layouts({"t": known}, {"t": spherical(values, samples, dtype=dtype)}, CPU)


def test_gradients_that_are_not_in_a_known_layout_are_read():
    gradient = {"strain": torch.ones(1, 3, 3)}
    plain, with_strain = structure_target([1.0]), structure_target([1.0], gradient=gradient)
    known = {"e": layout_of(plain)}
    assert match_layouts(known, {"e": plain}, CPU)["e"] is known["e"]
    assert match_layouts(known, {"e": with_strain}, CPU)["e"].gradients == ("strain",)
    known = {"e": layout_of(with_strain)}
    assert match_layouts(known, {"e": plain}, CPU)["e"] is known["e"]


def test_gradients_of_gradients_are_refused_after_batches_without_them():
    strain = structure_target([1.0], gradient={"strain": torch.ones(1, 3, 3)})
    known = {"energy": layout_of(strain, "energy")}
    message = r"target 'energy', block \(_=0\).*'strain'.*\['positions'\].*gradients of gradients"
    with pytest.raises(NotImplementedError, match=message):
        match_layouts(known, {"energy": with_nested_gradient([1.0])}, CPU)


@pytest.mark.parametrize("different", [None, *range(5)])
def test_layouts_on_a_device_are_compared_there_and_read_once(different):
    """Keys and properties of an energy; keys, properties and components of a dipole."""
    tensors = {
        "energy": structure_target([1.0]),
        "dipole": structure_target([[[1.0], [2.0], [3.0]]], components=cartesian()),
    }
    known = {name: layout_of(tensor, name) for name, tensor in tensors.items()}
    moved = {name: tensor.to(device=META) for name, tensor in tensors.items()}
    with Readings([i == different for i in range(5)]) as readings:
        found = find_known_layouts(known, moved, META)
    assert ("energy" in found) == (different not in (0, 1))
    assert ("dipole" in found) == (different not in (2, 3, 4))
    assert readings.n_read == 1
