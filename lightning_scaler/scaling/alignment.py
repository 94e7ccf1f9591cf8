"""Predictions in the blocks, rows and dtype of their targets."""

from metatensor.torch import Labels, TensorBlock, TensorMap

from ..tensors import (
    describe,
    dtype_of,
    find_gradient_rows,
    find_rows,
    have_labels,
    map_blocks,
    take_rows,
)


def align_prediction(name: str, prediction: TensorMap, target: TensorMap) -> TensorMap:
    """The prediction with the keys, rows, order, gradients and dtype of the target.

    Args:
        name: name of the target, for messages.
        prediction: output of a model; may have more blocks, rows or gradients than the target.
        target: target with positions in the batch as ``system`` labels, like the prediction.

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

    def align(index: int, keys: Labels, block: TensorBlock) -> TensorBlock:
        where = f"target '{name}', block ({describe(keys, index)})"
        position = prediction.keys.position(keys.entry(index))
        if position is None:
            raise ValueError(f"{where}: no such block among the predictions {prediction.keys}")
        return _align_block(where, prediction.block_by_id(position), block)

    return map_blocks(target, align)


def _align_block(where: str, prediction: TensorBlock, target: TensorBlock) -> TensorBlock:
    if prediction.properties != target.properties or prediction.components != target.components:
        raise ValueError(
            f"{where}: expected predictions with components {target.components} and properties "
            f"{target.properties}, got {prediction.components} and {prediction.properties}"
        )
    rows = find_rows(where, prediction.samples, target.samples, target.samples.values)
    values = take_rows(prediction.values, rows).to(target.values.dtype)
    aligned = TensorBlock(values, target.samples, target.components, target.properties)
    for parameter in target.gradients_list():
        wanted = target.gradient(parameter)
        if parameter not in prediction.gradients_list():
            raise ValueError(
                f"{where}: no prediction of the gradient '{parameter}', got gradients "
                f"{prediction.gradients_list()}"
            )
        gradient = prediction.gradient(parameter)
        gradient_rows = find_gradient_rows(
            f"{where}, gradient '{parameter}'", gradient.samples, wanted.samples, rows
        )
        values = take_rows(gradient.values, gradient_rows).to(wanted.values.dtype)
        aligned.add_gradient(
            parameter, TensorBlock(values, wanted.samples, wanted.components, wanted.properties)
        )
    return aligned
