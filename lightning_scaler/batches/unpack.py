"""A batch taken apart into systems, targets and masks."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from metatensor.torch import TensorMap

from ..tensors import is_tensormap
from .systems import HasTypes, IdentifiedSystems

MASK = "_mask"


class Batch(NamedTuple):
    """The systems of a batch, with targets and masks by target name."""

    systems: Sequence[HasTypes]
    targets: dict[str, TensorMap]
    masks: dict[str, TensorMap]


def unpack(batch: Any) -> Batch:
    """Take a batch apart.

    Args:
        batch: a mapping or named tuple with ``system`` (a sequence of systems) and TensorMaps
            under their names, ``<target>_mask`` being masks, as ``metatensor.learn.DataLoader``
            returns it, perhaps with a ``sample_id`` for every system; or a tuple
            ``(systems, targets)`` or ``(systems, targets, extra)``.

    Raises:
        TypeError: for anything else.
    """
    if isinstance(batch, tuple) and hasattr(batch, "_asdict"):
        batch = batch._asdict()
    if isinstance(batch, Mapping):
        if "system" not in batch:
            raise _not_understood(f"a mapping with the names {sorted(map(str, batch))}")
        systems, named = batch["system"], batch
    elif isinstance(batch, (tuple, list)) and len(batch) in (2, 3):
        systems = batch[0]
        if not all(isinstance(part, Mapping) for part in batch[1:]):
            raise _not_understood(f"a {type(batch).__name__} of {_types(batch)}")
        extra = {k: v for part in batch[2:] for k, v in part.items() if _is_mask(k)}
        named = {**batch[1], **extra}
    else:
        raise _not_understood(_types([batch]))
    if not isinstance(systems, Sequence) or not all(hasattr(s, "types") for s in systems):
        contents = f" of {_types(systems[:1])}" if isinstance(systems, (list, tuple)) else ""
        raise _not_understood(f"{_types([systems])}{contents} in the place of the systems")
    sample_id = named.get("sample_id")
    if isinstance(sample_id, Sequence) and all(isinstance(i, int) for i in sample_id):
        systems = IdentifiedSystems(systems, sample_id)
    tensors = {name: value for name, value in named.items() if is_tensormap(value)}
    return Batch(
        systems,
        {name: value for name, value in tensors.items() if not _is_mask(name)},
        {name.removesuffix(MASK): value for name, value in tensors.items() if _is_mask(name)},
    )


def _is_mask(name: str) -> bool:
    return name.endswith(MASK)


def _types(values: Sequence[Any]) -> str:
    return ", ".join(type(value).__name__ for value in values)


def _not_understood(got: str) -> TypeError:
    return TypeError(
        "expected a batch that is a mapping or named tuple with 'system' (a sequence of systems) "
        "and TensorMaps under their names, or a tuple (systems, targets) or (systems, targets, "
        f"extra), got {got}; override unpack_batch(batch) -> (systems, targets, masks) on the "
        "module"
    )
