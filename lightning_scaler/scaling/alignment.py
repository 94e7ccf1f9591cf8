"""Predictions in the blocks, rows and dtype of their targets."""

from metatensor.torch import Labels, TensorBlock, TensorMap

from ..tensors import (
    describe,
    describe_labels,
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
        ValueError: for a block, row or gradient of the target without a prediction, other
            components or properties, or another device.
    """
    same_labels = have_labels([prediction], [target])[0]
    if same_labels and dtype_of(prediction) == dtype_of(target):
        return prediction
    what = f"prediction of '{name}'"
    check_device(name, prediction, target)
    if prediction.keys.names != target.keys.names:
        raise ValueError(
            f"{what}: expected keys named {target.keys.names}, as in the target, got "
            f"{prediction.keys.names}"
        )

    def align(index: int, keys: Labels, block: TensorBlock) -> TensorBlock:
        where = f"{what}, block ({describe(keys, index)})"
        position = prediction.keys.position(keys.entry(index))
        if position is None:
            raise ValueError(
                f"{where}: expected this block, which the target has, got only the keys "
                f"{describe_labels([prediction.keys])}"
            )
        return _align_block(where, prediction.block_by_id(position), block)

    return map_blocks(target, align)


def check_device(name: str, prediction: TensorMap, target: TensorMap) -> None:
    """Refuse a prediction on another device than its target.

    Raises:
        ValueError: naming both devices.
    """
    if prediction.device != target.device:
        raise ValueError(
            f"prediction of '{name}': expected the device of the target, {target.device}, got "
            f"{prediction.device}; make all values and labels on the device of the systems, as in "
            "Labels(names, values.to(systems[0].device))"
        )


def _align_block(where: str, prediction: TensorBlock, target: TensorBlock) -> TensorBlock:
    _check_labels(where, prediction, target)
    rows = find_rows(where, prediction.samples, target.samples, target.samples.values)
    values = take_rows(prediction.values, rows).to(target.values.dtype)
    aligned = TensorBlock(values, target.samples, target.components, target.properties)
    for parameter in target.gradients_list():
        wanted = target.gradient(parameter)
        if parameter not in prediction.gradients_list():
            raise ValueError(_missing_gradient(where, parameter, prediction, wanted))
        gradient = prediction.gradient(parameter)
        where_gradient = f"{where}, gradient '{parameter}'"
        _check_labels(where_gradient, gradient, wanted)
        gradient_rows = find_gradient_rows(where_gradient, gradient.samples, wanted.samples, rows)
        values = take_rows(gradient.values, gradient_rows).to(wanted.values.dtype)
        aligned.add_gradient(
            parameter, TensorBlock(values, wanted.samples, wanted.components, wanted.properties)
        )
    return aligned


def _check_labels(where: str, prediction: TensorBlock, target: TensorBlock) -> None:
    for what, ours, wanted in (
        ("components", prediction.components, target.components),
        ("properties", [prediction.properties], [target.properties]),
    ):
        if ours != wanted:
            raise ValueError(
                f"{where}: expected {what} {describe_labels(wanted)}, as in the target, got "
                f"{describe_labels(ours)}"
            )


def _missing_gradient(
    where: str, parameter: str, prediction: TensorBlock, wanted: TensorBlock
) -> str:
    components = [
        f"Labels({component.names}, torch.tensor({component.values.tolist()}))"
        for component in wanted.components
    ]
    return (
        f"{where}: expected the gradient '{parameter}', which the target has, got the gradients "
        f"{prediction.gradients_list()}; add it to the block before you make the TensorMap: "
        f"block.add_gradient('{parameter}', TensorBlock(values, Labels({wanted.samples.names}, "
        f"rows), [{', '.join(components)}], block.properties)), or remove it from the target: "
        "metatensor.torch.remove_gradients(target)"
    )
