"""One round of message passing between neighbors, built with e3nn."""

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

    Args:
        left: Irreps of the first features.
        right: Irreps of the second features.
        mode: How e3nn connects the multiplicities.
        scalar: Use only paths in which one of the features is a scalar.
        **options: Further options of `TensorProduct`.
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
