"""The random states that a data pass must not change."""

import functools
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from lightning.fabric.utilities.seed import _collect_rng_states, _set_rng_states

# Attributes under which loaders, samplers, datasets and functions hold further parts.
PARTS = (
    "batch_sampler",
    "collate_fn",
    "data_source",
    "dataset",
    "datasets",
    "sampler",
    "_sampler",
    "transform",
    "transforms",
    "worker_init_fn",
)


class RandomStates:
    """The random states of python, numpy and torch, and of the generators of some loaders.

    A generator of torch, numpy or python is found if it is an attribute of a loader, its dataset
    (or one inside a ``Subset`` or ``ConcatDataset``), its ``transform``, collate function, sampler
    or batch sampler, or an argument of a ``functools.partial``.

    Args:
        loaders: loaders, whose states are read now.
    """

    def __init__(self, loaders: list[Any] | None = None) -> None:
        self._states = _collect_rng_states()
        seen: dict[int, Any] = {}
        for loader in loaders or []:
            _collect_parts(loader, seen)
        attributes = (value for part in seen.values() for value in _attributes(part).values())
        generators = {id(value): value for value in (*seen.values(), *attributes)}
        self._restore = [
            restore for value in generators.values() if (restore := _restorer(value)) is not None
        ]

    def restore(self) -> None:
        """Set all states to what they were when this was made."""
        _set_rng_states(self._states)
        for restore in self._restore:
            restore()


@contextmanager
def preserve_rng(loaders: list[Any]) -> Iterator[None]:
    """Restore the global random states and those of the loaders on exit, after an error too."""
    states = RandomStates(loaders)
    try:
        yield
    finally:
        states.restore()


def seed_globals() -> None:
    """Seed python, numpy and torch with 0, as workers of a loader are seeded."""
    random.seed(0)
    torch.manual_seed(0)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)


def _collect_parts(part: Any, seen: dict[int, Any]) -> None:
    """Add a part of a loader, and everything that it holds, by ``id``."""
    if part is None or id(part) in seen:
        return
    seen[id(part)] = part
    if isinstance(part, (list, tuple)):
        for member in part if len(part) < 100 else ():
            _collect_parts(member, seen)
    elif isinstance(part, MethodType):
        _collect_parts(part.__self__, seen)
    elif isinstance(part, functools.partial):
        for member in (part.func, *part.args, *part.keywords.values()):
            _collect_parts(member, seen)
    attributes = _attributes(part)
    for name in PARTS:
        _collect_parts(attributes.get(name), seen)


def _attributes(part: Any) -> dict[str, Any]:
    # Not `getattr`, which may call properties, or read data.
    return getattr(part, "__dict__", {})


def _restorer(value: Any) -> Callable[[], Any] | None:
    """A function that restores a generator; ``None`` for any other value."""
    if isinstance(value, random.Random):
        return functools.partial(value.setstate, value.getstate())
    if isinstance(value, torch.Generator):
        return functools.partial(value.set_state, value.get_state())
    if any(base.__module__.startswith("numpy.random") for base in type(value).__mro__):
        if hasattr(value, "bit_generator"):
            value = value.bit_generator
        if hasattr(value, "get_state"):
            return functools.partial(value.set_state, value.get_state())
        if hasattr(value, "random_raw"):  # a SeedSequence also has a state, which is constant
            return functools.partial(setattr, value, "state", value.state)
    return None
