"""One round of messages between neighbors, from the parts of e3nn."""

from typing import Any

import torch
from e3nn.nn import FullyConnectedNet, Gate
from e3nn.o3 import Irreps, Linear, TensorProduct
from torch import Tensor, nn
from torch.nn.functional import silu

HARMONICS = Irreps("0e + 1o + 2e")
N_NEIGHBORS = 6.0  # about the mean; keeps sums over neighbors of order one


class Interaction(nn.Module):
    """Sum messages over neighbors, multiply two mixtures of what an atom then has, and gate.

    Tensors meet tensors on the atoms only, which are far fewer than the edges.

    Args:
        inputs: Irreps of the features that come in.
        hidden: Irreps of those that go out: as many scalars, vectors and tensors.
        n_radial: Number of radial functions.
    """

    def __init__(self, inputs: Irreps, hidden: Irreps, n_radial: int) -> None:
        super().__init__()
        self.message = _product(inputs, HARMONICS, "uvu", scalar=True, shared_weights=False)
        self.radial = FullyConnectedNet([n_radial, 32, self.message.weight_numel], silu)
        state = self.message.irreps_out + inputs + hidden[:1]
        self.left, self.right = Linear(state, hidden), Linear(state, hidden)
        self.product = _product(hidden, hidden, "uuu")
        gates = Irreps([(hidden[1:].num_irreps, "0e")])
        self.gate = Gate(hidden[:1], [silu], gates, [torch.sigmoid], hidden[1:])
        self.mix = Linear(self.product.irreps_out + state, self.gate.irreps_in)

    def forward(self, features: Tensor, kinds: Tensor, edges: tuple[Tensor, ...]) -> Tensor:
        """Update the features of the atoms.

        Args:
            features: `(n_atoms, n_inputs)`.
            kinds: Embedded types, `(n_atoms, n_scalars)`.
            edges: Center and neighbor of every edge, `(n_edges,)`, its spherical harmonics
                `(n_edges, 9)` and radial functions `(n_edges, n_radial)`.
        """
        center, neighbor, harmonics, radial = edges
        messages = self.message(features[neighbor], harmonics, self.radial(radial))
        density = sum_by_owner(messages, center, len(features)) / N_NEIGHBORS**0.5
        state = _damped(torch.cat([density, features, kinds], dim=1))
        product = self.product(self.left(state), self.right(state))
        return _damped(self.gate(self.mix(torch.cat([product, state], dim=1))))


def _product(left: Irreps, right: Irreps, mode: str, scalar: bool = False, **options: Any) -> Any:
    """Couple all degrees of two features to those of `HARMONICS`, or only where one is a scalar."""
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


def _damped(features: Tensor) -> Tensor:
    """Scale the features of each atom to a norm that is bounded: products of products explode."""
    return features / (1 + features.square().mean(dim=1, keepdim=True)).sqrt()


def sum_by_owner(rows: Tensor, owner: Tensor, n_owners: int) -> Tensor:
    """Sum the rows of each owner."""
    return rows.new_zeros(n_owners, rows.shape[1]).index_add(0, owner, rows)
