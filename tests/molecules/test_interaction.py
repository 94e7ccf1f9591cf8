"""Functions of the edges against those of e3nn."""

import torch
from e3nn import o3
from e3nn.math import soft_one_hot_linspace

from lightning_scaler.molecules.interaction import radial_functions, spherical_harmonics


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
