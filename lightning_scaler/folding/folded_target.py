"""What is folded, one scale and one shift per atomic type, and layers that the user names."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..scaling import Scaler
from ..settings import atomic_type, check_names, did_you_mean

ARGUMENTS = ("scales", "shifts", "types")


@dataclass(frozen=True)
class FoldedTarget:
    """The scale and the shifts of one target: physical = scale · model + Σ shifts.

    Attributes:
        target: name of the target.
        scale: per-target scale, in the units of the data.
        shifts: baseline weight of each atomic type, in the units of the data; empty without a
            baseline.
        missing: shift of types that are not in ``shifts``.
    """

    target: str
    scale: float
    shifts: dict[int, float]
    missing: float

    def table(self, types: Iterable[int]) -> Tensor:
        """The shifts of some atomic types, float64, ``(n_types,)``."""
        found = [self.shifts.get(one, self.missing) for one in types]
        return torch.tensor(found, dtype=torch.float64)


def read_targets(scaler: Scaler) -> dict[str, FoldedTarget]:
    """The scale and the shifts of every target of a scaler.

    Raises:
        ValueError: for a target that has more than these.
    """
    if scaler.additive is not None:
        raise ValueError(
            f"fold: the additive module {scaler.additive.name} cannot be written into layers; fold "
            "a module that was trained without it"
        )
    found = {}
    for name, scales in scaler.targets.items():
        n_scales = scales.types.numel()
        if n_scales > 1 or not scales.layout.single_property:
            what = f"one for each of {n_scales} atomic types" if n_scales > 1 else "several"
            raise ValueError(
                f"fold: target '{name}': expected one scale for its prediction, got {what}; only "
                "per-structure targets with one property can be folded"
            )
        if scales.unknown_types:
            raise ValueError(
                f"fold: target '{name}': the baseline weights of the atomic types "
                f"{scales.unknown_types} are unknown; give them as fixed_baseline and fit again"
            )
        weights = next(iter(scales.weights.values()), None)
        shifts = {}
        if weights is not None:
            shifts = dict(zip(scales.baseline_types.tolist(), weights[:, 0].tolist(), strict=True))
        unseen_is_error = shifts and scaler.settings.unseen_types != "identity"
        missing = torch.nan if unseen_is_error else 0.0
        found[name] = FoldedTarget(name, float(scales.per_target[0]), shifts, missing)
    return found


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
