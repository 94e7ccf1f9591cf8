"""Functions of the edges against those of e3nn, and vectors across cell boundaries."""

import pytest
import torch
from e3nn import o3
from e3nn.math import soft_one_hot_linspace
from metatomic.torch import System
from vesin.metatomic import NeighborList

from lightning_scaler.molecules.dataset import neighbor_list_options
from lightning_scaler.molecules.edges import (
    neighbor_vectors,
    radial_functions,
    spherical_harmonics,
)

OPTIONS = neighbor_list_options(2.5)


def test_spherical_harmonics_equal_those_of_e3nn():
    vectors = torch.randn(20, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    directions = vectors / vectors.norm(dim=1, keepdim=True)
    # e3nn calls its axes y, z, x.
    expected = o3.spherical_harmonics([0, 1, 2], directions[:, [1, 2, 0]], True, "component")
    torch.testing.assert_close(spherical_harmonics(directions), expected)


def test_radial_functions_equal_those_of_e3nn():
    lengths = torch.linspace(0.01, 6.0, 400, dtype=torch.float64)
    expected = soft_one_hot_linspace(lengths, 0.0, 5.0, 6, "smooth_finite", True) * 6**0.5
    # e3nn has a factor in single precision.
    torch.testing.assert_close(radial_functions(lengths, 5.0, 6), expected, rtol=1e-6, atol=0)


def test_radial_functions_have_finite_derivatives_at_their_ends():
    step = 5.0 / 7
    for dtype in (torch.float32, torch.float64):
        ends = torch.arange(8, dtype=dtype) * step
        lengths = torch.cat([ends, ends.nextafter(ends + 1), ends.nextafter(ends - 1)])
        lengths.requires_grad_()
        slope = torch.autograd.grad(
            radial_functions(lengths, 5.0, 6).sum(), lengths, create_graph=True
        )[0]
        curvature = torch.autograd.grad(slope.sum(), lengths)[0]
        assert slope.isfinite().all()
        assert curvature.isfinite().all()


def with_neighbors(*systems: System) -> list[System]:
    NeighborList(OPTIONS, length_unit="angstrom").add_neighbor_list(list(systems))
    return list(systems)


def test_vectors_equal_those_of_the_neighbor_lists_across_cell_boundaries():
    generator = torch.Generator().manual_seed(0)
    cell = torch.tensor([[3.0, 0.1, 0.0], [0.0, 2.7, 0.2], [0.3, 0.0, 3.2]]).double()
    systems = [
        System(
            torch.ones(n, dtype=torch.int32), torch.rand(n, 3, generator=generator).double(), c, p
        )
        for n, c, p in (
            (3, torch.zeros(3, 3).double(), torch.tensor([False] * 3)),
            (4, cell, torch.tensor([True] * 3)),
            (2, 1.1 * cell, torch.tensor([True] * 3)),
        )
    ]
    positions = torch.cat([system.positions for system in systems])
    center, neighbor, vectors = neighbor_vectors(with_neighbors(*systems), positions, OPTIONS)
    lists = [system.get_neighbor_list(OPTIONS) for system in systems]
    expected = torch.cat([each.values.squeeze(-1) for each in lists])
    torch.testing.assert_close(vectors, expected)
    first = torch.tensor([0, 3, 7])
    shifted = [each.samples.values[:, :2] + n for each, n in zip(lists, first, strict=True)]
    assert torch.equal(torch.stack([center, neighbor], 1), torch.cat(shifted))
    assert len(lists[1].samples) > 12  # images, too


def test_a_missing_neighbor_list_is_an_error():
    (system,) = with_neighbors(
        System(
            torch.ones(1, dtype=torch.int32),
            torch.zeros(1, 3),
            torch.zeros(3, 3),
            torch.tensor([False] * 3),
        )
    )
    with pytest.raises(ValueError, match=r"neighbor list with cutoff 4.0 .* cutoffs \[2.5\]"):
        neighbor_vectors([system], system.positions, neighbor_list_options(4.0))
