"""Where the tensors of declared targets are, and what they are in a block: settled once."""

from collections.abc import Mapping
from typing import NamedTuple, cast

from .addresses import Path
from .declared_targets import GradientTensor, PerAtom, PerStructure, split_sign

Target = PerStructure | PerAtom
GRADIENT_SHAPES = {"positions": (3,), "strain": (3, 3)}


class Place(NamedTuple):
    """The place of the values of a target, or of one of its gradients.

    Attributes:
        target: name of the target.
        parameter: parameter of a gradient; ``""`` for values.
        where: what is there, for messages.
        paths: addresses, of which the first that leads to something counts, or else the last.
        per_atom: whether there is a row for each atom, otherwise for each structure.
        components: ``""``, ``"xyz"``, ``"matrix"`` or the degree of a spherical tensor.
        shape: shape of a row in a block, ``(*components, n_properties)``.
        sign: 1 or -1; the tensor times this is part of a TensorMap.
        times_n_atoms: whether it is multiplied by the number of atoms too.
        volume: address in the batch of the volumes or cells that it is multiplied by.
    """

    target: str
    parameter: str
    where: str
    paths: tuple[Path, ...]
    per_atom: bool
    components: str
    shape: tuple[int, ...]
    sign: int = 1
    times_n_atoms: bool = False
    volume: Path | None = None


def places_in_batch(targets: Mapping[str, Target]) -> dict[str, list[Place]]:
    """The places in a batch: for each target by name, of its values and then of its gradients."""
    return {name: _places(name, target, of_output=False) for name, target in targets.items()}


def places_in_output(targets: Mapping[str, Target]) -> dict[str, list[Place]]:
    """The places in the output of a network, which may have fewer gradients."""
    return {name: _places(name, target, of_output=True) for name, target in targets.items()}


def signed_path(gradient: GradientTensor, of_output: bool) -> tuple[int, Path]:
    """The sign and the address of a gradient in the batch, or in the output of the network."""
    sign, path = split_sign(cast(Path, gradient.tensor))
    if of_output and gradient.prediction:
        own_sign, path = split_sign(cast(Path, gradient.prediction))
        sign = sign if own_sign is None else own_sign
    return sign or 1, path


def _places(name: str, target: Target, of_output: bool) -> list[Place]:
    where = f"prediction of '{name}'" if of_output else f"target '{name}'"
    paths = [(name,) if target.tensor is None else cast(Path, target.tensor)]
    if of_output:
        paths = [*paths, (name,)]
        if target.prediction is not None:
            paths = [cast(Path, target.prediction)]
    components = target.components or ""
    if not isinstance(components, str):
        components = str(components["spherical"])
    shape = (*target.shape, target.properties or 1)
    values = Place(
        name,
        "",
        where,
        tuple(dict.fromkeys(paths)),
        isinstance(target, PerAtom),
        components,
        shape,
        times_n_atoms=isinstance(target, PerStructure) and target.per_atom,
    )
    places = [values]
    if isinstance(target, PerAtom):
        return places
    for parameter, gradient in cast(Mapping[str, GradientTensor], target.gradients).items():
        if of_output and gradient.prediction is False:
            continue
        sign, path = signed_path(gradient, of_output)
        places.append(
            Place(
                name,
                parameter,
                f"{where}, gradient '{parameter}'",
                (path,),
                parameter == "positions",
                components,
                (*GRADIENT_SHAPES[parameter], *shape),
                sign,
                volume=cast(Path, gradient.volume) or None,
            )
        )
    return places
