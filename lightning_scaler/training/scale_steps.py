"""Scaled steps for a module whose class does not have the mixin."""

import functools
from collections.abc import Callable
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from .scaled_steps import ScaledSteps, prepare


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
    problem = _why_not(trainer, module, callback)
    if problem is not None:
        raise TypeError(
            f"TargetScaler: the steps of {name} cannot be scaled here, because {problem}; write "
            f"class Scaled{name}(ScaledSteps, {name}) and train that"
        )
    scaled: Any = scaled_class  # mypy takes a class for a function that returns it
    module.__class__ = scaled(cls)
    prepare(module, at)
    rank_zero_info(
        f"TargetScaler: the steps of {name} see scaled targets (ScaledSteps): training_step works "
        "in loss space, all other steps and predictions in the units of the data, so training and "
        "validation losses have different units"
    )


@functools.cache
def scaled_class(cls: Any) -> Any:
    """The class with :class:`ScaledSteps` in front of it; its modules can be copied and pickled."""

    def __reduce_ex__(self: Any, protocol: Any) -> tuple[Any, ...]:  # noqa: N807
        create, arguments, *rest = super(scaled, self).__reduce_ex__(protocol)
        return _create, (create, cls, arguments[1:]), *rest

    members = {
        "__reduce_ex__": __reduce_ex__,
        "__module__": cls.__module__,
        "__doc__": cls.__doc__,
    }
    scaled: Any = type(f"Scaled{cls.__name__}", (ScaledSteps, cls), members)
    return scaled


def _create(create: Callable[..., Any], cls: Any, arguments: tuple[Any, ...]) -> Any:
    return create(scaled_class(cls), *arguments)


def _why_not(trainer: Any, module: Any, callback: Callback) -> str | None:
    """Why a change of the class would not hold; ``None`` if it would."""
    if "forward" in vars(module) or getattr(module, "_compiler_ctx", None) is not None:
        return "it was compiled before the fit, and its compiled methods would not be replaced"
    if "MultiProcessing" in type(trainer.strategy.launcher).__name__:
        return f"{type(trainer.strategy).__name__} starts processes that copy the module"
    callbacks = trainer.callbacks
    before = callbacks[: callbacks.index(callback)]
    names = [base.__name__ for other in before for base in type(other).__mro__]
    if "WeightAveraging" in names:
        return "WeightAveraging is listed before TargetScaler and has copied the module already"
    return None
