"""TensorMaps of a batch compared with layouts, with its atoms and with each other.

A comparison of Labels takes 19 µs from Python; here one call compares all those of a batch.
"""

import torch
from metatensor.torch import Labels, TensorMap
from torch import Tensor

from .torchscript import scripted


def _same(labels: list[Labels], others: list[Labels]) -> bool:
    same, i = len(labels) == len(others), 0
    while same and i < len(labels):
        same = labels[i] == others[i]
        i += 1
    return same


def _has_layout(tensor: TensorMap, like: TensorMap, gradients: list[str]) -> bool:
    same_samples = tensor.sample_names == like.sample_names  # TorchScript has no != of these
    if tensor.device != like.device or not same_samples or tensor.keys != like.keys:
        return False
    blocks, others = tensor.blocks(), like.blocks()
    # All blocks have the same dtype.
    if len(blocks) > 0 and not blocks[0].values.is_floating_point():
        return False
    for i in range(len(blocks)):
        block, other = blocks[i], others[i]
        if block.properties != other.properties or not _same(block.components, other.components):
            return False
        for parameter in block.gradients_list():
            if parameter not in gradients:
                return False
            if len(block.gradient(parameter).gradients_list()) > 0:
                return False
    return True


@scripted
def have_layouts(
    tensors: list[TensorMap], likes: list[TensorMap], gradients: list[list[str]]
) -> list[bool]:
    """For each tensor whether device, keys, names of samples, components, properties are the same.

    Values that are no real floats, gradients other than those named, and gradients of gradients
    are another layout too.
    """
    return [_has_layout(tensors[i], likes[i], gradients[i]) for i in range(len(tensors))]


def _numbered_atoms(counts: Tensor, n_atoms: int) -> list[Tensor]:
    """Position of every atom's system, and its number there, int32 as Labels are."""
    counts = counts.to(torch.int32)
    of_atoms = torch.repeat_interleave(counts, output_size=n_atoms)
    first = counts.cumsum(0, dtype=torch.int32) - counts
    n = torch.arange(n_atoms, dtype=torch.int32, device=counts.device)
    return [of_atoms, n.sub_(first.index_select(0, of_atoms))]


def _is_usual(rows: Tensor, counts: Tensor, n_atoms: int, numbered: list[Tensor]) -> bool:
    """Whether rows are those of all systems, or of all atoms; what is worked out is kept."""
    if len(numbered) == 0:
        numbered.append(torch.arange(len(counts), dtype=torch.int32, device=counts.device))
    if rows.size(1) == 1:
        return torch.equal(rows[:, 0], numbered[0])
    if rows.size(1) == 2 and rows.size(0) == n_atoms:
        if len(numbered) == 1:
            numbered.extend(_numbered_atoms(counts, n_atoms))
        return torch.equal(rows[:, 0], numbered[1]) and torch.equal(rows[:, 1], numbered[2])
    return False


@scripted
def has_rows(
    samples: Labels, counts: Tensor, n_atoms: int, numbered: list[Tensor]
) -> tuple[bool, list[Tensor]]:
    """As :func:`have_rows`, for the samples of one block."""
    return _is_usual(samples.values, counts, n_atoms, numbered), numbered


@scripted
def have_rows(
    tensors: list[TensorMap], counts: Tensor, n_atoms: int, numbered: list[Tensor]
) -> tuple[list[bool], list[Tensor]]:
    """For each tensor whether its blocks have a row for every system, or every atom, in order.

    Args:
        tensors: those with one column of labels are compared with the systems, with two with the
            atoms.
        counts: number of atoms of every system, ``(n_systems,)``.
        n_atoms: in all systems.
        numbered: what an earlier call has returned, or nothing.

    Returns:
        What was found; and what another call for the same systems need not work out again.
    """
    found: list[bool] = []
    known = counts
    for tensor in tensors:
        usual = True
        for block in tensor.blocks():
            rows = block.samples.values
            # Blocks often share their samples.
            if usual and not rows.is_set_to(known):
                usual = _is_usual(rows, counts, n_atoms, numbered)
                known = rows if usual else known
        found.append(usual)
    return found, numbered


def _has_labels(tensor: TensorMap, like: TensorMap) -> bool:
    if tensor.device != like.device or tensor.keys != like.keys:
        return False
    blocks, others = tensor.blocks(), like.blocks()
    if len(blocks) > 0 and not blocks[0].values.is_floating_point():
        return False
    for i in range(len(blocks)):
        block, other = blocks[i], others[i]
        parameters = block.gradients_list()
        same_gradients = parameters == other.gradients_list()  # in the same order too
        if not same_gradients:  # TorchScript has no != of these
            return False
        pairs = [(block, other)]
        for parameter in parameters:
            gradient = block.gradient(parameter)
            if len(gradient.gradients_list()) > 0:
                return False
            pairs.append((gradient, other.gradient(parameter)))
        for one, expected in pairs:
            if one.samples != expected.samples or one.properties != expected.properties:
                return False
            if not _same(one.components, expected.components):
                return False
    return True


@scripted
def have_labels(tensors: list[TensorMap], likes: list[TensorMap]) -> list[bool]:
    """For each tensor whether device and all labels are the same, those of gradients too.

    Values that are no real floats, and gradients of gradients, are not the same as others.
    """
    return [_has_labels(tensors[i], likes[i]) for i in range(len(tensors))]


@scripted
def have_one_dtype(tensors: list[TensorMap]) -> bool:
    """Whether the values of all tensors have the same dtype; those without blocks have none."""
    first: torch.dtype | None = None
    for tensor in tensors:
        for block in tensor.blocks()[:1]:
            same_dtype = first is None or first == block.values.dtype
            if not same_dtype:
                return False
            first = block.values.dtype
    return True
