"""A batch of plain tensors as a module reads it: that of one loader, or those of several."""

from collections.abc import Collection, Mapping
from functools import cached_property
from typing import Any

import torch
from metatensor.torch import TensorMap

from ..batches import Atoms, Batch, join_batches, unpack
from .addresses import describe_holder, find, replace
from .ase_atoms import are_ase_atoms
from .declaration import Declaration
from .declared_batch import Conversion, DeclaredBatch
from .found_tensors import FoundTensor


class JoinedBatches(DeclaredBatch):
    """The batches of several loaders as one: the structures of each follow those of another.

    ``forward`` receives them as the loaders give them, and returns its outputs in the same way.

    Args:
        batch: a mapping or a sequence of batches; ``None`` for a loader that has ended.
        declaration: declared targets.
    """

    def __init__(self, batch: Any, declaration: Declaration) -> None:
        super().__init__(batch, declaration)
        members = batch.items() if isinstance(batch, Mapping) else enumerate(batch)
        self.parts = {
            key: DeclaredBatch(part, declaration) for key, part in members if part is not None
        }

    @cached_property
    def atoms(self) -> Atoms:
        """The atoms of all batches, joined where they were read, so that no GPU is waited for."""
        atoms = [part.atoms for part in self.parts.values()]
        types = torch.cat([one.on_host.types for one in atoms])
        n_atoms = torch.cat([one.on_host.n_atoms for one in atoms])
        return Atoms.from_types(types, n_atoms).to(atoms[0].types.device)

    def targets(self) -> dict[str, TensorMap]:
        """The targets that any of the batches has, by name; see :class:`DeclaredBatch`."""
        return _joined([(part, part.targets()) for part in self.parts.values()])

    @property
    def may_lack_targets(self) -> bool:
        """Whether values are missing structure by structure."""
        return any(part.may_lack_targets for part in self.parts.values())

    def predictions(
        self, output: Any, needed: Collection[str] | None = None
    ) -> dict[str, TensorMap]:
        """The predictions in the outputs for all batches; see :class:`DeclaredBatch`.

        Raises:
            ValueError: if there is no output for one of the batches.
        """
        found = []
        for key, part in self.parts.items():
            of_part = self._output(output, key)
            own = None if needed is None else {*needed} & part.names_in_batch()
            found.append((part, part.predictions(of_part, own)))
        return _joined(found)

    def names_in_batch(self) -> set[str]:
        """The names of the declared targets that any of the batches holds."""
        return set().union(*(part.names_in_batch() for part in self.parts.values()))

    def convert_targets(self, function: Conversion) -> Any:
        """A copy of the batches with other targets; see :class:`DeclaredBatch`."""
        converted = self.batch
        for key, part in self.parts.items():
            converted = replace(converted, (key,), part.convert_targets(function))
        return converted

    def convert_predictions(self, output: Any, function: Conversion) -> Any:
        """A copy of the outputs for all batches with other predictions."""
        for key, part in self.parts.items():
            of_part = part.convert_predictions(self._output(output, key), function)
            output = replace(output, (key,), of_part)
        return output

    def _output(self, output: Any, key: Any) -> Any:
        of_part = find(output, (key,))
        if of_part is None:
            raise ValueError(
                "the batches of several loaders: expected forward to return an output for each, "
                f"under the keys of the batches, {list(self.parts)}, got "
                f"{describe_holder(output)}; if they are one batch, give the address of its atomic "
                "types: TargetScaler(batch={'types': …})"
            )
        return of_part

    @cached_property
    def _in_batch(self) -> dict[str, list[FoundTensor]]:
        found: dict[str, list[FoundTensor]] = {}
        for part in self.parts.values():
            found |= part._in_batch
        return found


def declared_batch(batch: Any, declaration: Declaration) -> DeclaredBatch:
    """A batch of plain tensors; those of several loaders are joined.

    Raises:
        TypeError, ValueError: for a batch whose atoms are not found.
    """
    if isinstance(batch, (list, tuple)):
        parts = [part for part in batch if part is not None]
        if parts and all(map(are_ase_atoms, parts)):
            # The first would be taken for the systems of a tuple (systems, targets).
            return JoinedBatches(batch, declaration)
    declared = DeclaredBatch(batch, declaration)
    try:
        _ = declared.atoms
    except TypeError:
        if not isinstance(batch, (Mapping, list, tuple)) or hasattr(batch, "_fields"):
            raise
        joined = JoinedBatches(batch, declaration)
        if not joined.parts or not all(map(_is_batch, joined.parts.values())):
            raise
        return joined
    return declared


def read_batch(batch: Any, declaration: Declaration | None) -> Batch:
    """The systems, targets and masks of a batch.

    Args:
        batch: batch of plain tensors, or without a declaration, one that :func:`unpack` takes.
        declaration: declared targets, if there are any.
    """
    if declaration is None:
        return unpack(batch)
    declared = declared_batch(batch, declaration)
    return Batch(declared, declared.targets(), {})


def _joined(parts: list[tuple[DeclaredBatch, dict[str, TensorMap]]]) -> dict[str, TensorMap]:
    joined = join_batches([(batch, tensors, {}) for batch, tensors in parts])
    return dict(joined[1])


def _is_batch(batch: DeclaredBatch) -> bool:
    try:
        _ = batch.atoms
    except (TypeError, ValueError):
        return False
    return True
