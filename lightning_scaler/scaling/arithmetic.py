"""The arithmetic of a conversion, for all values and gradients of a batch in one call."""

import torch
from metatensor.torch import TensorMap
from torch import Tensor

from ..tensors import gradients_of_blocks, rebuild, scripted_arithmetic


def _cast(numbers: Tensor, dtype: torch.dtype) -> Tensor:
    # A fifth of what a cast to the same dtype costs.
    return numbers if numbers.dtype == dtype else numbers.to(dtype)


def _in_shape(of_rows: Tensor, numbers: Tensor) -> Tensor:
    """What is known of rows, or of rows and properties, in a shape that expands to the numbers."""
    if of_rows.size(0) != 1:
        for _ in range(numbers.dim() - of_rows.dim()):
            of_rows = of_rows.unsqueeze(1)
    return of_rows


def _rescaled_numbers(
    numbers: Tensor,
    factor: Tensor,
    offset: Tensor | None,
    divisor: Tensor | None,
    to_physical: bool,
) -> Tensor:
    if offset is not None and not to_physical:
        numbers = numbers - offset
    factor = _in_shape(factor, numbers)
    numbers = numbers * factor if to_physical else numbers / factor
    if offset is not None and to_physical:
        numbers = numbers + offset
    if divisor is not None:
        numbers = numbers / _in_shape(divisor, numbers)
    return numbers


def _of_block(tensors: list[Tensor], i: int) -> Tensor:
    return tensors[i] if len(tensors) > 1 else tensors[0]


def _rescaled_target(
    tensor: TensorMap,
    factors: list[Tensor],
    kinds: list[Tensor],
    divisors: list[Tensor],
    offsets: list[Tensor | None],
    gradient_offsets: list[Tensor | None],
    to_physical: bool,
    double: bool,
    dtype: torch.dtype | None,
) -> tuple[list[Tensor], list[Tensor]]:
    """Values and gradients of one target; see :func:`rescaled`.

    ``double`` computes in float64, and leaves the result in it towards physical space.
    """
    values: list[Tensor] = []
    gradients: list[Tensor] = []
    blocks = tensor.blocks()
    if len(blocks) == 0:
        return values, gradients
    stored = blocks[0].values.dtype
    # A scale may underflow in half precision.
    working = torch.float64 if double or stored == torch.float64 else torch.float32
    wanted = working if double and to_physical else stored
    if dtype is not None:
        wanted = dtype
    factor = factors[0]
    for i, block in enumerate(blocks):
        if i == 0 or len(factors) > 1:
            factor = _cast(_of_block(factors, i), working)
            if len(kinds) > 0:
                factor = factor.index_select(0, _of_block(kinds, i))
        divisor: Tensor | None = None
        if len(divisors) > 0:
            divisor = _cast(_of_block(divisors, i), working)
        offset = offsets[i] if len(offsets) > 0 else None
        numbers = _rescaled_numbers(
            _cast(block.values, working), factor, offset, divisor, to_physical
        )
        values.append(_cast(numbers, wanted))
        for name in block.gradients_list():
            gradient = block.gradient(name)
            of_rows = gradient.samples.values[:, 0]
            own_factor, own_divisor = factor, divisor
            if factor.size(0) != 1:
                own_factor = factor.index_select(0, of_rows)
            if divisor is not None:
                # Per atom is a derivative with respect to the whole structure, no other.
                of_atoms = "atom" in gradient.samples.names
                own_divisor = None if of_atoms else divisor.index_select(0, of_rows)
            offset = gradient_offsets[len(gradients)] if len(gradient_offsets) > 0 else None
            numbers = _rescaled_numbers(
                _cast(gradient.values, working), own_factor, offset, own_divisor, to_physical
            )
            gradients.append(_cast(numbers, wanted))
    return values, gradients


@scripted_arithmetic
def rescaled(
    tensors: list[TensorMap],
    factors: list[list[Tensor]],
    kinds: list[list[Tensor]],
    divisors: list[list[Tensor]],
    offsets: list[list[Tensor | None]],
    gradient_offsets: list[list[Tensor | None]],
    to_physical: bool,
    dtype: torch.dtype | None,
) -> list[TensorMap]:
    """Each tensor with all its labels and other numbers, which autograd can follow.

    Towards physical space values are multiplied, and then the offset comes on; away from it the
    offset comes off, and then they are divided. For each tensor there is of everything one per
    block, or a single one that serves all blocks, or none where nothing is to be done.

    Args:
        tensors: without gradients of gradients.
        factors: of each kind of row, ``(n_kinds,)`` or ``(n_kinds, n_properties)``; of every row
            where there are no ``kinds``, or of all of them.
        kinds: the kind of each row (its atomic type), ``(n_samples,)`` integers.
        divisors: numbers of atoms that values are divided by in the end, ``(n_samples,)``, and
            gradients with respect to the whole structure (strain).
        offsets: of every block, in shapes that expand to those of the values, and ``None`` for
            blocks without. Tensors that have some are computed in float64, and stay it in physical
            space.
        gradient_offsets: likewise of every gradient, in the order of :func:`values_and_gradients`.
        to_physical: whether it goes towards physical space.
        dtype: of the result, if it is to be another one.
    """
    found: list[TensorMap] = []
    for i, tensor in enumerate(tensors):
        values, gradients = _rescaled_target(
            tensor,
            factors[i],
            kinds[i],
            divisors[i],
            offsets[i],
            gradient_offsets[i],
            to_physical,
            len(offsets[i]) > 0,
            dtype,
        )
        found.append(rebuild(tensor, values, gradients))
    return found


def _physical(tensor: TensorMap, factors: list[Tensor], kinds: list[Tensor]) -> list[Tensor]:
    nothing: list[Tensor | None] = []
    values, gradients = _rescaled_target(
        tensor, factors, kinds, [], nothing, nothing, True, True, None
    )
    return [numbers.reshape(-1) for numbers in values + gradients]


@scripted_arithmetic
def physical_entries(
    predictions: list[TensorMap],
    targets: list[TensorMap],
    factors: list[list[Tensor]],
    kinds: list[list[Tensor]],
) -> list[tuple[list[int], list[str], list[Tensor], list[Tensor]]]:
    """The numbers of predictions and targets times their factors, where the target is not missing.

    Args:
        predictions: with the labels of the targets.
        targets: NaN where an entry is missing.
        factors: for each target as of :func:`rescaled`.
        kinds: likewise.

    Returns:
        For each target the index of the block of each gradient, and its name; then the numbers of
        the prediction, and those of the target, of each block and after them of each gradient;
        float64 ``(n_entries,)``, detached.
    """
    found: list[tuple[list[int], list[str], list[Tensor], list[Tensor]]] = []
    sums: list[Tensor] = []
    with torch.no_grad():
        for i in range(len(targets)):
            predicted = _physical(predictions[i], factors[i], kinds[i])
            given = _physical(targets[i], factors[i], kinds[i])
            blocks, names = gradients_of_blocks(targets[i])
            found.append((blocks, names, predicted, given))
            sums.extend([numbers.sum() for numbers in given])
        # Asked for all together: the host waits for a GPU once.
        lacking: list[bool] = torch.stack(sums).isnan().tolist() if len(sums) > 0 else []
        n = 0
        for _, _, predicted, given in found:
            for j in range(len(given)):
                if lacking[n]:
                    present = ~given[j].isnan()
                    predicted[j], given[j] = predicted[j][present], given[j][present]
                n += 1
    return found
