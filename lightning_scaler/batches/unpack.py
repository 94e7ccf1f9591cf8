"""What a batch is understood to be."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from metatensor.torch import TensorMap

from ..tensors import is_tensormap
from .atoms import HasTypes
from .systems import IdentifiedSystems

MASK = "_mask"


class Batch(NamedTuple):
    """Systems of a batch, its targets and masks by target name."""

    systems: Sequence[HasTypes]
    targets: dict[str, TensorMap]
    masks: dict[str, TensorMap]


def unpack(batch: Any) -> Batch:
    """Take a batch apart.

    Args:
        batch: a mapping or named tuple with ``system`` (a sequence of systems) and TensorMaps
            under their names, ``<target>_mask`` being masks, as ``metatensor.learn.DataLoader``
            gives it, perhaps with the ``sample_id`` of every system; or a tuple
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
        named = {**batch[1], **{k: v for part in batch[2:] for k, v in part.items() if _mask(k)}}
    else:
        raise _not_understood(_types([batch]))
    if not isinstance(systems, Sequence) or not all(hasattr(s, "types") for s in systems):
        raise _not_understood(f"{_types([systems])} in the place of the systems")
    sample_id = named.get("sample_id")
    if isinstance(sample_id, Sequence) and all(isinstance(i, int) for i in sample_id):
        systems = IdentifiedSystems(systems, sample_id)
    tensors = {name: value for name, value in named.items() if is_tensormap(value)}
    return Batch(
        systems,
        {name: value for name, value in tensors.items() if not _mask(name)},
        {name.removesuffix(MASK): value for name, value in tensors.items() if _mask(name)},
    )


def _mask(name: str) -> bool:
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
