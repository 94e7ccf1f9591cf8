"""The systems of a batch with what has been read of them, or what the batch says of them."""

from collections.abc import Sequence
from operator import is_
from typing import Any

from .atoms import Atoms, HasTypes


class ReadSystems(list[Any]):
    """The systems of a batch on a device, their atoms having been read before they were moved.

    Args:
        systems: on the device.
    """

    def __init__(self, systems: Sequence[HasTypes] = ()) -> None:
        super().__init__(systems)
        self._as_read = tuple(systems)
        self._atoms: Atoms | None = None

    def take(self, atoms: Atoms | None) -> None:
        """Keep what was read, on the device too."""
        self._atoms = atoms

    @property
    def unchanged(self) -> bool:
        """Whether these are still the systems that were read."""
        return len(self) == len(self._as_read) and all(map(is_, self, self._as_read))

    @property
    def atoms(self) -> Atoms | None:
        """What was read; ``None`` for copies that others make, and once the list has changed."""
        return self._atoms if self.unchanged else None


class IdentifiedSystems(ReadSystems):
    """The systems of a batch that says which of the data set they are.

    Args:
        systems: of the batch.
        sample_id: the id of each, an integer.
    """

    def __init__(self, systems: Sequence[HasTypes], sample_id: Sequence[int]) -> None:
        if len(systems) != len(sample_id):
            raise ValueError(
                f"expected a sample_id for each of the {len(systems)} systems of the batch, got "
                f"{len(sample_id)}"
            )
        super().__init__(systems)
        self.take(getattr(systems, "atoms", None))
        self._sample_id = tuple(sample_id)

    @property
    def sample_id(self) -> tuple[int, ...]:
        """The id of each system.

        Raises:
            ValueError: once the list has changed.
        """
        if not self.unchanged:
            raise ValueError(
                "expected the systems of the batch as they came with their sample_id, got a list "
                "that has changed since; give a new list, with the sample_id left out or as "
                "IdentifiedSystems(systems, sample_id)"
            )
        return self._sample_id
