"""What is folded, scales and shifts, and where: in named layers, or in those of a project."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..plain_tensors import Declaration
from ..scaling import Scaler
from ..settings import atomic_type, check_names, did_you_mean, list_of_names

ARGUMENTS = ("scales", "shifts", "types")
EXAMPLE = "{'scales': ['out.weight', 'out.bias'], 'shifts': 'references'}"


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


class Preset(ABC):
    """A project for whose modules :func:`lightning_scaler.fold` needs no names of layers."""

    @abstractmethod
    def recognises(self, source: Any) -> bool:
        """Whether a module, or the content of a checkpoint, is of this project."""

    @abstractmethod
    def module_class(self, checkpoint: Any) -> Any:
        """The class of the module in a checkpoint."""

    def batch(self, path: Any) -> Any:
        """A batch for the module in a checkpoint; ``None`` if it does not say where data are."""
        return None

    def predict(self, module: Any, batch: Any) -> Any:
        """The output of a module for a batch, which has the predictions: that of ``forward``."""
        return module(batch)

    @abstractmethod
    def write(
        self, module: Any, targets: Mapping[str, FoldedTarget], declaration: Declaration
    ) -> None:
        """Write scales and shifts into the layers of a module, and into its hyperparameters.

        Raises:
            ValueError: where they have no place.
        """


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
    if not isinstance(layers, Mapping):
        raise TypeError(f"layers: expected {{'energy': {EXAMPLE}}}, got {layers!r}")
    check_names("layers", layers, targets)
    tensors = _tensors(module)
    for name, one in targets.items():
        where = f"layers, '{name}'"
        found = layers.get(name)
        if not isinstance(found, Mapping) or not found.get("scales"):
            raise ValueError(f"{where}: expected a dict such as {EXAMPLE}, got {found!r}")
        for argument in found:
            if argument not in ARGUMENTS:
                raise ValueError(
                    f"{where}: unknown name '{argument}'; {did_you_mean(str(argument), ARGUMENTS)}"
                )
        paths = _paths(where, found["scales"])
        named = [_find(module, tensors, where, path) for path in paths]
        _check_distinct(where, paths, named)
        for tensor in named:
            tensor.copy_(tensor.double() * one.scale)
        if "shifts" in found:
            table = _find(module, tensors, where, found["shifts"])
            _write_shifts(table, where, one, found.get("types"))
        elif any(one.shifts.values()):
            raise ValueError(
                f"{where}: the target has a baseline; name the table that holds a term for each "
                "atomic type as 'shifts'"
            )


def describe_ties(module: torch.nn.Module, layers: Mapping[str, Any] | None) -> str:
    """The other names of the named tensors that have several, as the end of a message."""
    tensors, words = _tensors(module), []
    for name, found in (layers or {}).items():
        for path in _paths(name, found["scales"]):
            others = [name for name, t in tensors.items() if t is tensors[path] and name != path]
            words += [f"'{path}' is tied to '{other}', which is multiplied too" for other in others]
    return "".join(f"; {word}" for word in words)


def _paths(where: str, scales: Any) -> Sequence[str]:
    return [scales] if isinstance(scales, str) else list_of_names(f"{where}, 'scales'", scales)


def _write_shifts(
    table: Tensor, where: str, one: FoldedTarget, types: Sequence[Any] | None
) -> None:
    if types is not None and (isinstance(types, str) or not isinstance(types, Iterable)):
        raise TypeError(
            f"{where}: expected the type of each row as 'types', such as ['H', 8], got {types!r}"
        )
    types = range(len(table)) if types is None else [atomic_type(where, z) for z in types]
    if len(types) != len(table) or table.numel() != len(table):
        raise ValueError(
            f"{where}: expected a table with one number for each of {len(types)} atomic types, got "
            f"the shape {tuple(table.shape)}; name the type of each row as 'types'"
        )
    shifts = one.table(types).to(table.device).reshape(table.shape)
    table.copy_(table.double() * one.scale + shifts)


def _tensors(module: torch.nn.Module) -> dict[str, Tensor]:
    """The parameters and buffers by name; those that are tied have several names."""
    return {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }


def _find(module: torch.nn.Module, tensors: Mapping[str, Tensor], where: str, path: Any) -> Tensor:
    if not isinstance(path, str):
        raise TypeError(f"{where}: expected the name of a parameter or buffer, got {path!r}")
    if path not in tensors:
        raise ValueError(
            f"{where}: {type(module).__name__} has no parameter or buffer '{path}'; "
            f"{did_you_mean(path, tensors)}"
        )
    return tensors[path]


def _check_distinct(where: str, paths: Sequence[str], tensors: Sequence[Tensor]) -> None:
    """Refuse a tensor that is named twice, under the names of a tie too."""
    for i, tensor in enumerate(tensors):
        for path, other in zip(paths[:i], tensors, strict=False):
            if other is tensor:
                raise ValueError(
                    f"{where}: '{path}' and '{paths[i]}' are one tensor, which would be multiplied "
                    "twice; name it once"
                )
