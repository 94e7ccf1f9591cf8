"""The edges between neighbors: which they are, spherical harmonics and radial functions.

TorchScript compiles them, as it does not those of e3nn.
"""

import torch
from metatomic.torch import NeighborListOptions
from torch import Tensor


def neighbor_list_options(cutoff: float) -> NeighborListOptions:
    """The neighbor list of datasets and models: every ordered pair within `cutoff`."""
    return NeighborListOptions(cutoff=cutoff, full_list=True, strict=True)


def spherical_harmonics(directions: Tensor) -> Tensor:
    """Real spherical harmonics of degree 0, 1 and 2, of mean square 1 over the sphere.

    Args:
        directions: Unit vectors, `(n, 3)`.

    Returns:
        The components m = -l, ..., l of each degree l, `(n, 9)`.
    """
    x, y, z = directions.unbind(1)
    return torch.stack(
        [
            torch.ones_like(x),
            3**0.5 * y,
            3**0.5 * z,
            3**0.5 * x,
            15**0.5 * x * y,
            15**0.5 * y * z,
            5**0.5 * (z * z - 0.5 * (x * x + y * y)),
            15**0.5 * x * z,
            0.5 * 15**0.5 * (x * x - y * y),
        ],
        dim=1,
    )


def radial_functions(lengths: Tensor, cutoff: float, n_radial: int) -> Tensor:
    """Smooth bumps on a grid between 0 and the cutoff, of mean square about 1.

    With d the distance to a grid point in units of the grid, a bump is proportional to
    exp(-2 / (1 - d²)) for |d| < 1 and 0 elsewhere, with all of its derivatives.

    Args:
        lengths: `(n,)`, in the unit of the cutoff.
        cutoff: Distance at which all functions are 0.
        n_radial: Number of functions.

    Returns:
        `(n, n_radial)`.
    """
    norm, step = 1.14136 * n_radial**0.5, cutoff / (n_radial + 1)
    grid = torch.arange(1, n_radial + 1, dtype=lengths.dtype, device=lengths.device)
    inside = 1.0 - (lengths.unsqueeze(1) / step - grid).square()
    positive = inside > 0.0
    # The derivatives of the branch that is not taken must be finite, too.
    bumps = torch.exp(2.0 - 2.0 / torch.where(positive, inside, 1.0))
    return torch.where(positive, norm * bumps, 0.0)
