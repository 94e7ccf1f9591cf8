"""The mixin that keeps the steps of a LightningModule and changes the space of its tensors."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from lightning.pytorch.utilities import rank_zero_info
from lightning_utilities.core.apply_func import apply_to_collection
from metatensor.torch import TensorMap
from typing_extensions import override

from ..batches import clone_inference_tensors
from ..plain_tensors import DeclaredBatch
from ..scaling import Scaler
from ..settings import did_you_mean
from .predicted_gradients import check_gradients
from .scaled_module import STAGES, ScaledModule, is_lightning
from .step_state import StepState, check_found, find_batch


class ScaledSteps(ScaledModule):
    """Runs the steps of the class behind it with scaled targets.

    For a module that has steps, a loss and metrics of its own, in a training with declared targets
    (``TargetScaler(targets={"energy": PerStructure()})``). The callback does the same to a module
    without this mixin, by itself.

    In ``training_step``, the batch holds targets in loss space: the baseline is subtracted, and
    they are divided by their scales. The output of ``forward`` is what the network gives, times
    the per-property scales of targets that have them. In all other steps the batch is that of the
    loader, and the output of ``forward`` is in the units of the data, with the baseline; so it is
    outside of steps, where the batch must be among the arguments of ``forward``. Tensors are
    replaced in copies; dtypes and shapes stay, but totals with a baseline are float64. A loss that
    a module logs in training is therefore in loss space, and in validation in units of the data.

    A step may differentiate the output of ``forward``, if the gradient is declared with
    ``prediction=False``: the conversion is part of the graph, so that the derivative is in the
    space of the step too. Gradients that ``forward`` returns must be those of what the network
    gives. Where they come from autograd, the first training step compares them, and refuses those
    that were computed from values in physical units.

    Attributes:
        target_scaler: scaler of the targets; not fitted before the callback has run or a
            checkpoint has been loaded.
        at: submodule whose output is converted instead of that of ``forward``, for a module whose
            steps do not call ``forward``.

    Raises:
        TypeError: if a class has the mixin after ``LightningModule`` among its bases.
        RuntimeError: in the first training step, for gradients that would be scaled twice.

    Example:
        >>> from lightning.pytorch import LightningModule
        >>> class Theirs(LightningModule):
        ...     def training_step(self, batch, batch_idx): ...
        >>> class Ours(ScaledSteps, Theirs): ...
        >>> Ours().target_scaler
        Scaler(not fitted)
    """

    at: ClassVar[str] = "forward"
    _scaling_attribute = "target_scaler"

    target_scaler: Scaler
    _scaling_state: StepState

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        prepare(self, type(self).at)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Wrap the steps and ``forward`` of the class."""
        super().__init_subclass__(**kwargs)
        for name, stage in STAGES.items():
            _wrap(cls, name, functools.partial(_scaled_step, stage=stage))
        _wrap(cls, "forward", _scaled_forward)

    @override
    def _scaling_predict(self, systems: Any) -> Mapping[str, TensorMap]:
        with self._scaling_state.inside_forward():  # without conversion
            return super()._scaling_predict(systems)

    @override
    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Called after every training batch. Forgets it: there is no backward pass any more."""
        self._scaling_state.forget()
        super().on_train_batch_end(outputs, batch, batch_idx)

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Called when a checkpoint is saved. Says once what of it needs the scales."""
        super().on_save_checkpoint(checkpoint)
        if not self._scaling_state.checkpoints_explained:
            self._scaling_state.checkpoints_explained = True
            rank_zero_info(
                f"TargetScaler: checkpoints of {type(self).__name__} have scales, which a class "
                "with ScaledSteps reads: class X(ScaledSteps, …), then X.load_from_checkpoint. A "
                "submodule that is saved by itself predicts in model space, unless it contains the "
                "one named at=…. For other programs, lightning_scaler.fold writes the scales into "
                "the layers"
            )


def prepare(module: Any, at: str) -> None:
    """Give a module a scaler and the state of its steps; see :func:`set_place`."""
    module.target_scaler = Scaler()
    set_place(module, at)


def set_place(module: Any, at: str) -> None:
    """Convert the output of ``forward`` or of a submodule, and of nothing else.

    Args:
        module: module whose class has :class:`ScaledSteps`.
        at: ``"forward"``, or the name of the submodule whose output is converted.

    Raises:
        AttributeError: if there is no such submodule.
    """
    known = ["forward", *(name for name, _ in module.named_modules() if name)]
    if at not in known:
        raise AttributeError(
            f"TargetScaler(at='{at}'): there is no such submodule; {did_you_mean(at, known)}"
        )
    place = None if at == "forward" else module.get_submodule(at)
    module._scaling_state = StepState(at)
    # A submodule that was saved among the hyperparameters has the hook of another module.
    remove_hooks(module)
    if place is not None:
        place.register_forward_hook(_OutputHook(module))


def remove_hooks(module: torch.nn.Module) -> None:
    """Remove the hooks that convert the output of a submodule, except for modules inside."""
    inside = {id(part) for part in module.modules() if part is not module}
    for part in module.modules():
        for key, hook in list(part._forward_hooks.items()):
            if isinstance(hook, _OutputHook) and id(hook.owner) not in inside:
                del part._forward_hooks[key]


class _OutputHook:
    """Converts the output of a submodule."""

    def __init__(self, owner: Any) -> None:
        self.owner = owner

    def __deepcopy__(self, memo: dict[int, Any]) -> "_OutputHook":
        # A copy of the submodule alone, such as an average of its weights, has the same owner.
        return _OutputHook(memo.get(id(self.owner), self.owner))

    def __call__(self, module: torch.nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if self.owner._scaling_state.in_forward:
            return output
        return _converted(self.owner, output, args, {})


def _wrap(cls: Any, name: str, wrapper: Callable[[Any], Any]) -> None:
    """Wrap a method, unless it is that of a class which is wrapped already."""
    method = getattr(cls, name, None)
    own = name in vars(cls)
    if method is None or (not own and hasattr(method, "wrapped_by_scaled_steps")):
        return
    owner = next(base for base in cls.__mro__ if name in vars(base))
    if is_lightning(owner) and name != "predict_step":
        return
    wrapped = wrapper(method)
    wrapped.wrapped_by_scaled_steps = True
    setattr(cls, name, wrapped)


def _scaled_step(step: Callable[..., Any], stage: str) -> Callable[..., Any]:
    first = [*inspect.signature(step).parameters][1:2]

    @functools.wraps(step)
    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        state: StepState = self._scaling_state
        if state.running:
            return step(self, *args, **kwargs)
        scaler = self.fitted_scaler
        name = None if args else next(name for name in (*first, *kwargs) if name in kwargs)
        batch = args[0] if name is None else kwargs[name]
        if stage == "train":
            given = scaler.convert(batch, batch)
            args, kwargs = _with_batch(given, name, args, kwargs)
            with state.run(stage, batch):
                output = step(self, *args, **kwargs)
        else:
            # Forces by autograd need normal tensors, and gradients where a hook has enabled them.
            gradients = torch.is_grad_enabled()
            with torch.inference_mode(False), torch.set_grad_enabled(gradients):
                batch = clone_inference_tensors(batch)
                args, kwargs = _with_batch(batch, name, args, kwargs)
                with state.run(stage, batch):
                    output = step(self, *args, **kwargs)
        check_found(self, step.__name__, stage, batch, output)
        if stage == "predict":
            return apply_to_collection(output, torch.Tensor, torch.Tensor.detach)
        return output

    return run


def _scaled_forward(forward: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(forward)
    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        state: StepState = self._scaling_state
        if state.at != "forward" or state.in_forward:
            return forward(self, *args, **kwargs)
        with state.inside_forward():
            output = forward(self, *args, **kwargs)
        return _converted(self, output, args, kwargs)

    return run


def _with_batch(
    batch: Any, name: str | None, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if name is None:
        return (batch, *args[1:]), kwargs
    return args, {**kwargs, name: batch}


def _converted(module: Any, output: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """The output of a network in the space of the step in which it is computed."""
    state, scaler = module._scaling_state, module.target_scaler
    declaration = scaler.declaration
    if not scaler.fitted or declaration is None:
        return output
    stage, batch = state.current()
    names = DeclaredBatch(batch, declaration).names_in_output(output)
    if not names:
        return output
    state.found |= names
    unchanged = stage == "train" and all(
        scales.layout.single_property for scales in scaler.targets.values()
    )
    if unchanged and state.gradients_checked:
        return output  # model space is loss space
    declared = find_batch(module, declaration, [*args, *kwargs.values()], batch)
    if stage == "train" and not state.gradients_checked:
        state.gradients_checked = _check_gradients(declared, output, scaler)
    if unchanged:
        return output
    target = "loss" if stage == "train" else "physical"
    return scaler.convert(declared, output, source="model", target=target)


def _check_gradients(batch: DeclaredBatch, output: Any, scaler: Scaler) -> bool:
    try:
        predictions = batch.predictions(output)
    except (TypeError, ValueError):  # what is not converted may have any shape
        return True
    return check_gradients(batch, predictions, scaler)
