"""The tensors of a declared target in a batch, or in the output of a network."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from ..batches import Atoms
from ..settings import did_you_mean
from .addresses import Path, describe_address, describe_holder, find, names_in, tensor_of
from .ase_atoms import are_ase_atoms, find_in_atoms
from .declared_targets import GradientTensor, PerAtom, PerStructure, split_sign
from .tensor_shapes import describe_shape, in_shape

Target = PerStructure | PerAtom
GRADIENT_SHAPES = {"positions": (3,), "strain": (3, 3)}


class FoundTensor(NamedTuple):
    """A tensor of the user's.

    Attributes:
        where: what it is, for messages.
        path: its address.
        tensor: the tensor.
        per_atom: whether it has a row for each atom, otherwise for each structure.
        shape: shape of a row in a block, ``(*components, n_properties)``.
        sign: 1 or -1; times this, and times ``scale``, it is part of a TensorMap.
        scale: a number for each structure, ``(n_structures,)``.
        is_gradient: whether it is a gradient of the target.
    """

    where: str
    path: Path
    tensor: Tensor
    per_atom: bool
    shape: tuple[int, ...]
    sign: int = 1
    scale: Tensor | None = None
    is_gradient: bool = False

    def in_block(self, atoms: Atoms) -> Tensor:
        """The tensor as it is in a block, in its shape and on the device of the atoms.

        Raises:
            TypeError, ValueError: for another dtype or shape.
        """
        if not self.tensor.is_floating_point():
            raise TypeError(
                f"{self.where}, at {describe_address(self.path)}: expected a floating-point "
                f"tensor, got {str(self.tensor.dtype).removeprefix('torch.')}"
            )
        n_rows, n_atoms = atoms.n_systems, None
        if self.per_atom:
            n_rows, n_atoms = atoms.types.numel(), atoms.n_atoms
        tensor = self.tensor.to(atoms.types.device)
        values = in_shape(tensor, n_rows, self.shape, n_atoms)
        if values is None:
            described = describe_shape(
                tensor, atoms.n_atoms, self.shape, self.per_atom, self.is_gradient
            )
            raise ValueError(f"{self.where}, at {describe_address(self.path)}: {described}")
        values = -values if self.sign < 0 else values
        return values if self.scale is None else values * _per_structure(self.scale, values)

    def original(self, values: Tensor) -> Tensor:
        """Values of a block without sign and scale, as the user has them."""
        values = -values if self.sign < 0 else values
        return values if self.scale is None else values / _per_structure(self.scale, values)


def find_in_batch(name: str, target: Target, batch: Any, atoms: Atoms) -> dict[str, FoundTensor]:
    """The values of a target in a batch, under ``""``, and its gradients by parameter.

    Returns:
        An empty dict if the batch does not have the target.

    Raises:
        ValueError: if it has the target without one of its gradients.
    """
    return _find(name, target, batch, batch, batch_path(name, target), atoms, of_output=False)


def find_in_output(
    name: str, target: Target, output: Any, batch: Any, atoms: Atoms, n_targets: int
) -> dict[str, FoundTensor]:
    """The same for predictions in the output of a network for a batch.

    Args:
        name: name of the target.
        target: declared target.
        output: output; a tensor by itself is the prediction of the only target.
        batch: batch, which has the volumes.
        atoms: atoms of the batch.
        n_targets: number of declared targets.
    """
    path = output_path(name, target, output, n_targets)
    return _find(name, target, output, batch, path, atoms, of_output=True)


def batch_path(name: str, target: Target) -> Path:
    """The address of a target in a batch."""
    return (name,) if target.tensor is None else cast(Path, target.tensor)


def output_path(name: str, target: Target, output: Any, n_targets: int) -> Path:
    """The address of a prediction in an output."""
    if target.prediction is not None:
        return cast(Path, target.prediction)
    if isinstance(output, torch.Tensor) and n_targets == 1:
        return ()
    path = batch_path(name, target)
    return path if path == (name,) or find(output, path) is not None else (name,)


def labelled_paths(
    name: str, target: Target, output: Any, n_targets: int
) -> Iterator[tuple[str, Path]]:
    """A name for the prediction of a target and for each of its gradients, with their addresses."""
    yield name, output_path(name, target, output, n_targets)
    for parameter, gradient in gradients_of(target, of_output=True).items():
        _, path = split_sign(cast(Path, gradient.tensor))
        words = [part for part in path if isinstance(part, str)]
        yield words[-1] if words else f"{name}/{parameter}", signed_path(gradient, True)[1]


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


def _find(
    name: str, target: Target, holder: Any, batch: Any, path: Path, atoms: Atoms, of_output: bool
) -> dict[str, FoundTensor]:
    what = f"prediction of '{name}'" if of_output else f"target '{name}'"
    per_atom = isinstance(target, PerAtom)
    values = _tensor_at(holder, path, per_atom)
    if values is None:
        return {}
    is_per_atom = isinstance(target, PerStructure) and target.per_atom
    scale = atoms.n_atoms if is_per_atom else None
    shape = row_shape("", target)
    found = {"": FoundTensor(what, path, values, per_atom, shape, scale=scale)}
    for parameter, gradient in gradients_of(target, of_output).items():
        sign, path = signed_path(gradient, of_output)
        per_atom, shape = parameter == "positions", row_shape(parameter, target)
        tensor = _tensor_at(holder, path, per_atom)
        where = f"{what}, gradient '{parameter}'"
        if tensor is None and are_ase_atoms(holder):
            # As where some structures of a batch have it.
            n_rows = atoms.types.numel() if per_atom else atoms.n_systems
            tensor = torch.full((n_rows, *shape), torch.nan, dtype=torch.float64)
        if tensor is None:
            way_out = (
                f"give its address in gradients={{'{parameter}': …}}, and NaN for missing values"
            )
            if of_output:
                way_out = (
                    "return it from forward, or give its address as prediction=; if a step of the "
                    "module itself differentiates the values, say so with prediction=False: "
                    f"gradients={{'{parameter}': {{'tensor': …, 'prediction': False}}}}"
                )
            raise ValueError(describe_missing(where, path, holder, way_out))
        scale = None
        if gradient.volume:
            scale = _volumes(where, cast(Path, gradient.volume), batch, atoms)
            if not of_output:  # a stress without a volume, as of a molecule, is missing
                scale = scale.where(scale != 0.0, torch.nan)
        found[parameter] = FoundTensor(
            where, path, tensor, per_atom, shape, sign, scale, is_gradient=True
        )
    return found


def _tensor_at(holder: Any, path: Path, per_atom: bool) -> Tensor | None:
    if are_ase_atoms(holder):
        return find_in_atoms(holder, path, per_atom)
    found = find(holder, path)
    if found is None or isinstance(found, torch.Tensor):
        return found
    return tensor_of(describe_address(path), found)


def row_shape(parameter: str, target: Target) -> tuple[int, ...]:
    """Shape of a row of the values of a target (``""``), or of a gradient, with properties."""
    return (*GRADIENT_SHAPES.get(parameter, ()), *target.shape, target.properties or 1)


def gradients_of(target: Target, of_output: bool) -> Mapping[str, GradientTensor]:
    """The gradients by parameter that a batch, or the output of a network, has of a target."""
    if isinstance(target, PerAtom):
        return {}
    gradients = cast(Mapping[str, GradientTensor], target.gradients)
    if not of_output:
        return gradients
    return {name: one for name, one in gradients.items() if one.prediction is not False}


def signed_path(gradient: GradientTensor, of_output: bool) -> tuple[int, Path]:
    """The sign and the address of a gradient in the batch, or in the output of the network."""
    sign, path = split_sign(cast(Path, gradient.tensor))
    if of_output and gradient.prediction:
        own_sign, path = split_sign(cast(Path, gradient.prediction))
        sign = sign if own_sign is None else own_sign
    return sign or 1, path


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
