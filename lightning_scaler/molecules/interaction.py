"""One round of message passing between neighbors, and the functions of the edges between them."""

from typing import Any, NamedTuple

import torch
from e3nn.nn import FullyConnectedNet, Gate
from e3nn.o3 import Irreps, Linear, TensorProduct
from torch import Tensor, nn
from torch.nn.functional import silu

HARMONICS = Irreps("0e + 1o + 2e")
N_NEIGHBORS = 6.0  # about the mean in the dataset; keeps sums over neighbors of order one


class Edges(NamedTuple):
    """Ordered pairs of neighbors.

    Attributes:
        center: Index of the atom that receives a message, `(n_edges,)`.
        neighbor: Index of the atom that sends it, `(n_edges,)`.
        harmonics: Spherical harmonics of the direction to the neighbor, `(n_edges, 9)`.
        radial: Radial functions of the distance, `(n_edges, n_radial)`.
    """

    center: Tensor
    neighbor: Tensor
    harmonics: Tensor
    radial: Tensor


class Interaction(nn.Module):
    """Sum messages over neighbors, multiply two linear maps of the result, and gate.

    Products of two tensors are taken on atoms only, which are far fewer than edges.

    Args:
        inputs: Irreps of the input features.
        hidden: Irreps of the output features, with equal numbers of scalars, vectors and tensors.
        n_radial: Number of radial functions.
    """

    def __init__(self, inputs: Irreps, hidden: Irreps, n_radial: int) -> None:
        super().__init__()
        self.norm = N_NEIGHBORS**0.5
        self.message = _product(inputs, HARMONICS, "uvu", scalar=True, shared_weights=False)
        self.radial = FullyConnectedNet([n_radial, 32, self.message.weight_numel], silu)
        state = self.message.irreps_out + inputs + hidden[:1]
        self.left, self.right = Linear(state, hidden), Linear(state, hidden)
        self.product = _product(hidden, hidden, "uuu")
        gates = Irreps([(hidden[1:].num_irreps, "0e")])
        self.gate = Gate(hidden[:1], [silu], gates, [torch.sigmoid], hidden[1:])
        self.mix = Linear(self.product.irreps_out + state, self.gate.irreps_in)

    def forward(self, features: Tensor, types: Tensor, edges: Edges) -> Tensor:
        """Update the features of the atoms.

        Args:
            features: `(n_atoms, n_inputs)`.
            types: Embeddings of the atomic types, `(n_atoms, n_scalars)`.
            edges: All edges of the batch.
        """
        weights = self.radial(edges.radial)
        messages = self.message(features[edges.neighbor], edges.harmonics, weights)
        density = sum_by_owner(messages, edges.center, len(features)) / self.norm
        state = _limit_norm(torch.cat([density, features, types], dim=1))
        product = self.product(self.left(state), self.right(state))
        return _limit_norm(self.gate(self.mix(torch.cat([product, state], dim=1))))


def _product(left: Irreps, right: Irreps, mode: str, scalar: bool = False, **options: Any) -> Any:
    """Tensor product of two features onto the irreps of `HARMONICS`.

    With `scalar`, only on paths in which one of the features is a scalar.
    """
    paths = [
        (i, j, irrep)
        for i, (_, a) in enumerate(left)
        for j, (_, b) in enumerate(right)
        for irrep in a * b
        if irrep in HARMONICS and (a.l == 0 or b.l == 0 or not scalar)
    ]
    irreps = Irreps([(left[i].mul, irrep) for i, _, irrep in paths])
    instructions = [(i, j, k, mode, True) for k, (i, j, _) in enumerate(paths)]
    return TensorProduct(left, right, irreps, instructions, **options)


def _limit_norm(features: Tensor) -> Tensor:
    """Scale the features of each atom to a bounded norm; repeated products would explode."""
    return features / (1 + features.square().mean(dim=1, keepdim=True)).sqrt()


def sum_by_owner(rows: Tensor, owner: Tensor, n_owners: int) -> Tensor:
    """Sum the rows that have the same owner, such as the atoms of a system."""
    return rows.new_zeros([n_owners, rows.shape[1]]).index_add(0, owner, rows)


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
