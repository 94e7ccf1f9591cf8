"""Autograd through the output of an additive module, back to the positions and the cell."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from metatensor.torch import Labels, TensorBlock, TensorMap
from torch import Tensor

from ..batches import Atoms, HasTypes
from ..tensors import block_with_samples, map_blocks


def requires_gradient(systems: Iterable[HasTypes]) -> bool:
    """Whether autograd is on and the positions or the cell of any system require a gradient."""
    return torch.is_grad_enabled() and bool(_sources(systems))


def connect(output: TensorMap, systems: Sequence[HasTypes], atoms: Atoms) -> tuple[TensorMap, bool]:
    r"""The output of a module as a function of the positions and cells of its systems.

    Values that autograd cannot follow back to the systems are connected to first order by the
    gradients of their block, :math:`\partial E / \partial r` (``positions``) and
    :math:`\partial E / \partial \epsilon` (``strain``). With the cell vectors as
    the rows of :math:`h`,

    .. math::

        \frac{\partial E}{\partial h} = h^{-T}
        \left( \frac{\partial E}{\partial \epsilon} - r^T \frac{\partial E}{\partial r} \right)

    Args:
        output: output of the module, with positions in the batch as ``system`` labels.
        systems: systems that the module received.
        atoms: their atoms, on the device of the output.

    Returns:
        The output; and whether autograd can follow every block of it.
    """
    nodes = {torch.autograd.graph.get_gradient_edge(source).node for source in _sources(systems)}
    complete = True

    def connect_block(_index: int, _keys: Labels, block: TensorBlock) -> TensorBlock:
        nonlocal complete
        gradients = {}
        for parameter in block.gradients_list():
            values = block.gradient(parameter).values
            gradients[parameter] = values if _reaches(values, nodes) else values.detach()
        values = block.values
        if not _reaches(values, nodes):
            terms = _first_order(block, systems, atoms)
            complete = complete and terms is not None
            values = values.detach() if terms is None else values.detach() + terms
        return block_with_samples(block, values, block.samples, gradients)

    return map_blocks(output, connect_block), complete


def _sources(systems: Iterable[HasTypes]) -> list[Tensor]:
    """The positions and cells that require a gradient."""
    found = (getattr(s, name, None) for s in systems for name in ("positions", "cell"))
    return [part for part in found if isinstance(part, Tensor) and part.requires_grad]


def _reaches(values: Tensor, nodes: set[Any]) -> bool:
    """Whether the graph of some values leads to one of the nodes."""
    waiting: list[Any] = [values.grad_fn]
    seen = set()
    while waiting:
        node = waiting.pop()
        if node in nodes:
            return True
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [following for following, _ in node.next_functions]
    return False


def _first_order(block: TensorBlock, systems: Sequence[Any], atoms: Atoms) -> Tensor | None:
    """Zeros with the gradients of a block, in the shape of its values; ``None`` without them."""
    parameters = block.gradients_list()
    periodic = [s for s in systems if s.cell.requires_grad and bool(s.pbc.any())]
    if "positions" not in parameters or (periodic and "strain" not in parameters):
        return None
    owner = block.samples.column("system").to(torch.int64)
    gradient = block.gradient("positions")
    slope = gradient.values.detach().flatten(2)  # (n_gradient_samples, 3, n_components_properties)
    rows = gradient.samples.column("sample").to(torch.int64)
    index = atoms.first_atom[owner[rows]] + gradient.samples.column("atom").to(torch.int64)
    positions = torch.cat([s.positions for s in systems]).to(slope)
    moved = (positions - positions.detach())[index, :, None]
    terms: Tensor = slope.new_zeros(len(owner), slope.shape[2]).index_add(
        0, rows, (slope * moved).sum(1)
    )
    if periodic:
        strain = block.gradient("strain")
        samples = strain.samples.column("sample").to(torch.int64)
        total = strain.values.detach().flatten(3)  # (n_samples, 3, 3, n_components_properties)
        outer = positions.detach()[index, :, None, None] * slope[:, None]
        of_atoms = total.new_zeros(len(owner), *total.shape[1:]).index_add(0, rows, outer)
        cells = torch.stack([s.cell for s in systems]).to(slope)
        inverse = torch.linalg.pinv(cells.detach()).transpose(1, 2)[owner[samples]]
        by_cell = torch.einsum("nka,nabc->nkbc", inverse, total - of_atoms[samples])
        moved = (cells - cells.detach())[owner[samples], :, :, None]
        terms = terms.index_add(0, samples, (by_cell * moved).sum((1, 2)))
    return terms.reshape(block.values.shape)
