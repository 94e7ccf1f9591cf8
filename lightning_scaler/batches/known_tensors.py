"""What has been found out about the TensorMaps of a batch, so that nobody looks twice."""

import weakref
from typing import Any, NamedTuple

from metatensor.torch import TensorMap

from ..tensors import TargetLayout

# Those that are gone may be so many.
ROOM = 64


class Known(NamedTuple):
    """What has been found out about one TensorMap.

    Attributes:
        usual: whether each block has a row for every system, or every atom, in order.
        layout: just the blocks of which it has, with nothing to complain of, if one is known.
        original: a TensorMap with the same labels where the systems were read, if it is elsewhere.
    """

    usual: bool
    layout: TargetLayout | None = None
    original: "TensorMap | None" = None


class KnownTensors:
    """What is known of TensorMaps, for as long as these live; they are told apart by identity.

    What was found out about their labels stays true, as nobody writes into these. (TensorMaps are
    neither hashed nor compared, as a ``WeakKeyDictionary`` would do.)
    """

    def __init__(self) -> None:
        self._entries: dict[int, tuple[weakref.ref[TensorMap], Known]] = {}
        self._room = ROOM

    def get(self, tensor: TensorMap) -> Known | None:
        """What is known of a TensorMap; ``None`` of a new one."""
        entry = self._entries.get(id(tensor))
        return entry[1] if entry is not None and entry[0]() is tensor else None

    def learn(self, tensor: TensorMap, known: Known) -> None:
        """Keep what has been found out, instead of what was known before."""
        if len(self._entries) >= self._room:
            # Cheaper than to be called by each that goes.
            living = {n: entry for n, entry in self._entries.items() if entry[0]() is not None}
            self._entries, self._room = living, ROOM + 2 * len(living)
        self._entries[id(tensor)] = weakref.ref(tensor), known

    def learn_same(self, tensor: TensorMap, other: TensorMap) -> None:
        """Keep for a TensorMap what is known of another one with the same labels."""
        known = self.get(other)
        if known is not None:
            self.learn(tensor, known)

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy is of other TensorMaps.
        return KnownTensors, ()
