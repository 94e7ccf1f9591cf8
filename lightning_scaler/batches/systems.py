"""The systems of a batch, with the atoms that were read from them or their ids in the dataset."""

from abc import abstractmethod
from collections.abc import Sequence
from operator import is_
from typing import TYPE_CHECKING, Any, Protocol, overload

from ..tensors import script_class_name

if TYPE_CHECKING:
    from .atoms import Atoms


class HasTypes(Protocol):
    """A system: it needs a type for every atom, and the number of atoms as its length."""

    @property
    def types(self) -> Any:
        """Atomic types, ``(n_atoms,)`` integers."""

    def __len__(self) -> int:
        """Return the number of atoms."""


def is_system(value: Any) -> bool:
    """Whether ``value`` is a metatomic ``System``."""
    return script_class_name(value) == "System"


class LazySystems(Sequence[Any]):
    """Systems that are made when one of them is used."""

    @property
    @abstractmethod
    def _systems(self) -> Sequence[Any]:
        """All systems."""

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Any]: ...
    def __getitem__(self, index: int | slice) -> Any:
        return self._systems[index]


class OwnBatch(LazySystems):
    """A batch of the user's own as the sequence of its systems; Lightning moves its tensors."""

    @property
    @abstractmethod
    def atoms(self) -> "Atoms":
        """The atoms of the batch."""


class ReadSystems(list[Any]):
    """The systems of a batch on a device, with their atoms as read before the move.

    Args:
        systems: systems on the device.
        atoms: their atoms, on the device; ``None`` if they have not been read.
    """

    def __init__(self, systems: Sequence[HasTypes] = (), atoms: "Atoms | None" = None) -> None:
        super().__init__(systems)
        self._as_read = tuple(systems)
        self._atoms = atoms

    def attach_atoms(self, atoms: "Atoms") -> None:
        """Set the atoms, on the device of the systems."""
        self._atoms = atoms

    @property
    def unchanged(self) -> bool:
        """Whether the list still holds the systems that were read."""
        return len(self) == len(self._as_read) and all(map(is_, self, self._as_read))

    @property
    def atoms(self) -> "Atoms | None":
        """The atoms as read; ``None`` if there are none, or the list has changed."""
        return self._atoms if self.unchanged else None


class IdentifiedSystems(ReadSystems):
    """The systems of a batch with their ids in the dataset.

    Args:
        systems: systems of the batch.
        sample_id: the id of each system, an integer.

    Raises:
        ValueError: unless there is one id for each system.
    """

    def __init__(self, systems: Sequence[HasTypes], sample_id: Sequence[int]) -> None:
        if len(systems) != len(sample_id):
            raise ValueError(
                f"expected a sample_id for each of the {len(systems)} systems of the batch, got "
                f"{len(sample_id)}"
            )
        super().__init__(systems, systems.atoms if isinstance(systems, ReadSystems) else None)
        self._sample_id = tuple(sample_id)

    @property
    def sample_id(self) -> tuple[int, ...]:
        """The id of each system.

        Raises:
            ValueError: if the list has changed.
        """
        if not self.unchanged:
            raise ValueError(
                "expected the systems of the batch as they came with their sample_id, got a list "
                "that has changed since; give a new list, with the sample_id left out or as "
                "IdentifiedSystems(systems, sample_id)"
            )
        return self._sample_id
