"""A batch's atoms: types, counts, and which atom each sample row belongs to."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from typing import Any, Protocol, TypeVar

import torch
from metatensor.torch import Labels, TensorMap

from ..tensors import has_rows, have_rows, is_system, scripted, scripted_arithmetic
from .atomic_types import find_types, index_among, occurring
from .known_tensors import Known, KnownTensors

Name = TypeVar("Name", str, int)


class HasTypes(Protocol):
    """What is asked of a system: a length and a type per atom."""

    @property
    def types(self) -> Any:
        """Atomic types, ``(n_atoms,)`` integers."""

    def __len__(self) -> int:
        """Return the number of atoms."""


@dataclass(frozen=True)
class Atoms:
    """The atoms of a batch of systems, one after the other.

    What is worked out from them is kept, and serves all targets and all parts of a step.

    Attributes:
        types: atomic type of every atom, ``(n_atoms,)`` int64.
        counts: number of atoms of every system, ``(n_systems,)`` int64.
        sample_id: the id of every system in the data set, ``(n_systems,)``, where the batch says.
        systems: the systems themselves, wherever they are.
        known: what has been found out about TensorMaps of the batch.
    """

    types: torch.Tensor
    counts: torch.Tensor
    sample_id: torch.Tensor | None = None
    systems: Sequence[HasTypes] = field(default=(), repr=False)
    known: KnownTensors = field(default_factory=KnownTensors, repr=False, compare=False)

    @classmethod
    def from_systems(cls, systems: Sequence[HasTypes]) -> "Atoms":
        """Read types and lengths, the only things asked of a system, unless they have been read."""
        read: Atoms | None = getattr(systems, "atoms", None)
        if read is not None:
            return read._of(systems)
        types, counts, kinds, smallest = _read(systems)
        if types.device.type == "meta":
            raise ValueError("expected systems with data, got systems on the meta device")
        if smallest < 0:
            raise ValueError(f"expected non-negative atomic types, got {smallest} in the systems")
        sample_id = getattr(systems, "sample_id", None)
        atoms = cls(
            types=types,
            counts=counts,
            sample_id=None if sample_id is None else torch.tensor(sample_id, device=types.device),
            systems=systems,
        )
        vars(atoms)["kinds"] = kinds.cpu()
        return atoms

    def _of(self, systems: Sequence[HasTypes]) -> "Atoms":
        """The same atoms, of these systems."""
        sample_id = getattr(systems, "sample_id", None)
        if sample_id is None:
            return self.changed(systems=systems)
        ids = torch.tensor(sample_id)
        atoms = self.changed(
            systems=systems, sample_id=ids.to(self.types.device, non_blocking=True)
        )
        # Compared here, so that nobody waits for another device.
        vars(atoms)["usual_ids"] = torch.equal(ids, torch.arange(len(ids)))
        return atoms

    def changed(self, **attributes: Any) -> "Atoms":
        """A copy with other attributes, for which all that has been worked out still holds."""
        copy = replace(self, **attributes)
        new = {name: value for name, value in vars(self).items() if name not in vars(copy)}
        vars(copy).update(new)
        return copy

    def __len__(self) -> int:
        """Return the number of systems."""
        return self.counts.numel()

    def to(self, device: torch.device | str) -> "Atoms":
        """The same atoms on another device."""
        if self.types.device == torch.device(device):
            return self
        ids = self.sample_id
        moved = Atoms(
            self.types.to(device, non_blocking=True),
            self.counts.to(device, non_blocking=True),
            None if ids is None else ids.to(device, non_blocking=True),
            self.systems,
            self.known,
        )
        vars(moved)["host"] = self.host
        if self.types.device.type == "cpu":
            # Found here, so that nobody waits for the other device.
            vars(moved)["kinds"] = self.kinds
            vars(moved)["kind_of_atom"] = self.kind_of_atom.to(device, non_blocking=True)
            vars(moved)["usual_ids"] = self.usual_ids
        return moved

    @cached_property
    def offsets(self) -> torch.Tensor:
        """Index of the first atom of every system, ``(n_systems,)`` int64."""
        return self.counts.cumsum(0) - self.counts

    @cached_property
    def divisors(self) -> torch.Tensor:
        """Number of atoms of every system, float64 ``(n_systems,)``; NaN where there is none."""
        counts = self.counts.double()
        return torch.where(counts > 0, counts, torch.nan)

    @cached_property
    def system_of_atom(self) -> torch.Tensor:
        """Position in the batch of every atom's system, ``(n_atoms,)`` int64."""
        return torch.repeat_interleave(self.counts, output_size=self.types.numel())

    @cached_property
    def kinds(self) -> torch.Tensor:
        """The types that occur, sorted, ``(n_kinds,)`` int64; on the CPU wherever the atoms are."""
        return occurring(self.types)[0].cpu()

    @cached_property
    def occurring(self) -> frozenset[int]:
        """The types that occur."""
        return frozenset(self.kinds.tolist())

    @cached_property
    def kind_of_atom(self) -> torch.Tensor:
        """Index among :attr:`kinds` of every atom's type, ``(n_atoms,)`` int64."""
        return index_among(self.types, self.kinds.to(self.types.device))

    def index_among(self, types: torch.Tensor) -> torch.Tensor:
        """Index among the sorted ``types``, which hold all that occur, of every atom's type."""
        if torch.equal(types, self.kinds):
            return self.kind_of_atom
        return self.of_kinds(find_types(self.kinds, types)[0])

    def of_kinds(self, numbers: torch.Tensor) -> torch.Tensor:
        """Spread what is known per kind, ``(n_kinds, ...)``, over the atoms, ``(n_atoms, ...)``."""
        return numbers.index_select(0, self.kind_of_atom)

    @cached_property
    def usual_ids(self) -> bool:
        """Whether ids and positions are the same, as far as the batch says."""
        if self.sample_id is None:
            return True
        return torch.equal(self.sample_id, torch.arange(len(self), device=self.types.device))

    def usual_rows(self, samples: Labels) -> bool:
        """Whether rows are those of all systems, or of all atoms, in the order of the batch."""
        usual, self._numbered[:] = has_rows(
            samples, self.counts, self.types.numel(), self._numbered
        )
        return usual

    def usual(self, tensors: Mapping[Name, TensorMap]) -> frozenset[Name]:
        """Names of the tensors all blocks of which have usual rows, see :meth:`usual_rows`."""
        usual, unknown = set(), {}
        for name, tensor in tensors.items():
            known = self.known.get(tensor)
            if known is None:
                unknown[name] = tensor
            elif known.usual:
                usual.add(name)
        if unknown:
            found, self._numbered[:] = have_rows(
                list(unknown.values()), self.counts, self.types.numel(), self._numbered
            )
            for (name, tensor), is_usual in zip(unknown.items(), found, strict=True):
                self.known.learn(tensor, Known(is_usual))
                if is_usual:
                    usual.add(name)
        return frozenset(usual)

    @cached_property
    def host(self) -> torch.device:
        """Where the systems were read."""
        return self.types.device

    @cached_property
    def _numbered(self) -> list[torch.Tensor]:
        return []

    def on_host(self, tensor: TensorMap) -> TensorMap:
        """A TensorMap with the same labels where the systems were read, as far as one is known."""
        known = self.known.get(tensor)
        return tensor if known is None or known.original is None else known.original

    @cached_property
    def kinds_in_systems(self) -> torch.Tensor:
        """Atoms of each kind in every system, float64 ``(n_systems, n_kinds)``."""
        return _kinds_in_systems(self.kind_of_atom, self.counts, self.kinds.numel())

    def composition(self, types: torch.Tensor) -> torch.Tensor:
        """Atoms of each of ``types`` in every system, float64 ``(n_systems, n_types)``."""
        if types.device == self.kinds.device and torch.equal(types, self.kinds):
            return self.kinds_in_systems
        column, known = find_types(self.kinds, types.to(self.kinds.device))
        counts = self.kinds_in_systems.new_zeros((len(self), types.numel()))
        device = counts.device
        return counts.index_copy_(
            1, column[known].to(device), self.kinds_in_systems[:, known.to(device)]
        )


def read_atoms(systems: Sequence[HasTypes] | Atoms) -> Atoms:
    """The atoms of the systems, unless these have been read already."""
    return systems if isinstance(systems, Atoms) else Atoms.from_systems(systems)


@scripted_arithmetic
def _kinds_in_systems(kind_of_atom: torch.Tensor, counts: torch.Tensor, n: int) -> torch.Tensor:
    systems = torch.repeat_interleave(counts, output_size=kind_of_atom.numel())
    # Not bincount, which waits for a GPU.
    number = torch.zeros([counts.numel() * n], dtype=torch.float64, device=counts.device)
    ones = torch.ones([1], dtype=torch.float64, device=counts.device).expand(systems.numel())
    return number.index_add_(0, systems * n + kind_of_atom, ones).reshape([counts.numel(), n])


def _read(
    systems: Sequence[HasTypes],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int]:
    """Types of all atoms; the number of atoms of every system; and what :func:`occurring` gives."""
    if set(map(type, systems)) == {torch.ScriptObject} and is_system(systems[0]):
        return _reader_of_systems()(list(systems))
    per_system = [torch.as_tensor(system.types) for system in systems]
    device = per_system[0].device if per_system else torch.device("cpu")
    types = torch.cat([torch.empty(0, dtype=torch.int64, device=device), *per_system]).long()
    counts = torch.tensor([len(t) for t in per_system], dtype=torch.int64, device=device)
    return types, counts, *occurring(types)


@cache
def _reader_of_systems() -> Callable[
    [list[Any]], tuple[torch.Tensor, torch.Tensor, torch.Tensor, int]
]:
    # Six times faster than the same loop in Python. The class is registered with torch by the time
    # that there is a system.
    def read(
        systems: list[torch.classes.metatomic.System],  # type: ignore[name-defined]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int]:
        types: list[torch.Tensor] = []
        counts: list[int] = []
        for system in systems:
            of_one = system.types
            types.append(of_one)
            counts.append(len(of_one))
        joined = torch.cat(types).to(torch.int64)
        kinds, smallest = occurring(joined)
        return joined, torch.tensor(counts, device=joined.device), kinds, smallest

    return scripted(read)
