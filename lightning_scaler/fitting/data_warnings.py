"""Warnings that teach: data of a fit that are rarely meant to be as they are.

Those of :func:`warn_of_data` say how they are hidden. Data with fewer than 100 samples are taken
for a trial.
"""

import math
import re
import warnings
from collections.abc import Mapping

import torch
from torch import Tensor

from ..scaling import TargetScales
from ..settings import list_or_count, name_of_type, way_to_hide
from ..statistics import TargetStatistics
from ..tensors import TargetLayout

FEW_SAMPLES = 10
ENOUGH_SAMPLES = 100

# Words in names of quantities that do not grow with the number of atoms. "GAP" in capitals is a
# kind of potential.
INTENSIVE_WORDS = {"bandgap", "dipole", "electronegativity", "fermi", "gap", "homo", "lumo"}
WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")

# "forces", "dft_force", "mtt::forces"; not those that a network predicts directly.
FORCES = re.compile(r"(?<![a-z])forces?(?![a-z])")
NOT_CONSERVATIVE = re.compile(r"non.?conservative|direct")

Types = Mapping[str, set[int]]


def warn_of_data(
    scales: Mapping[str, TargetScales], statistics: Mapping[str, TargetStatistics], kept: Types
) -> None:
    """Give the warnings that the data and the names of targets give reason for.

    Args:
        scales: fitted scales by target name.
        statistics: statistics by target name.
        kept: atomic types whose numbers are those of an earlier fit, for targets that have some.
    """
    rare = [
        f"target '{name}', {list_or_count(words, 'types', most=12)}"
        for name, target in scales.items()
        if (words := _describe_rare_types(target, statistics[name], kept.get(name, set())))
    ]
    if rare:
        warnings.warn(
            f"few samples of some atomic types: {'; '.join(rare)}; what is fitted to so few is "
            "uncertain: give more data with these types, or their numbers in fixed_scales and "
            f"fixed_baseline{way_to_hide('few samples of some atomic types')}",
            stacklevel=4,
        )
    missing = [
        f"target '{name}', {list_or_count(words, 'properties')}"
        for name in scales
        if (words := _describe_missing(statistics[name]))
    ]
    if missing:
        warnings.warn(
            f"more than half of the values are missing: {'; '.join(missing)}; if this is not "
            "intended, check keys, masks and data (missing values count neither in the scales nor "
            f"in the loss){way_to_hide('more than half of the values are missing')}",
            stacklevel=4,
        )
    intensive = [
        name
        for name, target in scales.items()
        if target.extensive
        and name not in kept
        and is_intensive_by_name(name)
        and float(_samples_of_types(statistics[name]).max()) >= ENOUGH_SAMPLES
    ]
    if intensive:
        warnings.warn(
            f"extensive targets with names that are usually intensive: {intensive}, which are "
            "divided by the number of atoms; if they do not grow with the structure, write "
            f"intensive_targets={intensive}, or, in a declaration, PerStructure(intensive=True)"
            f"{way_to_hide('extensive targets with names that are usually intensive')}",
            stacklevel=4,
        )


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


def is_intensive_by_name(name: str) -> bool:
    """Whether a word of the name is that of something that does not grow with the structure.

    Example:
        >>> [is_intensive_by_name(name) for name in ("mtt::homo_lumo_gap", "dipoleMoment", "gap1")]
        [True, True, True]
        >>> [is_intensive_by_name(name) for name in ("mtt::U0", "energy_GAP", "homology", "gapped")]
        [False, False, False, False]
    """
    words = [word for word in WORD.findall(name) if word != "GAP"]
    return any(word.lower().removesuffix("s") in INTENSIVE_WORDS for word in words)


def _describe_rare_types(
    scales: TargetScales, statistics: TargetStatistics, kept: set[int]
) -> list[str]:
    """The types with few samples, and how many they have."""
    per_atom = scales.layout.sample_kind == "atom"
    samples = _samples_of_types(statistics) if per_atom else statistics.structures
    if samples is None or not len(samples) or float(samples.max()) < ENOUGH_SAMPLES:
        return []
    words = []
    for z, count in zip(statistics.types.tolist(), map(int, samples.tolist()), strict=True):
        if 0 < count < FEW_SAMPLES and z not in kept and not _is_fixed(scales, z, per_atom):
            place = "atom" if per_atom else "structure"
            words.append(f"{name_of_type(z)} in {count} {place}{'s' if count > 1 else ''}")
    return words if per_atom or scales.weights else []


def _samples_of_types(statistics: TargetStatistics) -> Tensor:
    """The number of atoms of each type that have a value, ``(n_types,)``; or of structures."""
    samples = torch.zeros(1, dtype=torch.float64)
    for key, block in statistics.blocks.items():
        n_components = math.prod(map(len, statistics.layout.blocks[key].components))
        if block.counts.shape[1]:
            samples = torch.maximum(samples, block.counts.amax(1) / n_components)
    return samples


def _is_fixed(scales: TargetScales, z: int, per_atom: bool) -> bool:
    """Whether nothing about a type was fitted."""
    fixed_scale = isinstance(scales.fixed, float) or z in (scales.fixed or {})
    fixed_weight = not scales.weights or z in (scales.fixed_weights or {})
    return fixed_weight and (fixed_scale or not per_atom)


def _describe_missing(statistics: TargetStatistics) -> list[str]:
    """The properties with more missing values than values, and the shares of the former.

    Types without any value of a property do not count: blocks may be padded.
    """
    words = []
    layout = statistics.layout
    for key, block in statistics.blocks.items():
        if block.missing is None:
            continue
        n_components = math.prod(map(len, layout.blocks[key].components))
        missing = torch.where(block.counts > 0, block.missing, 0.0).sum(0) / n_components
        count = block.counts.sum(0) / n_components
        for p, (absent, present) in enumerate(zip(missing.tolist(), count.tolist(), strict=True)):
            if absent > present > 0 and absent + present >= ENOUGH_SAMPLES:
                share = f"{100 * absent / (absent + present):.0f} %"
                what = "" if layout.single_property else f"{layout.describe_property(key, p)} "
                words.append(what + share)
    return words


def _is_energy(layout: TargetLayout) -> bool:
    scalar = all(not block.components for block in layout.blocks.values())
    is_energy = "energy" in layout.name.lower() and layout.single_property
    return is_energy and layout.sample_kind == "structure" and scalar


def _are_forces(layout: TargetLayout) -> bool:
    name = layout.name.lower()
    vectors = [[len(axis) for axis in block.components] == [3] for block in layout.blocks.values()]
    named = FORCES.search(name) is not None and NOT_CONSERVATIVE.search(name) is None
    return named and layout.sample_kind == "atom" and vectors == [True]
