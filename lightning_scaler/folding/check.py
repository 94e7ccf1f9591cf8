"""The predictions of a module before and after its scales were folded into its layers."""

from collections.abc import Iterator, Mapping

import torch
from metatensor.torch import TensorMap
from torch import Tensor

from ..scaling import term_name
from ..tensors import values_and_gradients
from .folded_target import FoldedTarget

# In double precision, relative to the largest value.
EXACT = 1e-12
# In lower precision, in units of the scale.
ROUNDING = 1e-3
# Errors beyond this many units in the last place of the largest value are not rounding errors.
ULPS = 256


def check_predictions(
    before: Mapping[str, TensorMap],
    after: Mapping[str, TensorMap],
    targets: Mapping[str, FoldedTarget],
    n_atoms: Tensor,
    dtype: torch.dtype,
    allow_rounding: bool,
    ties: str = "",
) -> str:
    """Compare predictions of a module with those of the folded module.

    Args:
        before: predictions in physical units by target name.
        after: the same of the folded module.
        targets: what was folded.
        n_atoms: number of atoms of each structure, ``(n_structures,)``.
        dtype: dtype in which the network computes.
        allow_rounding: accept rounding errors that are larger than a thousandth of the scale.
        ties: other names of what was multiplied, for the message.

    Returns:
        The largest differences, in words.

    Raises:
        ValueError: if they are too large.
    """
    words = []
    for name, one in targets.items():
        for label, first, second in _pairs(name, before[name], after[name]):
            difference = (second.double() - first.double()).abs()
            error, size = float(difference.max()), float(first.abs().max())
            described = f"{label} {error:.1e} of {size:.1e}"
            # Forces by autograd have the precision of the positions, not that of the network.
            single = torch.equal(second, second.float().to(second.dtype))
            if dtype == torch.float64 and not single:
                # Forces may vanish by symmetry.
                largest, exact = EXACT * max(size, one.scale), True
            else:
                # Totals grow with the number of atoms, and so does their scale.
                per_atom = n_atoms.reshape(-1, 1) if label == name else 1
                error = float((difference / per_atom).max())
                largest, exact = ROUNDING * one.scale, False
                if allow_rounding:
                    largest = max(largest, ULPS * torch.finfo(dtype).eps * size)
            if not error <= largest:
                raise ValueError(_describe_error(described, one, exact, allow_rounding) + ties)
            words.append(described)
    return ", ".join(words)


def _pairs(name: str, before: TensorMap, after: TensorMap) -> Iterator[tuple[str, Tensor, Tensor]]:
    """The values and the gradients of a target, which has one block, before and after."""
    names = [term_name(name, parameter) for parameter in ("", *before.block().gradients_list())]
    values, gradients = values_and_gradients(before)
    new_values, new_gradients = values_and_gradients(after)
    old, new = values + gradients, new_values + new_gradients
    return zip(names, (t.detach() for t in old), (t.detach() for t in new), strict=True)


def _describe_error(described: str, one: FoldedTarget, exact: bool, allow_rounding: bool) -> str:
    problem = f"fold: the folded module predicts something else, by at most {described}"
    if exact or allow_rounding:
        return (
            f"{problem}, which is more than rounding; the layers do not multiply and shift the "
            "prediction alone, or the table of shifts has no row for a type, so nothing was folded"
        )
    return (
        f"{problem}, which is more than {ROUNDING:g} of the scale {one.scale:.3g}; if this is "
        "rounding, convert the module to float64 first, or accept it with allow_rounding=True"
    )
