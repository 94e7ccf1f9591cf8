"""A warning about scaling of a module's own, which acts on top of the target scales."""

import torch
from lightning.pytorch.utilities import rank_zero_warn

# Attributes of modules that scale or shift outputs, with the value that changes nothing.
FACTORS = {"std", "data_std", "target_std", "y_std", "scales", "scale_by"}
TERMS = {"mean", "data_mean", "target_mean", "y_mean", "shifts", "shift_by", "element_refs"}
TERMS |= {"atomref", "initial_atomref", "atomic_energies"}

# Classes all of whose tensors are scales or references.
CLASSES = {"RemoveOffsets", "AddOffsets", "ScaleProperty", "ScaleShift", "ScaleShiftBlock"}
CLASSES |= {"PerTypeScaleShift", "AtomicEnergiesBlock", "Atomref", "AtomRef", "StandardScaler"}

# Classes that add energies in the units of the data, of NequIP, SchNetPack and TorchMD-NET.
POTENTIALS = {"ZBL", "LennardJones", "SimpleLennardJones", "ZBLRepulsionEnergy", "EnergyCoulomb"}
POTENTIALS |= {"EnergyEwald", "D2", "Coulomb"}


def warn_of_own_scaling(module: torch.nn.Module) -> None:
    """Warn of layers that scale or shift outputs, unless they change nothing.

    Args:
        module: module that is about to be trained with scaled targets.
    """
    found = []
    for path, part in module.named_modules():
        described = _describe(part)
        if described:
            found.append(f"{path or type(module).__name__} ({type(part).__name__}: {described})")
    if found:
        rank_zero_warn(
            f"{type(module).__name__} has scaling of its own, which acts on top of the target "
            f"scales: {'; '.join(found[:4])}{f'; {len(found)} in all' if len(found) > 4 else ''}; "
            "set its factors to 1 and its shifts to 0, and leave potentials out, unless you want "
            "them"
        )


def _describe(part: torch.nn.Module) -> str:
    if type(part).__name__ in POTENTIALS:
        return "a potential, which would be multiplied by the scale"
    names = [*vars(part), *part._parameters, *part._buffers]
    words = []
    for name in names:
        if name in FACTORS and not _is_all(getattr(part, name), 1.0):
            words.append(f"{name} is not 1")
        elif name in TERMS and not _is_all(getattr(part, name), 0.0):
            words.append(f"{name} is not 0")
    if words or type(part).__name__ not in CLASSES:
        return ", ".join(words)
    tensors = [*part.parameters(recurse=False), *part.buffers(recurse=False)]
    floats = [tensor for tensor in tensors if tensor.is_floating_point()]
    if all(_is_all(tensor, 1.0) or _is_all(tensor, 0.0) for tensor in floats):
        return ""
    return "not the identity"


def _is_all(value: object, number: float) -> bool:
    """Whether a tensor or a number has this value everywhere; ``True`` for other objects."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return value == number
    if isinstance(value, torch.Tensor) and value.is_floating_point() and not value.is_meta:
        return bool((value.detach() == number).all())
    return True
