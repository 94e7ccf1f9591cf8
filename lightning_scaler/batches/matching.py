"""Targets and predictions brought to the same rows, order and dtype, per atom where extensive."""

import torch
from metatensor.torch import Labels, TensorBlock, TensorMap

from ..tensors import block_with_samples, describe, dtype_of, have_labels, map_blocks
from .atoms import Atoms
from .system_labels import SystemIndexing


def relabel_by_position(
    name: str, tensor: TensorMap, reading: SystemIndexing, atoms: Atoms
) -> TensorMap:
    """The same tensor, its ``system`` labels (and those of its gradients) being positions."""
    if reading.ids is None:
        return tensor

    def relabelled(_row: int, _keys: Labels, block: TensorBlock) -> TensorBlock:
        position = reading.positions(name, block.samples, atoms)
        gradients, gradient_samples = {}, {}
        for parameter in block.gradients_list():
            gradient = block.gradient(parameter)
            gradients[parameter] = gradient.values
            labels = gradient.samples
            if "system" in labels.names:
                labels = _with_column(labels, "system", position[labels.values[:, 0].long()])
            gradient_samples[parameter] = labels
        samples = _with_column(block.samples, "system", position)
        return block_with_samples(block, block.values, samples, gradients, gradient_samples)

    return map_blocks(tensor, relabelled)


def per_atom(tensor: TensorMap, atoms: Atoms) -> TensorMap:
    """An extensive per-structure tensor divided by the number of atoms.

    Gradients with respect to the whole structure (strain) are divided too, those of single atoms
    (positions) are not. Structures without atoms have no average: NaN.

    Args:
        tensor: samples ``["system"]``, positions in the batch.
        atoms: of the batch.
    """

    def divided(_row: int, _keys: Labels, block: TensorBlock) -> TensorBlock:
        counts = atoms.counts[block.samples.values[:, 0].long()].to(block.values.dtype)
        counts = torch.where(counts > 0, counts, torch.nan)
        gradients = {}
        for parameter in block.gradients_list():
            gradient = block.gradient(parameter)
            gradients[parameter] = gradient.values
            if "atom" not in gradient.samples.names:
                of_rows = counts[gradient.samples.values[:, 0].long()]
                gradients[parameter] = gradient.values / _trailing(of_rows, gradient.values)
        values = block.values / _trailing(counts, block.values)
        return block_with_samples(block, values, block.samples, gradients)

    return map_blocks(tensor, divided)


def align_prediction(name: str, prediction: TensorMap, target: TensorMap) -> TensorMap:
    """The prediction in the keys, rows, order, gradients and dtype of the target.

    Args:
        name: of the target, for the messages.
        prediction: what a model gave; may have more blocks, rows or gradients than the target.
        target: samples with positions in the batch, as in the prediction.

    Raises:
        ValueError: for a block, row or gradient of the target without a prediction, or other
            components or properties.
    """
    same_labels = have_labels([prediction], [target])[0]
    if same_labels and dtype_of(prediction) == dtype_of(target):
        return prediction
    if prediction.keys.names != target.keys.names:
        raise ValueError(
            f"target '{name}': expected predictions with keys named {target.keys.names}, got "
            f"{prediction.keys.names}"
        )

    def one(row: int, keys: Labels, block: TensorBlock) -> TensorBlock:
        where = f"target '{name}', block ({describe(keys, row)})"
        position = prediction.keys.position(keys.entry(row))
        if position is None:
            raise ValueError(f"{where}: no such block among the predictions {prediction.keys}")
        return _matched_block(where, prediction.block_by_id(position), block)

    return map_blocks(target, one)


def _matched_block(where: str, prediction: TensorBlock, target: TensorBlock) -> TensorBlock:
    if prediction.properties != target.properties or prediction.components != target.components:
        raise ValueError(
            f"{where}: expected predictions with components {target.components} and properties "
            f"{target.properties}, got {prediction.components} and {prediction.properties}"
        )
    rows = find_rows(where, prediction.samples, target.samples, target.samples.values)
    values = selected(prediction.values, rows).to(target.values.dtype)
    result = TensorBlock(values, target.samples, target.components, target.properties)
    for parameter in target.gradients_list():
        wanted = target.gradient(parameter)
        if parameter not in prediction.gradients_list():
            raise ValueError(
                f"{where}: no prediction of the gradient '{parameter}', got gradients "
                f"{prediction.gradients_list()}"
            )
        gradient = prediction.gradient(parameter)
        gradient_rows = find_gradient_rows(where, parameter, gradient.samples, wanted.samples, rows)
        gradient_values = selected(gradient.values, gradient_rows).to(wanted.values.dtype)
        result.add_gradient(
            parameter,
            TensorBlock(gradient_values, wanted.samples, wanted.components, wanted.properties),
        )
    return result


def find_rows(
    where: str, among: Labels, wanted: Labels, values: torch.Tensor, what: str = "prediction"
) -> torch.Tensor | None:
    """Row of every wanted label, ``None`` where they stand in the same order already.

    Args:
        where: for the messages.
        among: samples of what there is.
        wanted: samples of the target.
        values: of the wanted samples as ``among`` would have them.
        what: there is, for the messages.

    Raises:
        ValueError: for samples with other names, or a wanted row that is not there.
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
        first = int((rows < 0).nonzero()[0])
        raise ValueError(
            f"{where}: no {what} for {int((rows < 0).sum())} rows of the target, the first of "
            f"them ({describe(wanted, first)}); {what}s carry the position in the batch as 'system'"
        )
    return rows


def find_gradient_rows(
    where: str,
    parameter: str,
    among: Labels,
    wanted: Labels,
    rows: torch.Tensor | None,
    what: str = "prediction",
) -> torch.Tensor | None:
    """As :func:`find_rows` for samples of a gradient, given the rows of its block."""
    values = wanted.values
    if rows is not None:
        values = torch.cat([rows[values[:, 0].long()].to(values)[:, None], values[:, 1:]], 1)
    return find_rows(f"{where}, gradient '{parameter}'", among, wanted, values, what)


def selected(values: torch.Tensor, rows: torch.Tensor | None) -> torch.Tensor:
    """Some rows of the values, all of them for ``None``."""
    return values if rows is None else values[rows]


def _with_column(labels: Labels, name: str, column: torch.Tensor) -> Labels:
    values = labels.values.clone()
    values[:, labels.names.index(name)] = column.to(values.dtype)
    return Labels(labels.names, values)


def _trailing(rows: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    return rows.reshape(-1, *[1] * (values.dim() - 1))
