"""What TargetScaler refuses: arguments, modules, trainers and stages that it cannot serve."""

import inspect
from collections.abc import Mapping
from typing import Any, NoReturn, get_args

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from ..plain_tensors import Declaration
from ..scaling import Scaler
from ..settings import Against, RefitPart, UnseenTypes, check_choice, same_unit
from .scaled_module import ScaledModule, scaler_of
from .scaled_steps import ScaledSteps

TUNERS = ("LearningRateFinder", "BatchSizeFinder")


def check_arguments(
    unseen_types: Any, limit_batches: Any, relative_error: Any = None, **flags: Any
) -> None:
    """Check some arguments of the callback.

    Args:
        unseen_types: scale of atomic types that are not in the data.
        limit_batches: maximum number of batches.
        relative_error: relative error of the scales that is enough.
        **flags: arguments that are ``True`` or ``False``.

    Raises:
        TypeError: for a value of another type.
        ValueError: for an unknown value.
    """
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise TypeError(f"{name}: expected True or False, got {value!r}")
    check_choice("unseen_types", unseen_types, UnseenTypes)
    if relative_error is not None:
        _check_relative_error(relative_error, limit_batches)
    if limit_batches is None:
        return
    if isinstance(limit_batches, bool) or not isinstance(limit_batches, int):
        raise TypeError(
            f"limit_batches: expected a number of batches, or None for all, got {limit_batches!r}"
        )
    if limit_batches < 1:
        raise ValueError(f"limit_batches: expected at least 1 batch, got {limit_batches}")


def _check_relative_error(value: Any, limit_batches: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"relative_error: expected a number, or None for all data, got {value!r}")
    if not 0.0 < value < 1.0:
        raise ValueError(
            "relative_error: expected a number between 0 and 1, such as 0.01 for one percent, got "
            f"{value}"
        )
    if limit_batches is not None:
        raise ValueError(
            "relative_error and limit_batches both say how much is read, got relative_error="
            f"{value} and limit_batches={limit_batches}; leave out one of them"
        )


def check_refit(
    refit: Any, against: Any, output_layers: Any, baseline: Any, relative_error: Any = None
) -> None:
    """Check what is to be fitted again.

    Args:
        refit: ``True``, ``False``, or a part of the scales.
        against: what a new baseline is fitted to.
        output_layers: submodules by target name; ``None``: none.
        baseline: composition baseline; ``None``: none.
        relative_error: relative error of the scales that is enough.

    Raises:
        ValueError: for an unknown value, or arguments that contradict each other.
    """
    parts = list(get_args(RefitPart))
    if not isinstance(refit, bool) and refit not in parts:
        raise ValueError(f"refit: expected False, True or one of {parts}, got {refit!r}")
    check_choice("against", against, Against)
    if against == "predictions" and refit != "baseline":
        raise ValueError(
            f"against='predictions' belongs to refit='baseline', got refit={refit!r}; set both, or "
            "leave out against"
        )
    if isinstance(refit, str) and relative_error is not None:
        raise ValueError(
            f"relative_error is for a fit of all scales, got refit={refit!r}; leave out "
            "relative_error"
        )
    if refit == "baseline" and baseline is None:
        raise ValueError(
            "refit='baseline' and baseline='none' contradict each other; leave out one"
        )

    if (refit == "scales") != bool(output_layers):
        raise ValueError(
            "refit='scales' and output_layers, such as {'energy': 'readouts.energy'}, need each "
            f"other, got refit={refit!r} and output_layers={output_layers!r}"
        )
    layers = output_layers or {}
    if not isinstance(layers, Mapping) or not all(isinstance(n, str) for n in layers.values()):
        raise ValueError(
            "output_layers: expected the name of a submodule for each target, such as {'energy': "
            f"'readouts.energy'}}, got {output_layers!r}"
        )


def check_averaging(callbacks: list[Any], refit: Any) -> None:
    """Refuse new scales beside averaged weights, which were copied before the parameters change.

    Raises:
        ValueError: naming the callback.
    """
    found = [type(other).__name__ for other in callbacks if _is_a(other, "WeightAveraging")]
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
            "against='predictions' corrects the baseline by what the restored module leaves over, "
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
        attribute = module._scaler_attribute
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


def check_alone(callbacks: list[Any]) -> None:
    """Check that a trainer has only one ``TargetScaler``.

    Raises:
        ValueError: if there are several, with the settings of each.
    """
    found = [repr(other) for other in callbacks if _is_a(other, "TargetScaler")]
    if len(found) > 1:
        raise ValueError(
            f"expected one TargetScaler among the callbacks of the Trainer, got {len(found)}: "
            f"{'; '.join(found)}; put all settings into one of them"
        )


def name_of_tuner(trainer: Trainer) -> str | None:
    """The class of the first callback that trains in its own ``on_fit_start``, if there is one."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    tuners = [type(callback).__name__ for callback in callbacks if _is_a(callback, *TUNERS)]
    return tuners[0] if tuners else None


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


def check_same_values(before: Declaration | None, now: Declaration) -> None:
    """Check that declared targets have the values that restored scales belong to.

    Addresses may differ.

    Raises:
        ValueError: for values per atom instead of totals.
    """
    for name in now.targets.keys() & (before.targets.keys() if before else set()):
        old, new = (getattr(d.targets[name], "per_atom", None) for d in (before, now) if d)
        if None not in (old, new):
            _check_same(name, "per_atom", old, new)


def check_same_units(before: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Check that the data have the units that restored scales belong to.

    Raises:
        ValueError: for another unit.
    """
    for name in before.keys() & now.keys():
        if not same_unit(before[name], now[name]):
            _check_same(name, "unit", before[name], now[name])


def _check_same(name: str, argument: str, old: Any, new: Any) -> None:
    if old != new:
        raise ValueError(
            f"target '{name}': the scales that the module already has are for {argument}={old!r}, "
            f"and it is declared with {argument}={new!r}; use the same values, or set refit=True "
            "to fit again"
        )


def warn_of_undeclared(scaler: Scaler, now: Declaration) -> None:
    """Warn of targets with scales that were declared before and are not any more."""
    before = scaler.declaration.targets.keys() if scaler.declaration else set()
    undeclared = sorted((before & scaler.targets.keys()) - now.targets.keys())
    if undeclared:
        rank_zero_warn(
            f"the module has scales of the targets {undeclared}, which targets={{…}} does not "
            "declare, so that they stay in model space where forward returns them, also in "
            "predictions, and with checkpoints of this run; declare them too, unless forward no "
            "longer returns them"
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


def _is_a(callback: Any, *names: str) -> bool:
    """Whether a callback, or a class in its place, has a class of one of these names."""
    bases = inspect.getmro(callback if isinstance(callback, type) else type(callback))
    return any(base.__name__ in names for base in bases)
