"""What all modules with a scaler have in common."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from metatensor.torch import TensorMap
from typing_extensions import override

from ..batches import Batch, move_unpacked
from ..plain_tensors import DeclaredBatch, read_batch
from ..scaling import Scaler
from .epoch_log import RunMetrics

# The mixins call methods of LightningModule, but must come before it among the bases.
if TYPE_CHECKING:
    _Module = LightningModule
else:
    _Module = object

# The scales have a key of their own besides the state dict, of which some strategies load
# parameters and buffers alone.
CHECKPOINT_KEY = "target_scaler"

# The stage of each step.
STAGES = {
    "training_step": "train",
    "validation_step": "validation",
    "test_step": "test",
    "predict_step": "predict",
}


class ScaledModule(_Module):
    """A module with a scaler, which is moved, saved and restored with it.

    Private names begin with ``_scaling``: classes of users have a ``_predict`` of their own.

    Raises:
        TypeError: if a class has a mixin after ``LightningModule`` among its bases.
    """

    _scaling_attribute: ClassVar[str] = "scaler"
    # Receives the targets of the first validation, and of every one that is reported.
    _scaling_observer: Callable[..., None] | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Refuse the wrong order of bases, with which Lightning would not find these methods."""
        super().__init_subclass__(**kwargs)
        if ScaledModule in cls.__bases__:
            return
        bases = [base.__name__ for base in cls.__mro__]
        mixin = next(base for base in cls.__mro__ if ScaledModule in base.__bases__).__name__
        # Two distributions of Lightning have a LightningModule.
        if "LightningModule" in bases[: bases.index(mixin)]:
            given = [base.__name__ for base in cls.__bases__]
            others = [name for name in given if name != mixin]
            raise TypeError(
                f"class {cls.__name__}: expected {mixin} before LightningModule among the bases, "
                f"got ({', '.join(given)}); write class {cls.__name__}"
                f"({', '.join([mixin, *others])})"
            )
        if "__init__" not in cls.__dict__:
            _keep_signature(cls)

    @property
    def fitted_scaler(self) -> Scaler:
        """The scaler.

        Raises:
            RuntimeError: if it has no scales.
        """
        scaler = scaler_of(self)
        if not scaler.targets:
            raise RuntimeError(
                f"{type(self).__name__} has no target scales; train with "
                "Trainer(callbacks=[TargetScaler()]), load a checkpoint with scales, or set "
                f"module.{self._scaling_attribute} to a Scaler fitted with ScaleAccumulator"
            )
        return scaler

    def _scaling_read(self, batch: Any) -> Batch:
        """The systems, targets and masks of a batch."""
        return read_batch(batch, scaler_of(self).declaration)

    def _scaling_move(self, batch: Batch) -> Batch:
        """The batch on the device of the module."""
        return move_unpacked(batch, self.device, torch.float32)

    def _scaling_unpack(self, batch: Any) -> Batch:
        """The systems, targets and masks of a batch on the device of the module."""
        return self._scaling_move(self._scaling_read(batch))

    def _scaling_predict(self, systems: Any) -> Mapping[str, TensorMap]:
        """The predictions for the systems of a batch in model space, by target name."""
        if isinstance(systems, DeclaredBatch):
            return systems.predictions(self(systems.batch))
        predictions: Mapping[str, TensorMap] = self(systems)
        return predictions

    @override
    def on_fit_start(self) -> None:
        """Called when fit begins, after the callbacks. Raises an error if there are no scales."""
        super().on_fit_start()
        if not restores_later(self.trainer):
            _ = self.fitted_scaler

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Called when a checkpoint is saved. Writes the scales under a key of their own too.

        Callbacks that average weights save a state dict from before the fit, which gets them too.
        An override must call ``super().on_save_checkpoint(checkpoint)``.
        """
        super().on_save_checkpoint(checkpoint)
        state, key = scaler_of(self).get_extra_state(), f"{self._scaling_attribute}._extra_state"
        checkpoint[CHECKPOINT_KEY] = state
        if key in checkpoint.get("state_dict", {}):
            checkpoint["state_dict"][key] = state

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Called when a checkpoint is loaded. Restores the scales from their own key.

        Some strategies load parameters and buffers alone. Without scales in the checkpoint, the
        module keeps its own, or stays not fitted with a warning.
        An override must call ``super().on_load_checkpoint(checkpoint)``.
        """
        super().on_load_checkpoint(checkpoint)
        scaler, attribute = scaler_of(self), self._scaling_attribute
        if CHECKPOINT_KEY in checkpoint:
            scaler.set_extra_state(checkpoint[CHECKPOINT_KEY])
        elif f"{attribute}._extra_state" in checkpoint.get("state_dict", {}):
            pass  # Lightning loads the state dict afterwards.
        elif scaler.fitted:
            rank_zero_info(
                "the checkpoint has no target scales; those that the module already has are kept"
            )
        else:
            rank_zero_warn(
                "the checkpoint has no target scales, and neither has the module: a TargetScaler "
                "will fit new ones. If the weights were trained with scales, give the module those "
                f"first: module.{attribute} = Scaler.load(...)"
            )


def scaler_of(module: ScaledModule) -> Scaler:
    """The scaler of a module."""
    scaler: Scaler = getattr(module, module._scaling_attribute)
    return scaler


def restores_later(trainer: Trainer) -> bool:
    """Whether a checkpoint is restored, in whole or in part, after ``on_fit_start``.

    Some strategies restore the weights then; the state of loops and loaders always comes later.
    """
    return trainer.strategy.restore_checkpoint_after_setup or trainer.ckpt_path is not None


def _keep_signature(cls: Any) -> None:
    """Give a class the signature of the ``__init__`` behind the mixin.

    ``load_from_checkpoint`` reads the names of the arguments from it.
    """
    mixins = [base for base in cls.__mro__ if issubclass(base, ScaledModule)]
    behind = next(base for base in cls.__mro__ if base not in mixins and "__init__" in vars(base))

    @functools.wraps(behind.__init__)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        super(cls, self).__init__(*args, **kwargs)

    __init__.__signature__ = inspect.signature(behind.__init__)  # type: ignore[attr-defined]
    cls.__init__ = __init__


def loss_dtype(module: LightningModule) -> torch.dtype:
    """The dtype of systems and loss: float64 if the module's weights are, else float32."""
    dtype = _dtype_of_weights(module) or module.dtype
    return torch.float64 if dtype == torch.float64 else torch.float32


def _dtype_of_weights(module: torch.nn.Module) -> torch.dtype | None:
    """The dtype of the first floating-point parameter, if there is any."""
    # Not `module.parameters()`, which iterates over all metrics before the first layer.
    for parameter in module._parameters.values():
        if parameter is not None and parameter.is_floating_point():
            return parameter.dtype
    others = (m for m in module._modules.values() if not isinstance(m, (Scaler, RunMetrics)))
    return next(filter(None, (_dtype_of_weights(m) for m in others if m is not None)), None)


def new_scaler(module: Any) -> Scaler:
    """The scaler of a new module: the one that its class has made, or a new one.

    Raises:
        TypeError: if the class uses the attribute for something else.
    """
    existing = getattr(module, "scaler", None)
    if existing is None or isinstance(existing, Scaler):
        return existing or Scaler()
    name = type(module).__name__
    raise TypeError(
        f"{name}.scaler: expected no such attribute, which is that of the TargetScalingMixin, got "
        f"{type(existing).__name__}; rename it, or keep {name} as it is behind ScaledSteps, whose "
        "attribute is target_scaler"
    )


def refuse_hidden_steps(cls: type, mixin: type) -> None:
    """Refuse a class whose own steps are hidden by those of a mixin in front of it.

    Raises:
        TypeError: naming both ways out.
    """
    behind = cls.__mro__[cls.__mro__.index(mixin) + 1 :]
    for step in STAGES:
        first = next(base for base in cls.__mro__ if step in vars(base))
        theirs = [base for base in behind if step in vars(base) and not is_lightning(base)]
        if first is mixin and theirs:
            name = theirs[0].__name__
            raise TypeError(
                f"class {cls.__name__}: the {step} of {name} would be replaced by that of "
                f"TargetScalingMixin; to keep it, write class {cls.__name__}(ScaledSteps, {name}) "
                f"and declare the targets; to replace it, write {step} = "
                f"TargetScalingMixin.{step} in the class"
            )


def is_lightning(base: type) -> bool:
    """Whether a class is part of Lightning, in either distribution, or of torch."""
    return base.__module__.split(".")[0] in ("lightning", "pytorch_lightning", "torch")
