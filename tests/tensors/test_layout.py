"""The layout of a target."""

import io

import pytest
import torch
from builders import (
    atom_samples,
    atom_target,
    atomic_basis,
    block,
    cartesian,
    labels,
    layout_of,
    pair_target,
    single,
    spherical,
    structure_target,
    with_nested_gradient,
)
from metatensor.torch import TensorMap

from lightning_scaler.tensors import TargetLayout

ONE = labels("system", [0])


def test_sample_kinds():
    assert layout_of(structure_target([1.0])).sample_kind == "structure"
    assert layout_of(atom_target([1.0], atom_samples(1))).sample_kind == "atom"
    assert layout_of(pair_target([1.0], [[0, 0, 0, 1, 0, 0]])).sample_kind == "pair"


@pytest.mark.parametrize(
    "names", [["atom", "system"], ["structure"], ["system", "center"], ["system", "atom", "n"]]
)
def test_unknown_sample_names_are_refused(names):
    rows = labels(names, [list(range(len(names)))])
    with pytest.raises(ValueError, match=r"target 't': expected samples named .*, got \['"):
        layout_of(single(block([1.0], rows)))


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
def test_values_must_be_real_floats(dtype):
    with pytest.raises(ValueError, match="target 't': expected real floating point values, got"):
        layout_of(structure_target([1], dtype=dtype))


def test_gradients_of_gradients_are_refused():
    strain = structure_target([1.0], gradient={"strain": torch.ones(1, 3, 3)})
    assert layout_of(strain).gradients == ("strain",)
    message = r"target 'energy', block \(_=0\).*'strain'.*\['positions'\].*gradients of gradients"
    with pytest.raises(NotImplementedError, match=message):
        layout_of(with_nested_gradient([1.0]), "energy")


def test_single_property_is_one_block_with_one_property():
    assert layout_of(structure_target([1.0])).single_property
    assert layout_of(
        atom_target(torch.ones(1, 3), atom_samples(1), "f", cartesian())
    ).single_property
    assert not layout_of(structure_target([[1.0, 2.0]])).single_property
    two_blocks = spherical({0: torch.ones(1, 1, 1), 2: torch.ones(1, 5, 1)}, ONE)
    assert not layout_of(two_blocks).single_property


@pytest.mark.parametrize(
    ("key", "expected"),
    [((0, 1), "scalar"), ((0, -1), None), ((1, 1), None), ((2, 1), None)],
)
def test_invariant_part_of_spherical_blocks(key, expected):
    layout = layout_of(spherical({key: torch.ones(1, 2 * key[0] + 1, 2)}, ONE))
    assert layout.invariance(key) == expected


@pytest.mark.parametrize(("axes", "expected"), [(0, "scalar"), (1, None), (2, None)])
@pytest.mark.parametrize("rows", [ONE, atom_samples(1)], ids=["structure", "atom"])
def test_invariant_part_of_cartesian_blocks(axes, expected, rows):
    tensor = single(block(torch.ones(1, *[3] * axes, 1), rows, cartesian(axes) if axes else ()))
    assert layout_of(tensor).invariance((0,)) == expected


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ((1, 1, 1, 1), "trace"),
        ((2, 2, 1, 1), "trace"),
        ((0, 0, 1, 1), "trace"),
        ((1, 2, 1, 1), None),
        ((1, 1, -1, 1), None),
        ((1, 1, 1, -1), None),
        ((1, 1, -1, -1), None),
    ],
)
def test_invariant_part_of_rank_two_blocks(key, expected):
    first, second = key[:2]
    axes = [
        labels(f"o3_mu_{i}", range(-o3_lambda, o3_lambda + 1))
        for i, o3_lambda in enumerate((first, second), start=1)
    ]
    values = torch.ones(1, 2 * first + 1, 2 * second + 1, 1)
    names = ["o3_lambda_1", "o3_lambda_2", "o3_sigma_1", "o3_sigma_2"]
    tensor = TensorMap(labels(names, [list(key)]), [block(values, atom_samples(1), axes)])
    assert layout_of(tensor).invariance(key) == expected


def test_atom_pairs_have_no_invariant_part():
    assert layout_of(pair_target([1.0], [[0, 0, 0, 1, 0, 0]])).invariance((0,)) is None


def test_keys_of_another_meaning_have_no_invariant_part():
    tensor = TensorMap(labels("spin", [0]), [block([1.0], ONE)])
    assert layout_of(tensor).invariance((0,)) is None


def test_union_holds_the_blocks_of_both():
    zero = spherical({0: torch.ones(1, 1, 2)}, ONE)
    two = spherical({2: torch.ones(1, 5, 1)}, ONE)
    both = spherical({2: torch.ones(1, 5, 1), 0: torch.ones(1, 1, 2)}, ONE)
    union = layout_of(zero).union(layout_of(two))
    assert list(union.blocks) == [(0, 1), (2, 1)]
    assert union.keys().values.tolist() == [[0, 1], [2, 1]]
    assert not union.single_property
    assert list(union.union(layout_of(both)).blocks) == [(0, 1), (2, 1)]
    # The first one is unchanged.
    assert list(layout_of(zero).blocks) == [(0, 1)]


def test_union_of_other_properties_is_refused():
    with pytest.raises(
        ValueError, match=r"block \(_=0\): expected properties energy=\[0\], .* got"
    ):
        layout_of(structure_target([1.0])).union(layout_of(structure_target([[1.0, 2.0]])))
    with pytest.raises(ValueError, match=r"properties energy=\[0\], as in earlier .* gap=\[0\]$"):
        layout_of(structure_target([1.0])).union(layout_of(structure_target([1.0], name="gap")))


def test_union_of_other_components_is_refused():
    vector = structure_target(torch.ones(1, 3), components=cartesian())
    matrix = structure_target(torch.ones(1, 3, 3), components=cartesian(2), name="energy")
    with pytest.raises(
        ValueError, match=r"expected components xyz=\[0, 1, 2\], .* xyz_1=.* × xyz_2"
    ):
        layout_of(vector).union(layout_of(matrix))


def test_union_of_other_samples_or_keys_is_refused():
    structure, atom = structure_target([1.0], name="q"), atom_target([1.0], atom_samples(1), "q")
    with pytest.raises(ValueError, match=r"per-structure samples .* got per-atom samples"):
        layout_of(structure).union(layout_of(atom))
    with pytest.raises(ValueError, match=r"keys named \['_'\], as in earlier batches, got \['o3_"):
        layout_of(structure).union(layout_of(spherical({0: torch.ones(1, 1, 1)}, ONE)))


def test_a_property_is_described_by_block_and_label():
    layout = layout_of(spherical({1: torch.ones(1, 3, 2)}, ONE, name="n"))
    assert layout.describe_property((1, 1), 1) == "block (o3_lambda=1, o3_sigma=1), property (n=1)"


def test_states_are_plain_and_restored():
    tensor = atomic_basis(
        {(0, 1): torch.ones(1, 1, 2), (1, 8): torch.ones(1, 3, 3)}, {1: [[0, 0]], 8: [[0, 1]]}
    )
    layout = layout_of(tensor)
    buffer = io.BytesIO()
    torch.save(layout.state(), buffer)
    buffer.seek(0)
    again = TargetLayout.from_state("t", torch.load(buffer, weights_only=True))
    assert again.sample_kind == "atom"
    assert again.key_names == layout.key_names
    assert list(again.blocks) == list(layout.blocks) == [(0, 1, 1), (1, 1, 8)]
    assert again.union(layout) is again


def test_the_error_for_booleans_says_how_a_mask_is_named():
    flags = structure_target([1.0]).to(dtype=torch.bool)
    with pytest.raises(ValueError, match=r"got torch.bool; .* name it '<target>_mask' if it is a"):
        layout_of(flags)
