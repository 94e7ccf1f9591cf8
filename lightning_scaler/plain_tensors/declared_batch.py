"""A user's own batch of plain tensors, with its declared targets."""

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace as with_fields
from functools import cached_property
from itertools import chain
from typing import Any, TypeAlias

import torch
from metatensor.torch import TensorMap
from torch import Tensor

from ..batches import Atoms, LabelRecord, OwnBatch
from ..tensors import values_and_gradients
from .addresses import describe_address, find, replace
from .ase_atoms import are_ase_atoms
from .declaration import Declaration
from .found_tensors import (
    FoundTensor,
    describe_missing,
    find_at,
    find_tensors,
    in_blocks,
    shared_dtype,
)
from .places import Place
from .structures import find_atoms
from .tensor_shapes import restore_shape
from .tensormap_building import (
    Rows,
    blocks_of,
    build_tensormaps,
    rows_of,
)

Conversion: TypeAlias = Callable[[Sequence[Any], dict[str, TensorMap]], Mapping[str, TensorMap]]
"""From the systems of a batch and TensorMaps to other TensorMaps."""


class DeclaredBatch(OwnBatch):
    """A batch of plain tensors: its atoms, and its targets as TensorMaps.

    A sequence of as many systems as the batch has, each with ``types``. Nothing is written to the
    batch.

    Args:
        batch: batch of a loader, as the user's ``forward`` receives it.
        declaration: declared targets.

    Raises:
        TypeError, ValueError: for a batch whose atoms are not found, once they are needed.

    Example:
        >>> import torch
        >>> from lightning_scaler import PerStructure
        >>> batch = {"z": torch.tensor([8, 1, 1]), "n_atoms": torch.tensor([1, 2])}
        >>> batch["energy"] = torch.tensor([-75.0, -1.5])
        >>> declared = DeclaredBatch(batch, Declaration({"energy": PerStructure()}))
        >>> declared.targets()["energy"].block().values
        tensor([[-75.0000],
                [ -1.5000]])
    """

    def __init__(self, batch: Any, declaration: Declaration) -> None:
        self.batch = batch
        self.declaration = declaration
        self._rows_by_device: dict[torch.device, Rows] = {}
        self._last_output: tuple[Any, dict[str, list[FoundTensor]]] = (None, {})
        self._targets: dict[str, TensorMap] = {}
        self._label_records: list[LabelRecord] = []

    @cached_property
    def atoms(self) -> Atoms:
        """The atoms of the batch."""
        atoms = find_atoms(self.batch, self.declaration.batch)
        # The list is filled when targets and predictions are made.
        return with_fields(atoms, label_records=self._label_records)

    def __len__(self) -> int:
        return self.atoms.n_systems

    def targets(self) -> dict[str, TensorMap]:
        """The targets that the batch has, by name, in the units of the data.

        Raises:
            TypeError, ValueError: for a tensor of another dtype or shape, or a target without its
                gradient.
        """
        for one in chain.from_iterable(self._in_batch.values()):
            if one.tensor.dtype in (torch.bfloat16, torch.float16):
                raise TypeError(
                    f"{one.where}: expected float32 or float64, got "
                    f"{str(one.tensor.dtype).removeprefix('torch.')}, to which "
                    "Trainer(precision='bf16-true') and '16-true' round all tensors of a "
                    "batch, before any hook; train with precision='bf16-mixed' or '16-mixed'"
                )
        self._targets = self._tensormaps(self._in_batch, self.atoms)
        self._label_records[:] = [
            LabelRecord(target, target, [True], self.declaration.layouts[name])
            for name, target in self._targets.items()
        ]
        return dict(self._targets)

    @property
    def may_lack_targets(self) -> bool:
        """Whether values are missing structure by structure: in lists of ASE ``Atoms``."""
        return are_ase_atoms(self.batch)

    def describe_missing_targets(self) -> dict[str, str]:
        """For each declared target that the batch does not have, what was expected, by name."""
        way_out = "give its address as tensor="
        return {
            name: describe_missing(values.where, values.paths[-1], self.batch, way_out)
            for name, (values, *_) in self.declaration.in_batch.items()
            if name not in self._in_batch
        }

    def predictions(
        self, output: Any, needed: Collection[str] | None = None
    ) -> dict[str, TensorMap]:
        """The predictions in the output of the user's ``forward``, by target name.

        Args:
            output: output for this batch: a tensor, if one target is declared; else an object that
                holds tensors.
            needed: names of targets that must have a prediction; ``None``: at least one of all, so
                that an output is not taken for converted of which nothing was.

        Raises:
            TypeError, ValueError: as :meth:`targets`, and for a missing prediction.
        """
        # An output may have been written to since it was last searched.
        found = self._find_in(output)
        self._last_output = output, found
        if needed is None:
            needed = () if found else self.declaration.targets
        for name, (values, *_) in self._places_in(output).items():
            if name in needed and name not in found:
                way_out = "return it from forward, or give its address as prediction="
                raise ValueError(describe_missing(values.where, values.paths[-1], output, way_out))
        # ASE and numpy have their targets on the CPU, whatever the device of the network is.
        device = next((one[0].tensor.device for one in found.values()), self.atoms.types.device)
        predictions = self._tensormaps(found, self.atoms.to(device))
        del self._label_records[len(self._targets) :]
        if device == self.atoms.types.device:
            for name, prediction in predictions.items():
                original, layout = prediction, None
                if name in self.declaration.with_all_gradients:
                    layout = self.declaration.layouts[name]
                    original = self._targets.get(name, prediction)
                self._label_records.append(LabelRecord(prediction, original, [True], layout))
        return predictions

    def names_in_batch(self) -> set[str]:
        """The names of the declared targets that the batch holds."""
        places = self.declaration.in_batch.items()
        return {
            name for name, (values, *_) in places if find(self.batch, values.paths[0]) is not None
        }

    def names_in_output(self, output: Any) -> set[str]:
        """The names of the declared targets of which an output holds a prediction."""
        return {
            name
            for name, (values, *_) in self._places_in(output).items()
            if any(find(output, path) is not None for path in values.paths)
        }

    def convert_targets(self, function: Conversion) -> Any:
        """A copy of the batch with other targets, which a function gives for its own."""
        return self.replace_targets(function(self, self.targets()))

    def convert_predictions(self, output: Any, function: Conversion) -> Any:
        """A copy of an output with other predictions, which a function gives for its own."""
        return self.replace_predictions(output, function(self, self.predictions(output)))

    def replace_targets(self, tensors: Mapping[str, TensorMap]) -> Any:
        """A copy of the batch with other targets, in the shapes of its own.

        Raises:
            TypeError: for a list of ASE ``Atoms``.
            ValueError: for a tensor that two targets share.
        """
        if are_ase_atoms(self.batch):
            raise TypeError(
                "converted targets cannot be written into ASE Atoms; convert a dict of tensors"
            )
        found = self._in_batch
        paths = Counter(one.path for one in chain.from_iterable(found.values()))
        shared = [describe_address(path) for path, times in paths.items() if times > 1]
        if shared:
            raise ValueError(
                f"two targets share the tensor at {shared[0]} of the batch, which cannot be "
                "converted for both at once; convert a batch with a copy for each"
            )
        return _replace_all(self.batch, found, tensors)

    def replace_predictions(self, output: Any, tensors: Mapping[str, TensorMap]) -> Any:
        """A copy of an output with other predictions, in the shapes of its own."""
        last, found = self._last_output
        return _replace_all(output, found if last is output else self._find_in(output), tensors)

    def named_predictions(self, output: Any) -> dict[str, Any]:
        """The members of an output by name, and ``n_atoms``, the atoms of each structure.

        The names are those of a mapping. Otherwise, only predictions are included, under the names
        of their targets; gradients have the names of their tensors in the batch.
        """
        if isinstance(output, Mapping):
            named = dict(output)
        else:
            named = {
                label: member
                for label, place in self._labelled_places(output)
                if (member := find_at(place, output)[1]) is not None
            }
        return {"n_atoms": self.atoms.n_atoms, **named}

    @cached_property
    def _systems(self) -> list[Any]:
        if self.atoms.systems:
            return list(self.atoms.systems)
        return [_Structure(t) for t in self.atoms.types.split(self.atoms.on_host.n_atoms.tolist())]

    def _rows(self, atoms: Atoms) -> Rows:
        device = atoms.types.device
        if device not in self._rows_by_device:
            rows = rows_of(atoms.on_host)
            if atoms.host is not None:  # labels made on the CPU wait for no GPU
                rows = Rows(*[labels.to(device) for labels in rows])
            self._rows_by_device[device] = rows
        return self._rows_by_device[device]

    @cached_property
    def _in_batch(self) -> dict[str, list[FoundTensor]]:
        found = {
            name: find_tensors(places, self.batch, self.batch, self.atoms, of_output=False)
            for name, places in self.declaration.in_batch.items()
        }
        return {name: tensors for name, tensors in found.items() if tensors}

    def _find_in(self, output: Any) -> dict[str, list[FoundTensor]]:
        found = {
            name: find_tensors(places, output, self.batch, self.atoms, of_output=True)
            for name, places in self._places_in(output).items()
        }
        return {name: tensors for name, tensors in found.items() if tensors}

    def _places_in(self, output: Any) -> Mapping[str, list[Place]]:
        """The places in an output; a tensor by itself is the prediction of the only target."""
        places = self.declaration.in_output
        if isinstance(output, torch.Tensor) and len(places) == 1:
            ((name, (values, *gradients)),) = places.items()
            if self.declaration.targets[name].prediction is None:
                return {name: [values._replace(paths=((),)), *gradients]}
        return places

    def _labelled_places(self, output: Any) -> Iterator[tuple[str, Place]]:
        """A name for the prediction of each target and for each of its gradients."""
        for name, (values, *gradients) in self._places_in(output).items():
            yield name, values
            paths = {one.parameter: one.paths[0] for one in self.declaration.in_batch[name]}
            for one in gradients:
                words = [part for part in paths[one.parameter] if isinstance(part, str)]
                yield words[-1] if words else f"{name}/{one.parameter}", one

    def _tensormaps(
        self, found: Mapping[str, list[FoundTensor]], atoms: Atoms
    ) -> dict[str, TensorMap]:
        """A TensorMap for each target, on the device of the atoms."""
        places = [one.place for one in chain.from_iterable(found.values())]
        tensors = [tensor for of_target in found.values() for tensor in in_blocks(of_target, atoms)]
        blocks = blocks_of(places, atoms.types.device)
        return dict(zip(found, build_tensormaps(tensors, blocks, self._rows(atoms)), strict=True))


class _Structure:
    """A structure of which only the types are known."""

    def __init__(self, types: Tensor) -> None:
        self.types = types

    def __len__(self) -> int:
        return self.types.numel()


def _replace_all(
    holder: Any,
    found: Mapping[str, list[FoundTensor]],
    tensors: Mapping[str, TensorMap],
) -> Any:
    for name in found.keys() & tensors.keys():
        values, gradients = values_and_gradients(tensors[name])
        shared = shared_dtype([one.tensor for one in found[name]])
        for one, new in zip(found[name], [*values, *gradients], strict=True):
            new = restore_shape(one.original(new), one.tensor)
            if new.dtype == shared:
                new = new.to(one.tensor.dtype)
            holder = replace(holder, one.path, new)
    return holder
