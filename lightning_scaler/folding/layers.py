"""Scales and shifts written into layers that the user names."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..settings import atomic_type, check_names, did_you_mean
from .folded_target import FoldedTarget

ARGUMENTS = ("scales", "shifts", "types")


def write_layers(
    module: torch.nn.Module, targets: Mapping[str, FoldedTarget], layers: Mapping[str, Any]
) -> None:
    """Multiply and shift the named tensors of a module.

    Args:
        module: module to change.
        targets: scale and shifts by target name.
        layers: for each target a dict with ``scales``, ``shifts`` and ``types``; see
            :func:`lightning_scaler.fold`.

    Raises:
        TypeError, ValueError: for a target that is missing, or a tensor that is not there.
    """
    check_names("layers", layers, targets)
    for name, one in targets.items():
        where = f"layers, '{name}'"
        found = layers.get(name)
        if not isinstance(found, Mapping) or "scales" not in found:
            raise ValueError(
                f"{where}: expected a dict such as {{'scales': ['out.weight', 'out.bias'], "
                f"'shifts': 'references'}}, got {found!r}"
            )
        for argument in found:
            if argument not in ARGUMENTS:
                raise ValueError(
                    f"{where}: unknown name '{argument}'; {did_you_mean(str(argument), ARGUMENTS)}"
                )
        scales = found["scales"]
        for path in [scales] if isinstance(scales, str) else scales:
            tensor = _tensor(module, where, path)
            tensor.copy_(tensor.double() * one.scale)
        if "shifts" in found:
            _write_shifts(_tensor(module, where, found["shifts"]), where, one, found.get("types"))
        elif any(one.shifts.values()):
            raise ValueError(
                f"{where}: the target has a baseline; name the table that holds a term for each "
                "atomic type as 'shifts'"
            )


def _write_shifts(
    table: Tensor, where: str, one: FoldedTarget, types: Sequence[Any] | None
) -> None:
    types = range(len(table)) if types is None else [atomic_type(where, z) for z in types]
    if len(types) != len(table) or table.numel() != len(table):
        raise ValueError(
            f"{where}: expected a table with one number for each of {len(types)} atomic types, got "
            f"the shape {tuple(table.shape)}; name the type of each row as 'types'"
        )
    shifts = one.table(types).to(table.device).reshape(table.shape)
    table.copy_(table.double() * one.scale + shifts)


def _tensor(module: torch.nn.Module, where: str, path: str) -> Tensor:
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    if path not in tensors:
        raise ValueError(
            f"{where}: {type(module).__name__} has no parameter or buffer '{path}'; "
            f"{did_you_mean(str(path), tensors)}"
        )
    return tensors[path].data
