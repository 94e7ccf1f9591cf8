"""Edges between neighbors: their vectors, spherical harmonics and radial functions.

Everything here compiles with TorchScript; the functions of e3nn for this purpose do not.
"""

import torch
from metatomic.torch import NeighborListOptions, System
from torch import Tensor


def neighbor_vectors(
    systems: list[System], positions: Tensor, options: NeighborListOptions
) -> tuple[Tensor, Tensor, Tensor]:
    """Find the pairs of the neighbor lists, and their vectors from positions and cells.

    Not the vectors of the neighbor lists: autograd goes through them only where the caller has
    registered them.

    Args:
        systems: Systems with the neighbor list.
        positions: Positions of the atoms of all systems, `(n_atoms, 3)`.
        options: The neighbor list.

    Returns:
        Center and neighbor of every pair as indices of atoms in the batch, `(n_pairs,)`, and the
        vectors from center to neighbor, `(n_pairs, 3)`.

    Raises:
        ValueError: If a system has no such neighbor list.
    """
    samples: list[Tensor] = []
    n_pairs: list[int] = []
    firsts: list[int] = []
    first = 0
    for system in systems:
        available = system.known_neighbor_lists()
        found = False
        for each in available:
            found = found or each == options
        if not found:
            cutoffs = [each.cutoff for each in available]
            raise ValueError(
                f"expected a full, strict neighbor list with cutoff {options.cutoff} in every "
                f"system, got one with cutoffs {cutoffs}"
            )
        pairs = system.get_neighbor_list(options).samples.values
        samples.append(pairs)
        n_pairs.append(len(pairs))
        firsts.append(first)
        first += len(system)
    owner = torch.arange(len(systems)).repeat_interleave(torch.tensor(n_pairs))
    offset = torch.tensor(firsts)[owner].to(positions.device)
    joined = torch.cat(samples)
    center, neighbor = joined[:, 0] + offset, joined[:, 1] + offset
    cells = torch.stack([system.cell for system in systems])[owner.to(positions.device)]
    shifts = joined[:, 2:].to(cells.dtype).unsqueeze(1) @ cells
    return center, neighbor, positions[neighbor] - positions[center] + shifts.squeeze(1)


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
