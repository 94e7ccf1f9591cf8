"""The arithmetic of conversions, for all values and gradients of a batch in one call."""

from typing import NamedTuple

import torch
from metatensor.torch import TensorMap
from torch import Tensor

from ..tensors import gradients_of_blocks, rebuild, scripted_arithmetic


class ConversionArgs(NamedTuple):
    """A target with the factors and baselines of its conversion.

    Each list has one tensor per block, or a single tensor that serves all blocks, or none where
    nothing is to be done.

    Attributes:
        tensor: the target, without gradients of gradients.
        factors: scales, ``(n_factors,)`` or ``(n_factors, n_properties)``: one row per sample, a
            single row, or a table that ``scale_index`` refers to.
        scale_index: row of the factors for each sample (its atomic type), ``(n_samples,)``.
        n_atoms: number of atoms by which values, and gradients with respect to the whole structure
            (strain), are divided in the end, ``(n_samples,)``.
        baseline: baseline of every block in a shape that expands to its values, ``None`` for a
            block without; if there are any, the target is computed in float64.
        gradient_baseline: the same for every gradient, in the order of blocks and parameters.
    """

    tensor: TensorMap
    factors: list[Tensor]
    scale_index: list[Tensor]
    n_atoms: list[Tensor]
    baseline: list[Tensor | None]
    gradient_baseline: list[Tensor | None]


def _cast(values: Tensor, dtype: torch.dtype) -> Tensor:
    # The comparison costs a fifth of a cast to the same dtype.
    return values if values.dtype == dtype else values.to(dtype)


def _expandable(rows: Tensor, values: Tensor) -> Tensor:
    """Factors per row, or per row and property, in a shape that expands to the values."""
    n_added = values.dim() - rows.dim()
    if rows.size(0) == 1 or n_added == 0:
        return rows
    return rows.reshape([rows.size(0)] + [1] * n_added + list(rows.shape[1:]))


def _rescale_values(
    values: Tensor, factor: Tensor, baseline: Tensor | None, n_atoms: Tensor | None, multiply: bool
) -> Tensor:
    factor = _expandable(factor, values)
    if multiply:
        values = values * factor
        if baseline is not None:
            values = values + baseline
    else:
        if baseline is not None:
            values = values - baseline
        values = values / factor
    if n_atoms is not None:
        values = values / _expandable(n_atoms, values)
    return values


def _of_block(tensors: list[Tensor], i: int) -> Tensor:
    return tensors[i] if len(tensors) > 1 else tensors[0]


def _factor_of_block(args: ConversionArgs, i: int, working: torch.dtype) -> Tensor:
    factor = _cast(_of_block(args.factors, i), working)
    if len(args.scale_index) > 0:
        factor = factor.index_select(0, _of_block(args.scale_index, i))
    return factor


def rescale_target(
    args: ConversionArgs, multiply: bool, double: bool, dtype: torch.dtype | None
) -> tuple[list[Tensor], list[Tensor]]:
    """Values and gradients of one target; TorchScript can compile it.

    Args:
        args: target with its factors and baselines.
        multiply: whether to multiply and add; see :func:`rescale`.
        double: computes in float64, and returns float64 towards physical space.
        dtype: dtype of the result, if it is not the one that follows from ``double``.
    """
    values: list[Tensor] = []
    gradients: list[Tensor] = []
    blocks = args.tensor.blocks()
    if len(blocks) == 0:
        return values, gradients
    stored = blocks[0].values.dtype
    # A scale may underflow in half precision.
    working = torch.float64 if double or stored == torch.float64 else torch.float32
    wanted = working if double and multiply else stored
    if dtype is not None:
        wanted = dtype
    factor = args.factors[0]
    for i, block in enumerate(blocks):
        if i == 0 or len(args.factors) > 1:
            factor = _factor_of_block(args, i, working)
        n_atoms: Tensor | None = None
        if len(args.n_atoms) > 0:
            n_atoms = _cast(_of_block(args.n_atoms, i), working)
        baseline = args.baseline[i] if len(args.baseline) > 0 else None
        new = _rescale_values(_cast(block.values, working), factor, baseline, n_atoms, multiply)
        values.append(_cast(new, wanted))
        for parameter in block.gradients_list():
            gradient = block.gradient(parameter)
            samples = gradient.samples.values[:, 0]
            gradient_factor, gradient_n_atoms = factor, n_atoms
            if factor.size(0) != 1:
                gradient_factor = factor.index_select(0, samples)
            if n_atoms is not None:
                # Only a derivative with respect to the whole structure is per atom.
                per_atom = "atom" in gradient.samples.names
                gradient_n_atoms = None if per_atom else n_atoms.index_select(0, samples)
            gradient_baselines = args.gradient_baseline
            baseline = gradient_baselines[len(gradients)] if len(gradient_baselines) > 0 else None
            new = _rescale_values(
                _cast(gradient.values, working),
                gradient_factor,
                baseline,
                gradient_n_atoms,
                multiply,
            )
            gradients.append(_cast(new, wanted))
    return values, gradients


@scripted_arithmetic
def rescale(
    targets: list[ConversionArgs], multiply: bool, dtype: torch.dtype | None
) -> list[TensorMap]:
    """Each target with all its labels and other values, which autograd can follow.

    Args:
        targets: targets of a batch.
        multiply: towards physical space values are multiplied, then the baseline is added; away
            from it the baseline is subtracted, then they are divided.
        dtype: dtype of the result; that of the target by default, float64 for a target with a
            baseline towards physical space.
    """
    converted: list[TensorMap] = []
    for args in targets:
        values, gradients = rescale_target(args, multiply, len(args.baseline) > 0, dtype)
        converted.append(rebuild(args.tensor, values, gradients))
    return converted


def _physical_parts(args: ConversionArgs, tensor: TensorMap) -> list[Tensor]:
    """Values of each block, then of each gradient, times the scales: float64 ``(n_values,)``."""
    own_args = ConversionArgs(tensor, args.factors, args.scale_index, args.n_atoms, [], [])
    values, gradients = rescale_target(own_args, True, True, None)
    return [part.reshape(-1) for part in values + gradients]


@scripted_arithmetic
def physical_values(
    targets: list[ConversionArgs], predictions: list[TensorMap]
) -> list[tuple[list[int], list[str], list[Tensor], list[Tensor]]]:
    """Values of predictions and targets times the scales, where the target is not missing.

    Args:
        targets: targets, NaN where a value is missing, with their scales and no baseline.
        predictions: the prediction of each target, with the same labels.

    Returns:
        For each target the block index and the parameter of each gradient; then the values of the
        prediction and of the target for each block, followed by those of each gradient: float64
        ``(n_values,)``, detached.
    """
    found: list[tuple[list[int], list[str], list[Tensor], list[Tensor]]] = []
    sums: list[Tensor] = []
    with torch.no_grad():
        for i, args in enumerate(targets):
            predicted = _physical_parts(args, predictions[i])
            target = _physical_parts(args, args.tensor)
            blocks, parameters = gradients_of_blocks(args.tensor)
            found.append((blocks, parameters, predicted, target))
            sums.extend([part.sum() for part in target])
        # All at once, so that the host waits for a GPU only once.
        missing: list[bool] = torch.stack(sums).isnan().tolist() if len(sums) > 0 else []
        n = 0
        for _, _, predicted, target in found:
            for j in range(len(target)):
                if missing[n]:
                    present = ~target[j].isnan()
                    predicted[j], target[j] = predicted[j][present], target[j][present]
                n += 1
    return found


@scripted_arithmetic
def physical_error_sums(
    targets: list[ConversionArgs], predictions: list[TensorMap]
) -> tuple[list[list[tuple[int, str]]], Tensor]:
    """Sums over the errors of each block and gradient, times the scales; waits for no GPU.

    Args:
        targets: targets, NaN where a value is missing, with their scales and nothing else.
        predictions: the prediction of each target, with the same labels.

    Returns:
        For each target the block index and the parameter of its parts, ``""`` for values; and for
        each part the sum of the absolute errors, the sum of their squares and the number of values
        that are not missing, ``(n_parts, 3)`` float64, detached.
    """
    found: list[list[tuple[int, str]]] = []
    present: list[Tensor] = []
    errors: list[Tensor] = []
    with torch.no_grad():
        sums = torch.zeros([0, 3], dtype=torch.float64)
        factor = sums
        for i, args in enumerate(targets):
            parts: list[tuple[int, str]] = []
            predicted_blocks = predictions[i].blocks()
            for j, block in enumerate(args.tensor.blocks()):
                prediction = predicted_blocks[j]
                if j == 0 or len(args.factors) > 1:
                    factor = _factor_of_block(args, j, torch.float64)
                parameters = [""]
                parameters.extend(block.gradients_list())
                for parameter in parameters:
                    rows = factor
                    if parameter == "":
                        values, predicted = block.values, prediction.values
                    else:
                        gradient = block.gradient(parameter)
                        values = gradient.values
                        predicted = prediction.gradient(parameter).values
                        if factor.size(0) != 1:
                            rows = factor.index_select(0, gradient.samples.values[:, 0])
                    error = (predicted.to(torch.float64) - values) * _expandable(rows, values)
                    parts.append((j, parameter))
                    present.append(values.reshape(-1))
                    errors.append(error.reshape(-1))
            found.append(parts)
        if len(errors) > 0:
            missing = torch.cat(present).isnan()
            error = torch.cat(errors).masked_fill_(missing, 0.0)
            terms = torch.stack([error.abs(), error * error, (~missing).to(error.dtype)])
            sizes = [len(part) for part in present]
            sums = torch.stack([part.sum(1) for part in terms.split_with_sizes(sizes, 1)])
    return found, sums
