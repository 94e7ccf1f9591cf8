"""What TargetScaler refuses in a run, or warns of: modules, callbacks and stages."""

import inspect
from collections.abc import Mapping
from typing import Any, NoReturn

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from ..scaling import Scaler
from ..settings import Against
from ..steps import ScaledModule, ScaledSteps, scaler_of

TUNERS = ("LearningRateFinder", "BatchSizeFinder")

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


def check_averaging(callbacks: list[Any], refit: Any) -> None:
    """Refuse new scales beside averaged weights, which were copied before the parameters change.

    Raises:
        ValueError: naming the callback.
    """
    found = [
        type(other).__name__ for other in callbacks if _has_class_named(other, "WeightAveraging")
    ]
    if refit == "scales" and found:
        raise ValueError(
            f"refit='scales' multiplies parameters, of which {found[0]} already has a copy; leave "
            "one of them out"
        )


def check_resumed(trainer: Trainer, against: Against) -> None:
    """Refuse a correction of the baseline at every restart of a training.

    Raises:
        ValueError: naming the ways out.
    """
    if trainer.ckpt_path and against == "predictions":
        raise ValueError(
            "against='predictions' corrects the baseline by the errors of the restored module, "
            "and with ckpt_path it would do so at every restart; to fine-tune, load the module "
            f"with load_from_checkpoint({str(trainer.ckpt_path)!r}) and leave out ckpt_path; to "
            "resume a training, leave out refit and against"
        )


def check_module(module: LightningModule) -> Scaler:
    """Check that a module has the mixin, and return its scaler.

    Raises:
        TypeError: for another module, or a ``scaler`` of another type.
    """
    name = type(module).__name__
    if not isinstance(module, ScaledModule):
        raise TypeError(
            f"TargetScaler: expected a module with the TargetScalingMixin, got {name}; write "
            f"class {name}(TargetScalingMixin, LightningModule), or, for a module with steps of "
            "its own and targets that are plain tensors, declare them: "
            "TargetScaler(targets={'energy': PerStructure()})"
        )
    scaler: object = scaler_of(module)
    if not isinstance(scaler, Scaler):
        attribute = module._scaling_attribute
        raise TypeError(
            f"TargetScaler: expected {name}.{attribute} to be the Scaler of the mixin, got "
            f"{type(scaler).__name__}; rename your own attribute"
        )
    return scaler


def check_declared(module: LightningModule) -> None:
    """Check that the declared targets suit the mixin of a module, before a fit.

    Raises:
        TypeError: if a module with :class:`ScaledSteps` has none.
        ValueError: if another has gradients that ``forward`` does not return.
    """
    declaration, name = check_module(module).declaration, type(module).__name__
    if isinstance(module, ScaledSteps):
        if declaration is None:
            raise TypeError(
                f"TargetScaler: {name} has ScaledSteps and needs declared targets: "
                "TargetScaler(targets={'energy': PerStructure()})"
            )
        return
    for target, declared in (declaration.targets if declaration else {}).items():
        for parameter, gradient in getattr(declared, "gradients", {}).items():
            if gradient.prediction is False:
                raise ValueError(
                    f"target '{target}', gradient '{parameter}': prediction=False is for modules "
                    f"with steps of their own, and those of {name} are given by the "
                    "TargetScalingMixin, which need the gradient; return it from forward, or "
                    "declare the target without it"
                )


def check_own_loss(
    module: LightningModule, weights: Mapping[str, float] | None, balance: bool | None
) -> None:
    """Check that settings of the default loss are left out where a module has its own.

    Weights of 1, as in a preset, change nothing.

    Raises:
        ValueError: if they would have no effect.
    """
    if balance or any(weight != 1 for weight in (weights or {}).values()):
        raise ValueError(
            f"TargetScaler: {type(module).__name__} computes its own loss, on which loss_weights "
            "and balance_loss have no effect; leave them out, and weight the terms in the module"
        )


def warn_of_own_scaling(module: torch.nn.Module) -> None:
    """Warn of layers that scale or shift outputs, unless they change nothing.

    Args:
        module: module that is about to be trained with scaled targets.
    """
    found = []
    for path, part in module.named_modules():
        described = _describe_scaling(part)
        if described:
            found.append(f"{path or type(module).__name__} ({type(part).__name__}: {described})")
    if found:
        rank_zero_warn(
            f"{type(module).__name__} has scaling of its own, which acts on top of the target "
            f"scales: {'; '.join(found[:4])}{f'; {len(found)} in all' if len(found) > 4 else ''}; "
            "set its factors to 1 and its shifts to 0, and leave potentials out, unless you want "
            "them"
        )


def check_alone(callbacks: list[Any]) -> None:
    """Check that a trainer has only one ``TargetScaler``.

    Raises:
        ValueError: if there are several, with the settings of each.
    """
    found = [repr(other) for other in callbacks if _has_class_named(other, "TargetScaler")]
    if len(found) > 1:
        raise ValueError(
            f"expected one TargetScaler among the callbacks of the Trainer, got {len(found)}: "
            f"{'; '.join(found)}; put all settings into one of them"
        )


def name_of_tuner(trainer: Trainer) -> str | None:
    """The class of the first callback that trains in its own ``on_fit_start``, if there is one."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    return next((type(one).__name__ for one in callbacks if _has_class_named(one, *TUNERS)), None)


def raise_for_tuner(trainer: Trainer, tuner: str) -> NoReturn:
    """Raise an error for a tuner that trains before the scales are fitted.

    Args:
        trainer: trainer that is starting a fit.
        tuner: class name of the tuner.
    """
    where = f"the checkpoint {str(trainer.ckpt_path)!r}" if trainer.ckpt_path else "the module"
    raise RuntimeError(
        f"{tuner} trains before the target scales are fitted, because {where} has none and they "
        "are fitted after the state of the training has been restored; use the tuner in a fit "
        "without ckpt_path, or a checkpoint with scales"
    )


def check_fitted(trainer: Trainer, module: LightningModule) -> Scaler:
    """Check that a module has scales before it is evaluated, and return its scaler.

    Raises:
        RuntimeError: naming what to do.
    """
    scaler = check_module(module)
    if not scaler.fitted:
        stage = trainer.state.fn.value if trainer.state.fn else "validate"
        name = type(module).__name__
        raise RuntimeError(
            f"trainer.{stage}: {name} has no target scales yet, and TargetScaler fits them in "
            f"trainer.fit; call trainer.fit first, give ckpt_path=..., or load "
            f"{name}.load_from_checkpoint(...)"
        )
    return scaler


def _has_class_named(callback: Any, *names: str) -> bool:
    """Whether a callback, or a class in its place, has a class of one of these names."""
    bases = inspect.getmro(callback if isinstance(callback, type) else type(callback))
    return any(base.__name__ in names for base in bases)


def _describe_scaling(part: torch.nn.Module) -> str:
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
