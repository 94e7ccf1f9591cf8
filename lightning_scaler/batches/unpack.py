"""A batch taken apart into systems, targets and masks."""

import operator
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from metatensor.torch import TensorMap

from ..tensors import is_tensormap, script_class_name
from .ignored_values import BatchTargets, check_masks, find_plain_values
from .joined import join_batches
from .systems import HasTypes, IdentifiedSystems, ReadSystems

MASK = "_mask"


class Batch(NamedTuple):
    """The systems of a batch, with targets and masks by target name."""

    systems: Sequence[HasTypes]
    targets: Mapping[str, TensorMap]
    masks: Mapping[str, TensorMap]

    def with_tensors_on_cpu(self) -> "Batch":
        """The same batch with its targets and masks on the CPU."""
        targets, masks = (
            {
                name: tensor.to(device="cpu") if is_tensormap(tensor) else tensor
                for name, tensor in tensors.items()
            }
            for tensors in (self.targets, self.masks)
        )
        if isinstance(self.targets, BatchTargets):
            targets = BatchTargets(targets, self.targets.plain_values)
        return Batch(self.systems, targets, masks)


def unpack(batch: Any) -> Batch:
    """Take a batch apart.

    Args:
        batch: a mapping or named tuple with ``system`` (a sequence of systems) and TensorMaps
            under their names, ``<target>_mask`` being masks, as ``metatensor.learn.DataLoader``
            returns it, perhaps with a ``sample_id`` for every system; a tuple
            ``(systems, targets)`` or ``(systems, targets, extra)``, of which ``extra`` may hold
            masks and a ``sample_id``; or the batches of several loaders, in a mapping or a list,
            which are joined.

    Raises:
        TypeError: for anything else, and for a mask that is not a TensorMap.
    """
    if isinstance(batch, tuple) and hasattr(batch, "_asdict"):
        batch = batch._asdict()
    parts = _batches_of_loaders(batch)
    if parts:
        return _join([unpack(part) for part in parts])
    extra: Mapping[Any, Any] = {}
    if isinstance(batch, Mapping):
        if "system" not in batch:
            raise _not_understood(f"a mapping with the names {sorted(map(str, batch))}")
        systems, named = batch["system"], batch
    elif isinstance(batch, (tuple, list)) and len(batch) in (2, 3):
        systems, *parts = batch
        parts = [part._asdict() if hasattr(part, "_asdict") else part for part in parts]
        if not all(isinstance(part, Mapping) for part in parts):
            raise _not_understood(f"a {type(batch).__name__} of {_types(batch)}")
        named, extra = parts[0], parts[1] if len(parts) == 2 else {}
    else:
        raise _not_understood(_types([batch]))
    _check_systems(systems)
    check_masks(named, extra, MASK)
    sample_id = _integers(named.get("sample_id", extra.get("sample_id")))
    if sample_id is not None:
        systems = IdentifiedSystems(systems, sample_id)
    tensors = {name: value for name, value in named.items() if is_tensormap(value)}
    extras = {name: value for name, value in extra.items() if is_tensormap(value)}
    targets = {name: value for name, value in tensors.items() if not _is_mask(name)}
    masks = {
        name.removesuffix(MASK): value
        for name, value in {**tensors, **extras}.items()
        if _is_mask(name)
    }
    return Batch(systems, BatchTargets(targets, find_plain_values(named)), masks)


def check_unpacked(where: str, unpacked: Any) -> Batch:
    """What an ``unpack_batch`` returned; the masks may be left out.

    Args:
        where: the method, for messages.
        unpacked: what it returned.

    Raises:
        TypeError: for anything but ``(systems, targets)`` or ``(systems, targets, masks)``.
    """
    if isinstance(unpacked, Batch):
        return unpacked
    if not isinstance(unpacked, (tuple, list)) or len(unpacked) not in (2, 3):
        contents = ""
        if isinstance(unpacked, (tuple, list)):
            contents = f" of {len(unpacked)} ({_types(unpacked)})"
        raise TypeError(
            f"{where}: expected to return (systems, targets, masks), of which masks may be left "
            f"out, got {type(unpacked).__name__}{contents}"
        )
    systems, targets, *others = unpacked
    masks = others[0] if others and others[0] is not None else {}
    _check_systems(systems, where)
    for what, part in (("targets", targets), ("masks", masks)):
        if not isinstance(part, Mapping):
            raise TypeError(
                f"{where}: expected {what} that are a dict of TensorMaps by target name, got "
                f"{_types([part])}"
            )
    return Batch(systems, targets, masks)


def _join(batches: list[Batch]) -> Batch:
    systems, targets, masks = join_batches(batches)
    plain_values: dict[str, str] = {}
    for batch in batches:
        plain_values |= cast(BatchTargets, batch.targets).plain_values
    return Batch(systems, BatchTargets(targets, plain_values), masks)


def _batches_of_loaders(batch: Any) -> list[Any]:
    """The batches of several loaders; empty for any other batch, and for one that has ended."""
    parts: list[Any] = []
    if isinstance(batch, Mapping) and "system" not in batch:
        parts = list(batch.values())
    elif isinstance(batch, list) or (isinstance(batch, tuple) and not hasattr(batch, "_fields")):
        parts = list(batch)
    parts = [part for part in parts if part is not None]
    return parts if all(map(_is_batch, parts)) else []


def _is_batch(part: Any) -> bool:
    if isinstance(part, Mapping):
        return "system" in part
    if isinstance(part, tuple) and hasattr(part, "_fields"):
        return "system" in part._fields
    return (
        isinstance(part, (tuple, list))
        and len(part) in (2, 3)
        and isinstance(part[0], (tuple, list))
        and all(isinstance(other, Mapping) for other in part[1:])
    )


def _check_systems(systems: Any, where: str = "") -> None:
    if isinstance(systems, ReadSystems) and systems.atoms is not None:
        return
    if isinstance(systems, Sequence) and all(hasattr(system, "types") for system in systems):
        return
    contents = f" of {_types(systems[:1])}" if isinstance(systems, (list, tuple)) else ""
    got = f"{_types([systems])}{contents} in the place of the systems"
    if where:
        raise TypeError(
            f"{where}: expected a list of systems with .types first, then targets, then masks, got "
            f"{got}"
        )
    raise _not_understood(got)


def _integers(values: Any) -> list[int] | None:
    """The values as a list, ``None`` unless they are a sequence, or a tensor, of integers."""
    if isinstance(values, torch.Tensor) or hasattr(values, "tolist"):
        values = values.reshape(-1).tolist()
    if not isinstance(values, Sequence) or isinstance(values, (str, bytes)):
        return None
    try:
        return [operator.index(value) for value in values]
    except TypeError:
        return None


def _is_mask(name: Any) -> bool:
    return isinstance(name, str) and name.endswith(MASK)


def _types(values: Sequence[Any]) -> str:
    return ", ".join(script_class_name(value) or type(value).__name__ for value in values)


def _not_understood(got: str) -> TypeError:
    return TypeError(
        "expected a batch that is a mapping or named tuple with 'system' (a sequence of systems) "
        "and TensorMaps under their names, or a tuple (systems, targets) or (systems, targets, "
        f"extra), got {got}; declare targets that are plain tensors: TargetScaler(targets="
        "{'energy': PerStructure(), …}); for others, override unpack_batch(batch) -> (systems, "
        "targets, masks) on the module"
    )
