"""The fitted numbers of an energy as settings of other codes for interatomic potentials."""

import math
from collections.abc import Callable
from typing import Literal

from ..scaling import Scaler, TargetScales
from ..settings import CHEMICAL_SYMBOLS, check_choice, check_names

OtherCode = Literal["nequip", "mace", "fairchem", "deepmd"]
# By atomic type, in the units of the data; their sum over the atoms of a structure is subtracted
# from its total energy.
Energies = dict[int, float]


def settings_for(code: OtherCode, scaler: Scaler, target: str = "energy") -> str:
    r"""Settings of another code that subtract and divide by the fitted numbers.

    All of them model a total energy as :math:`E = \sum_i (s\,e_i + E_{Z_i})` with the energy
    :math:`E_Z` of each type, which are the weights of the composition baseline, and a scale
    :math:`s` (1 in DeePMD). Where forces are derived from the energy they are scaled by :math:`s`
    too, and by convention it is the RMS of the force components. The scale of our energy target is
    another quantity, the RMS of the energies per atom, and is not used here.

    Sources: ``PerTypeScaleShift`` of NequIP 0.19, ``ScaleShiftBlock`` and the arguments of
    ``mace_run_train`` of MACE 0.3.16, ``ElementReferences`` and ``Normalizer`` of fairchem-core
    2.24, and "Change the model output bias" in the documentation of DeePMD-kit 3.

    Args:
        code: name of the code.
        scaler: fitted scaler.
        target: name of the energy.

    Returns:
        Settings as text, with comments that say which number is which.

    Raises:
        ValueError: for an unknown code or target, and where the numbers do not correspond.
    """
    check_choice("code", code, OtherCode)
    check_names("target", [target], scaler.targets)
    return _WRITERS[code](target, _energies(scaler, target), _force_rms(scaler, target))


def _nequip(target: str, energies: Energies, force_rms: float | None) -> str:
    scale = _needed(force_rms, "NequIP", "per_type_energy_scales")
    symbols = ", ".join(CHEMICAL_SYMBOLS[z] for z in energies)
    return "\n".join(
        [
            "# NequIP: E = sum of scale * e_i + shift over the atoms, in the order of type_names",
            f"# shifts: the composition baseline of '{target}'; scale: the RMS of the forces",
            f"model_type_names: [{symbols}]",
            f"per_type_energy_shifts: [{', '.join(map(repr, energies.values()))}]",
            f"per_type_energy_scales: {scale!r}",
        ]
    )


def _mace(target: str, energies: Energies, force_rms: float | None) -> str:
    scale = _needed(force_rms, "MACE", "--std")
    listed = ", ".join(f"{z}: {energy!r}" for z, energy in energies.items())
    return "\n".join(
        [
            "# MACE: E = sum of E0 + std * e_i + mean over the atoms",
            f"# E0s: the composition baseline of '{target}'; std: the RMS of the forces; mean: 0,",
            "# because the baseline is all that is subtracted",
            f"--E0s='{{{listed}}}' --mean=0.0 --std={scale!r}",
        ]
    )


def _fairchem(target: str, energies: Energies, force_rms: float | None) -> str:
    scale = _needed(force_rms, "fairchem", "rmsd")
    listed = ", ".join(repr(energies.get(z, 0.0)) for z in range(max(energies) + 1))
    path = "fairchem.core.modules.normalization"
    return "\n".join(
        [
            "# fairchem: (E - sum of the references over the atoms) / rmsd, and forces / rmsd; one",
            "# rmsd for both, where forces are derived from the energy",
            f"# element_references: the composition baseline of '{target}' by atomic number,",
            "# from 0; rmsd: the RMS of the forces",
            "normalizer:",
            f"  _target_: {path}.normalizer.Normalizer",
            "  mean: 0.0",
            f"  rmsd: {scale!r}",
            "element_references:",
            f"  _target_: {path}.element_references.ElementReferences",
            "  element_references:",
            "    _target_: torch.DoubleTensor",
            f"    _args_: [[{listed}]]",
        ]
    )


def _deepmd(target: str, energies: Energies, _: float | None) -> str:
    return "\n".join(
        [
            "# DeePMD: E = sum of e_i + bias over the atoms, in the order of type_map",
            f"# bias: the composition baseline of '{target}'; there is no scale",
            f"# type_map: [{', '.join(CHEMICAL_SYMBOLS[z] for z in energies)}]",
            f"dp --pt change-bias model.ckpt.pt -b {' '.join(map(repr, energies.values()))}",
        ]
    )


_WRITERS: dict[str, Callable[[str, Energies, float | None], str]] = {
    "nequip": _nequip,
    "mace": _mace,
    "fairchem": _fairchem,
    "deepmd": _deepmd,
}


def _energies(scaler: Scaler, target: str) -> Energies:
    """The baseline weight of each type."""
    scales = scaler.targets[target]
    where = f"target '{target}'"
    if scales.layout.sample_kind != "structure" or not scales.layout.single_property:
        raise ValueError(
            f"{where}: expected one energy per structure, got several properties, or values of "
            "atoms; name the energy in --target"
        )
    if scales.additive:
        raise ValueError(
            f"{where}: an additive module was subtracted first, which the other code does not "
            "have; fit without it"
        )
    if not scales.weights or scales.composition != "counts":
        raise ValueError(
            f"{where}: expected a composition baseline with an energy per atom of each type, got "
            f"{'fractions of an intensive target' if scales.weights else 'no baseline'}; fit with "
            "baseline='composition', and not as an intensive target"
        )
    weights = scales.weights_or_nan(*scales.weights)[:, 0].tolist()
    energies = dict(zip(scales.baseline_types.tolist(), weights, strict=True))
    missing = [z for z, energy in energies.items() if math.isnan(energy)]
    if missing:
        raise ValueError(
            f"{where}: the baseline of the types {missing} is unknown; give fixed ones"
        )
    others = [z for z in energies if z not in CHEMICAL_SYMBOLS]
    if others:
        raise ValueError(f"{where}: expected atomic numbers as types, got {others}")
    return energies


def _force_rms(scaler: Scaler, target: str) -> float | None:
    """The RMS of the forces: of the gradient of the energy, or of a target ``forces``."""
    scales = scaler.targets[target]
    in_loss = scales.mean_squares.get("positions")
    if in_loss is not None:
        return float(scales.per_target[0]) * math.sqrt(in_loss)
    forces = scaler.targets.get("forces")
    if forces is None or not _has_rms_of_forces(forces):
        return None
    return forces.rms_after


def _has_rms_of_forces(scales: TargetScales) -> bool:
    blocks = list(scales.layout.blocks.values())
    return (
        scales.layout.sample_kind == "atom"
        and scales.layout.single_property
        and [len(component) for component in blocks[0].components] == [3]
        # Without a data pass, mean squares are unknown, and the RMS is that of one batch.
        and (scales.fixed is None or bool(scales.mean_squares))
        and scales.rms_after > 0.0
    )


def _needed(force_rms: float | None, code: str, setting: str) -> float:
    if force_rms is None:
        raise ValueError(
            f"{code}: {setting} is the RMS of the forces, and the fit had none, neither as the "
            "gradient 'positions' of the energy nor as a target 'forces'; the scale of the energy "
            "is the RMS of the energies per atom, which is another quantity"
        )
    return force_rms
