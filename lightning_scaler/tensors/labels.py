"""Labels of TensorMaps compared and searched.

Comparing two Labels takes about 30 µs from Python; here one call compares all those of a batch.
"""

import torch
from metatensor.torch import Labels, TensorMap
from torch import Tensor

from .tensormaps import describe, scripted


def are_equal(labels: Labels, others: Labels, on_host: bool, differ: list[Tensor]) -> bool:
    """Whether two Labels are equal, as far as can be said without waiting for a GPU.

    To compare Labels on a GPU, metatensor copies both to the host, which waits each time. Instead,
    :func:`without_differences` reads at once what is left to be said.

    Args:
        labels: Labels.
        others: other Labels, on the same device.
        on_host: whether they are on the CPU.
        differ: where they are not, whether values differ is added to it, ``()`` bool.
    """
    if on_host:
        equal: bool = labels == others
        return equal
    values, other_values = labels.values, others.values
    same_names: bool = labels.names == others.names
    if not same_names or values.shape != other_values.shape:
        return False
    if not values.is_set_to(other_values):
        differ.append((values != other_values).any())
    return True


def all_equal(
    labels: list[Labels], others: list[Labels], on_host: bool, differ: list[Tensor]
) -> bool:
    """Whether two lists of Labels are equal, as far as :func:`are_equal` says."""
    same, i = len(labels) == len(others), 0
    while same and i < len(labels):
        same = are_equal(labels[i], others[i], on_host, differ)
        i += 1
    return same


def without_differences(equal: list[bool], differ: list[list[Tensor]]) -> list[bool]:
    """Those that are equal by :func:`are_equal` and by the tensors that it has added for them."""
    added: list[Tensor] = []
    for i, of_one in enumerate(differ):
        if equal[i]:
            added.extend(of_one)
    if len(added) > 0:
        found: list[bool] = torch.stack(added).tolist()
        n = 0
        for i, of_one in enumerate(differ):
            if equal[i]:
                equal[i] = not any(found[n : n + len(of_one)])
                n += len(of_one)
    return equal


@scripted
def blocks_in_batch_order(
    tensors: list[TensorMap], n_atoms: Tensor, n_all_atoms: int
) -> list[list[bool]]:
    """Whether each block of each tensor has one row for every system, or every atom, in order.

    Args:
        tensors: per-structure targets (one column of sample labels), per-atom targets (two), or
            others, whose blocks never count as in order.
        n_atoms: number of atoms of every system, ``(n_systems,)``.
        n_all_atoms: number of atoms of all systems.
    """
    systems = torch.arange(len(n_atoms), dtype=torch.int32, device=n_atoms.device)
    system_of_atom, atom, last = systems, systems, systems
    last_in_order, has_atoms = True, False
    found: list[list[bool]] = []
    for tensor in tensors:
        in_order: list[bool] = []
        for block in tensor.blocks():
            rows = block.samples.values
            # Blocks often share their samples.
            if not rows.is_set_to(last):
                last, last_in_order = rows, False
                if rows.size(1) == 1:
                    last_in_order = torch.equal(rows[:, 0], systems)
                elif rows.size(1) == 2 and rows.size(0) == n_all_atoms:
                    if not has_atoms:
                        has_atoms = True
                        counts = n_atoms.to(torch.int32)
                        system_of_atom = torch.repeat_interleave(counts, output_size=n_all_atoms)
                        first = counts.cumsum(0, dtype=torch.int32) - counts
                        atom = torch.arange(n_all_atoms, dtype=torch.int32, device=counts.device)
                        atom = atom - first.index_select(0, system_of_atom)
                    last_in_order = torch.equal(rows[:, 0], system_of_atom) and torch.equal(
                        rows[:, 1], atom
                    )
            in_order.append(last_in_order)
        found.append(in_order)
    return found


def _has_labels(tensor: TensorMap, like: TensorMap, differ: list[Tensor]) -> bool:
    device = tensor.device
    on_host = device.type == "cpu"
    if device != like.device or not are_equal(tensor.keys, like.keys, on_host, differ):
        return False
    blocks, others = tensor.blocks(), like.blocks()
    if len(blocks) > 0 and not blocks[0].values.is_floating_point():
        return False
    for i in range(len(blocks)):
        block, other = blocks[i], others[i]
        parameters = block.gradients_list()
        same_gradients = parameters == other.gradients_list()  # in the same order too
        if not same_gradients:  # TorchScript has no != for lists
            return False
        pairs = [(block, other)]
        for parameter in parameters:
            gradient = block.gradient(parameter)
            if len(gradient.gradients_list()) > 0:
                return False
            pairs.append((gradient, other.gradient(parameter)))
        for one, expected in pairs:
            if not are_equal(one.samples, expected.samples, on_host, differ):
                return False
            if not are_equal(one.properties, expected.properties, on_host, differ):
                return False
            if not all_equal(one.components, expected.components, on_host, differ):
                return False
    return True


@scripted
def have_labels(tensors: list[TensorMap], likes: list[TensorMap]) -> list[bool]:
    """Whether each tensor has the device and all labels of another, those of gradients included.

    Values that are not real floats, and gradients of gradients, count as different.
    """
    equal: list[bool] = []
    differ: list[list[Tensor]] = []
    for i in range(len(tensors)):
        of_one: list[Tensor] = []
        equal.append(_has_labels(tensors[i], likes[i], of_one))
        differ.append(of_one)
    return without_differences(equal, differ)


@scripted
def have_dtype(tensors: list[TensorMap], dtype: torch.dtype) -> list[bool]:
    """Whether the values of each tensor have a dtype; those without blocks have any."""
    return [all([b.values.dtype == dtype for b in tensor.blocks()[:1]]) for tensor in tensors]


def find_rows(
    where: str, among: Labels, wanted: Labels, values: Tensor, what: str = "prediction"
) -> Tensor | None:
    """The row of every wanted label, ``None`` where both are in the same order.

    Args:
        where: target and block, for messages.
        among: samples to search.
        wanted: samples of the target.
        values: values of the wanted labels as they would be in ``among``.
        what: what ``among`` labels, for messages.

    Raises:
        ValueError: for samples with other names, or a wanted label that is missing.
    """
    if among.names != wanted.names:
        raise ValueError(
            f"{where}: expected {what}s with samples named {wanted.names}, got {among.names}"
        )
    if torch.equal(among.values, values):
        return None
    _, group = torch.cat([among.values, values]).unique(dim=0, return_inverse=True)
    row_of_group = torch.full((len(group),), -1, device=group.device)
    row_of_group[group[: len(among)]] = torch.arange(len(among), device=group.device)
    rows = row_of_group[group[len(among) :]]
    if bool((rows < 0).any()):
        missing = (rows < 0).nonzero()[:, 0].tolist()
        raise ValueError(
            f"{where}: no {what} for {len(missing)} of {len(rows)} rows of the target, the first "
            f"of them ({describe(wanted, missing[0])}); {what}s carry the position in the batch as "
            "'system'"
        )
    return rows


def find_gradient_rows(
    where: str, among: Labels, wanted: Labels, rows: Tensor | None, what: str = "prediction"
) -> Tensor | None:
    """As :func:`find_rows` for samples of a gradient, given the rows of its block.

    Samples ``[sample, system, atom]`` and ``[sample, atom]`` denote the same gradient.
    """
    among, wanted = _without_system(among), _without_system(wanted)
    values = wanted.values
    if rows is not None:
        values = torch.cat([rows[values[:, 0].long()].to(values)[:, None], values[:, 1:]], 1)
    return find_rows(where, among, wanted, values, what)


def _without_system(labels: Labels) -> Labels:
    """Samples of a gradient without ``system``, which the row of its block implies."""
    if "system" not in labels.names:
        return labels
    kept = [column for column, name in enumerate(labels.names) if name != "system"]
    return Labels([labels.names[column] for column in kept], labels.values[:, kept])


def take_rows(values: Tensor, rows: Tensor | None) -> Tensor:
    """Some rows of the values, all of them for ``None``."""
    return values if rows is None else values[rows]
