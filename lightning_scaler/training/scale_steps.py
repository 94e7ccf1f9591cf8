"""Scaled steps for a module whose class does not have the mixin."""

import copy
import functools
from collections.abc import Callable
from types import MethodType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from ..steps import ScaledSteps, prepare, remove_hooks, set_place


def scale_steps(trainer: Trainer, module: LightningModule, callback: Callback, at: str) -> None:
    """Change the class of a module to one with :class:`ScaledSteps` in front of it.

    As ``torch.nn.utils.parametrize`` does. Says so in one line.

    Args:
        trainer: trainer that is being set up.
        module: module without a mixin.
        callback: callback that does this.
        at: ``"forward"``, or the name of the submodule whose output is converted.

    Raises:
        TypeError: where the change would not hold.
        AttributeError: if there is no such submodule.
    """
    cls, name = type(module), type(module).__name__
    refuse_new_processes(trainer, module)
    _remove_redirection(module)
    problem = _find_obstacle(trainer, module, callback)
    if problem is not None:
        raise _cannot_be_scaled(module, problem)
    scaled: Any = scaled_class  # mypy takes a class for a function that returns it
    module.__class__ = scaled(cls, at)
    prepare(module, at)
    rank_zero_info(
        f"TargetScaler: the steps of {name} see scaled targets (ScaledSteps): training_step works "
        "in loss space, all other steps and predictions in the units of the data, so training and "
        "validation losses have different units"
    )


def refuse_new_processes(trainer: Trainer, module: LightningModule) -> None:
    """Refuse strategies whose processes have copies of the module, the classes of which change.

    The hooks of a fit run in these processes; what starts them shows their errors with everything
    that called them, and then asks the callbacks for more.

    Raises:
        TypeError: naming the way out.
    """
    if "MultiProcessing" in type(trainer.strategy.launcher).__name__:
        strategy = type(trainer.strategy).__name__
        problem = f"{strategy} starts processes that copy the module"
        raise _cannot_be_scaled(module, problem) from None


def move_place(module: LightningModule, at: str) -> None:
    """Convert the output of another submodule than before, in a class of :func:`scale_steps`.

    Args:
        module: module with a mixin.
        at: name of the submodule.

    Raises:
        ValueError: for a module whose class has a mixin in its own code.
        AttributeError: if there is no such submodule.
    """
    cls: Any = type(module)
    if isinstance(module, ScaledSteps) and module._scaling_state.at == at:
        return
    if ScaledSteps not in cls.__bases__ or cls is not scaled_class(cls.__bases__[-1], cls.at):
        way_out = "leave out at"
        if isinstance(module, ScaledSteps):
            way_out = f"write at = {at!r} in the class, or {way_out}"
        raise ValueError(
            f"at={at!r} is for modules without a mixin, and {cls.__name__} has one; {way_out}"
        )
    set_place(module, at)
    module.__class__ = scaled_class(cls.__bases__[-1], at)


@functools.cache
def scaled_class(cls: Any, at: str = "forward") -> Any:
    """The class with :class:`ScaledSteps` in front of it; its modules can be copied and pickled."""

    def __reduce_ex__(self: Any, protocol: Any) -> tuple[Any, ...]:  # noqa: N807
        create, arguments, *rest = super(scaled, self).__reduce_ex__(protocol)
        return _create, (create, cls, at, arguments[1:]), *rest

    members = {
        "__reduce_ex__": __reduce_ex__,
        "__module__": cls.__module__,
        "__doc__": cls.__doc__,
        "at": at,
    }
    scaled: Any = type(f"Scaled{cls.__name__}", (ScaledSteps, cls), members)
    return scaled


def unscaled_copy(module: ScaledSteps) -> LightningModule:
    """A copy of a module in the class behind :class:`ScaledSteps`, without a scaler.

    Raises:
        TypeError: if there are several such classes.
    """
    mro = type(module).__mro__
    mixed = next(base for base in mro if ScaledSteps in base.__bases__)
    behind = [base for base in mixed.__bases__ if base is not ScaledSteps]
    if len(behind) != 1:
        raise TypeError(
            f"expected one class behind ScaledSteps, as in class X(ScaledSteps, Theirs), got "
            f"({', '.join(base.__name__ for base in mixed.__bases__)})"
        )
    copied: Any = copy.deepcopy(module)
    remove_hooks(copied)
    _remove_redirection(copied)
    del copied.target_scaler, copied._scaling_state
    copied.__class__ = behind[0]
    return copied  # type: ignore[no-any-return]


def _cannot_be_scaled(module: LightningModule, problem: str) -> TypeError:
    name = type(module).__name__
    return TypeError(
        f"TargetScaler: the steps of {name} cannot be scaled here, because {problem}; write "
        f"class Scaled{name}(ScaledSteps, {name}) and train that"
    )


def _create(create: Callable[..., Any], cls: Any, at: str, arguments: tuple[Any, ...]) -> Any:
    return create(scaled_class(cls, at), *arguments)


def _remove_redirection(module: Any) -> None:
    """Remove the method of the class that Lightning leaves as an attribute after a run of DDP."""
    forward = vars(module).get("forward")
    if isinstance(forward, MethodType) and forward.__func__ is type(module).forward:
        del module.forward


def _find_obstacle(trainer: Any, module: Any, callback: Callback) -> str | None:
    """Why a change of the class would not hold; ``None`` if it would."""
    if "forward" in vars(module) or getattr(module, "_compiler_ctx", None) is not None:
        return "it was compiled before the fit, and its compiled methods would not be replaced"
    callbacks = trainer.callbacks
    before = callbacks[: callbacks.index(callback)]
    names = [base.__name__ for other in before for base in type(other).__mro__]
    if "WeightAveraging" in names:
        return "WeightAveraging is listed before TargetScaler and has copied the module already"
    return None
