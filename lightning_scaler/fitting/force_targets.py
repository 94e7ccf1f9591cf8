"""Forces that are a target of their own beside the energy they derive from."""

import re
from collections.abc import Mapping

from ..tensors import TargetLayout

# "forces", "dft_force", "mtt::forces"; not those that a network predicts directly.
FORCES = re.compile(r"(?<![a-z])forces?(?![a-z])")
NOT_CONSERVATIVE = re.compile(r"non.?conservative|direct")


def describe_force_targets(layouts: Mapping[str, TargetLayout]) -> str | None:
    """The warning about forces that are a target beside their energy; ``None`` without any.

    Energies and forces that are targets of their own have scales of their own, one for each atomic
    type, so that predicted forces are no longer the derivative of the predicted energy.

    Args:
        layouts: layouts of the fitted targets by name.
    """
    energies = {name: layout for name, layout in layouts.items() if _is_energy(layout)}
    forces = [name for name, layout in layouts.items() if _are_forces(layout)]
    if not forces or not energies or any("positions" in e.gradients for e in energies.values()):
        return None
    energy = next(iter(energies))
    return (
        f"the target '{forces[0]}' and the energy '{energy}', which has no gradient 'positions', "
        "have scales of their own, so predicted forces are not -dE/dx of the predicted energy; "
        "forces that derive from the energy are its gradient 'positions', with its sign (minus), "
        "rows ([sample, atom]) and components (xyz): "
        f"{energy}_block.add_gradient('positions', TensorBlock(-forces, rows, [xyz], "
        f"{energy}_block.properties)), or, of plain tensors, {energy}: PerStructure(gradients="
        "{'positions': '-forces'}); if the network predicts forces directly, name the target "
        "'non_conservative_forces'"
    )


def _is_energy(layout: TargetLayout) -> bool:
    scalar = all(not block.components for block in layout.blocks.values())
    is_energy = "energy" in layout.name.lower() and layout.single_property
    return is_energy and layout.sample_kind == "structure" and scalar


def _are_forces(layout: TargetLayout) -> bool:
    name = layout.name.lower()
    vectors = [[len(axis) for axis in block.components] == [3] for block in layout.blocks.values()]
    named = FORCES.search(name) is not None and NOT_CONSERVATIVE.search(name) is None
    return named and layout.sample_kind == "atom" and vectors == [True]
