"""The tensors of a declared target as they are found in a batch, or in the output of a network."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..batches import Atoms
from ..settings import did_you_mean
from .addresses import Path, describe_address, describe_holder, find, names_in, tensor_of
from .ase_atoms import are_ase_atoms, find_in_atoms
from .places import Place
from .tensor_shapes import describe_shape, in_shape


class FoundTensor(NamedTuple):
    """A tensor of the user's.

    Attributes:
        place: its place.
        path: its address there.
        tensor: the tensor.
        scale: a number for each structure by which it is multiplied, ``(n_structures,)``.
    """

    place: Place
    path: Path
    tensor: Tensor
    scale: Tensor | None = None

    @property
    def where(self) -> str:
        """What the tensor is and where it was found, for messages."""
        return f"{self.place.where}, at {describe_address(self.path)}"

    def in_block(self, atoms: Atoms) -> Tensor:
        """The tensor as it is in a block, in its shape and on the device of the atoms.

        Raises:
            TypeError, ValueError: for another dtype or shape.
        """
        place, tensor = self.place, self.tensor
        if not tensor.is_floating_point():
            raise TypeError(
                f"{self.where}: expected a floating-point tensor, got "
                f"{str(tensor.dtype).removeprefix('torch.')}; convert it, such as with .float()"
            )
        n_rows, n_atoms = atoms.n_systems, None
        if place.per_atom:
            n_rows, n_atoms = atoms.types.numel(), atoms.n_atoms
        values = in_shape(tensor.to(atoms.types.device), n_rows, place.shape, n_atoms)
        if values is None:
            described = describe_shape(
                tensor, atoms.n_atoms, place.shape, place.per_atom, bool(place.parameter)
            )
            raise ValueError(f"{self.where}: {described}")
        values = -values if place.sign < 0 else values
        return values if self.scale is None else values * _per_structure(self.scale, values)

    def original(self, values: Tensor) -> Tensor:
        """Values of a block without sign and scale, as the user has them."""
        values = -values if self.place.sign < 0 else values
        return values if self.scale is None else values / _per_structure(self.scale, values)


def find_tensors(
    places: Sequence[Place], holder: Any, batch: Any, atoms: Atoms, of_output: bool
) -> list[FoundTensor]:
    """The tensors of a target, its values and then its gradients.

    Args:
        places: their places in a batch, or in the output of a network.
        holder: the batch, or the output.
        batch: the batch, which has the volumes.
        atoms: atoms of the batch.
        of_output: whether the holder is the output of a network.

    Returns:
        An empty list if the holder does not have the target.

    Raises:
        ValueError: if it has the target without one of its gradients.
    """
    found = []
    for place in places:
        path, tensor = find_at(place, holder)
        if tensor is None and not place.parameter:
            return []
        if tensor is None and are_ase_atoms(holder):
            # As where some structures of a batch have it.
            n_rows = atoms.types.numel() if place.per_atom else atoms.n_systems
            tensor = torch.full((n_rows, *place.shape), torch.nan, dtype=torch.float64)
        if tensor is None:
            raise ValueError(_describe_missing_gradient(place, holder, of_output))
        scale = atoms.n_atoms if place.times_n_atoms else None
        if place.volume:
            scale = _volumes(place.where, place.volume, batch, atoms)
            if not of_output:  # a stress without a volume, as of a molecule, is missing
                scale = scale.where(scale != 0.0, torch.nan)
        found.append(FoundTensor(place, path, tensor, scale))
    return found


def in_blocks(found: Sequence[FoundTensor], atoms: Atoms) -> list[Tensor]:
    """The tensors of a target as they are in its blocks, in one dtype."""
    tensors = [one.in_block(atoms) for one in found]
    if len(tensors) == 1:
        return tensors
    shared = shared_dtype(tensors)
    return [tensor.to(shared) for tensor in tensors]


def shared_dtype(tensors: Sequence[Tensor]) -> torch.dtype:
    """The dtype of a TensorMap, for example of energies in float64 beside forces in float32."""
    return functools.reduce(torch.promote_types, (tensor.dtype for tensor in tensors))


def find_at(place: Place, holder: Any) -> tuple[Path, Tensor | None]:
    """The address of a tensor and what is there, ``None`` if there is nothing."""
    path: Path = ()
    for path in place.paths:
        tensor = _tensor_at(holder, path, place.per_atom)
        if tensor is not None:
            return path, tensor
    return path, None


def describe_missing(what: str, path: Path, holder: Any, way_out: str) -> str:
    """Say that there is no tensor at an address, and what there is."""
    names = names_in(holder[0] if are_ase_atoms(holder) else holder)
    guess = ""
    if names and path and isinstance(path[-1], str):
        guess = did_you_mean(path[-1], names).split("known:")[0]
    return (
        f"{what}: expected a tensor at {describe_address(path)}, got {describe_holder(holder)}; "
        f"{guess}{way_out}"
    )


def _describe_missing_gradient(place: Place, holder: Any, of_output: bool) -> str:
    parameter = place.parameter
    way_out = f"give its address in gradients={{'{parameter}': …}}, and NaN for missing values"
    if of_output:
        way_out = (
            "return it from forward, or give its address as prediction=; if a step of the "
            "module itself differentiates the values, say so with prediction=False: "
            f"gradients={{'{parameter}': {{'tensor': …, 'prediction': False}}}}"
        )
    return describe_missing(place.where, place.paths[-1], holder, way_out)


def _tensor_at(holder: Any, path: Path, per_atom: bool) -> Tensor | None:
    if are_ase_atoms(holder):
        return find_in_atoms(holder, path, per_atom)
    found = find(holder, path)
    if found is None or isinstance(found, torch.Tensor):
        return found
    return tensor_of(describe_address(path), found)


def _per_structure(scale: Tensor, values: Tensor) -> Tensor:
    """A number for each structure, in a shape that multiplies values."""
    return scale.to(values).reshape(-1, *[1] * (values.dim() - 1))


def _volumes(where: str, path: Path, batch: Any, atoms: Atoms) -> Tensor:
    """The volume of each structure, from volumes or cells."""
    found, n_structures = _tensor_at(batch, path, per_atom=False), atoms.n_systems
    if found is None:
        way_out = "give the address of the volumes or the cells as volume="
        raise ValueError(describe_missing(f"{where}, volume", path, batch, way_out))
    if found.shape[-2:] == (3, 3) or found.shape == (3 * n_structures, 3):
        found = torch.linalg.det(found.reshape(-1, 3, 3)).abs()
    if found.numel() != n_structures:
        raise ValueError(
            f"{where}, volume, at {describe_address(path)}: expected volumes ({n_structures},) or "
            f"cells ({n_structures}, 3, 3), got {tuple(found.shape)}"
        )
    return found.reshape(-1)
