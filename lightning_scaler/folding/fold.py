"""Write the scales of a module into its own layers."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_info
from lightning_utilities.core.apply_func import apply_to_collection
from metatensor.torch import TensorMap
from torch.utils.data import DataLoader

from ..deploy import find_wrapped
from ..plain_tensors import Declaration, DeclaredBatch
from ..settings import kind_of
from ..steps import ScaledSteps
from ..tensors import check_checkpoint, check_writable, loading_weights, replacing
from ..training import scaled_class, unscaled_copy
from .check import check_predictions
from .folded_target import FoldedTarget, Preset, describe_ties, read_targets, write_layers
from .nequip import NequIP
from .schnetpack import SchNetPack
from .torchmdnet import TorchMDNet

Predict = Callable[[Any], dict[str, TensorMap]]


def fold(
    source: LightningModule | str | os.PathLike[str],
    batch: Any = None,
    layers: Mapping[str, Any] | None = None,
    out: str | os.PathLike[str] | None = None,
    module_class: type | None = None,
    allow_rounding: bool = False,
) -> LightningModule:
    r"""Write scales and baselines into the layers of a module, which then needs no scaler.

    For a module that was trained with :class:`ScaledSteps`, by its class or by the callback. The
    result is a copy of it in its own class, whose output is in the units of the data. So the tools
    of its project serve it as if it had been trained without scales:

    .. math:: y = \sigma \, y_\mathrm{model} + \sum_i b_{Z_i}

    The predictions of both are compared for a batch. Where the network computes in double
    precision, they must agree to 1e-12 of the largest value; otherwise to a thousandth of the
    scale. One line names the largest differences.

    Args:
        source: trained module, or a checkpoint of it. A checkpoint is read with pickle: take none
            from people you do not trust.
        batch: batch of a loader, on the device of the module. Default: for a checkpoint of NequIP,
            a structure of its training data.
        layers: for each target, the names of parameters or buffers of the module: ``scales``, by
            which the prediction is multiplied (weight and bias of the last layer, for example), and
            ``shifts``, a table with a term for each atomic type that is added to it, once per atom.
            ``types`` gives the atomic type of each row of that table; default: the index of the
            row. Not needed for NequIP, SchNetPack and TorchMD-NET.
        out: file for a checkpoint of the folded module that its own class reads.
        module_class: for a checkpoint, class of the module. Default: for NequIP, SchNetPack
            and TorchMD-NET, that of the checkpoint.
        allow_rounding: accept rounding errors that are larger than a thousandth of the scale.

    Raises:
        TypeError: for a module without ``ScaledSteps``, or an argument of another type.
        ValueError: for a file that is no checkpoint, or one of another module, for scales that
            layers cannot hold, or predictions that differ.
        OSError: if a file cannot be read or written.

    Example:
        >>> layers = {"energy": {"scales": ["out.weight"], "shifts": "atomref", "types": [1, 8]}}
        >>> folded = fold(module, batch, layers)  # doctest: +SKIP
        >>> fold("best.ckpt", out="folded.ckpt")  # doctest: +SKIP
    """
    if isinstance(source, (str, os.PathLike)):
        if out is not None:
            check_writable(out)
        check_checkpoint(source)
        checkpoint = torch.load(source, map_location="cpu", weights_only=False)
        preset = _find_preset(checkpoint)
        state = checkpoint["state_dict"].items()
        weights = [value for name, value in state if not name.endswith("_extra_state")]
        with _precision_of(weights, preset):
            module = _load(source, checkpoint, preset, module_class)
            if batch is None and preset is not None:
                batch = preset.batch(source)
            folded, predict = _fold(module, batch, layers, preset, allow_rounding)
            if out is not None:
                _save(folded, checkpoint, predict, out)
        return folded
    if not isinstance(source, ScaledSteps):
        path, inner = find_wrapped(source, lambda module: not isinstance(module, ScaledSteps))
        raise TypeError(
            f"fold: expected a module that was trained with ScaledSteps, or the path of its "
            f"checkpoint, got {kind_of(source)}"
            + (f"; pass its {path}" if isinstance(inner, ScaledSteps) else "")
        )
    if out is not None:
        raise ValueError(
            "fold: out= needs the path of a checkpoint instead of the module; save one with "
            "trainer.save_checkpoint"
        )
    preset = _find_preset(source)
    with _precision_of([*source.parameters(), *source.buffers()], preset):
        return _fold(source, batch, layers, preset, allow_rounding)[0]


@contextmanager
def _precision_of(weights: Iterable[Any], preset: Preset | None) -> Iterator[None]:
    """Build and run a module as ``Trainer(precision="64-true")`` does, if it was trained so.

    NequIP sets the default dtype by itself, for good.
    """
    tensors = [weight for weight in weights if isinstance(weight, torch.Tensor)]
    dtypes = {tensor.dtype for tensor in tensors if tensor.is_floating_point()}
    outside = torch.get_default_dtype()
    if preset is None and dtypes == {torch.float64}:
        torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        if preset is None:
            torch.set_default_dtype(outside)


def _fold(
    module: Any, batch: Any, layers: Any, preset: Preset | None, allow_rounding: bool
) -> tuple[LightningModule, Predict]:
    """The folded copy of a module, and the predictions of a module for the batch."""
    if batch is None:
        raise ValueError(
            "fold: expected a batch of a loader, for which predictions before and after are "
            "compared; give fold(…, batch)"
        )
    if isinstance(batch, DataLoader):
        raise TypeError(
            "fold: expected a batch of the loader, got the loader; give next(iter(loader))"
        )
    scaler = module.fitted_scaler
    targets, declared = read_targets(scaler), DeclaredBatch(batch, scaler.declaration)
    n_atoms = declared.atoms.n_atoms  # an error if this is not a batch
    folded: Any = unscaled_copy(module)
    with torch.no_grad():
        _write_into(folded, targets, layers, preset, declared.declaration)
    floats = {p.dtype for p in folded.parameters() if p.is_floating_point()}
    narrowest = min(floats, key=lambda dtype: torch.finfo(dtype).bits, default=torch.float64)
    predict = partial(_predict, declared=declared, preset=preset)
    differences = check_predictions(
        predict(module),
        predict(folded),
        targets,
        n_atoms,
        narrowest,
        allow_rounding,
        describe_ties(folded, layers),
    )
    rank_zero_info(
        f"fold: {type(folded).__name__} predicts in the units of the data without a scaler; "
        f"largest differences: {differences}"
    )
    return folded, predict


def _find_preset(source: Any) -> Preset | None:
    """The preset for a module or the content of a checkpoint; ``None`` if there is none."""
    presets: list[Preset] = [NequIP(), SchNetPack(), TorchMDNet()]
    return next((preset for preset in presets if preset.recognises(source)), None)


def _write_into(
    module: torch.nn.Module,
    targets: Mapping[str, FoldedTarget],
    layers: Mapping[str, Any] | None,
    preset: Preset | None,
    declaration: Declaration,
) -> None:
    if layers is not None:
        write_layers(module, targets, layers)
    elif preset is not None:
        preset.write(module, targets, declaration)
    else:
        raise ValueError(
            f"fold: the layers of {type(module).__name__} are not known; name those that "
            "multiply and shift each prediction, as in layers={'energy': {'scales': "
            "['out.weight', 'out.bias'], 'shifts': 'references'}}"
        )


def _predict(module: Any, declared: DeclaredBatch, preset: Preset | None) -> dict[str, TensorMap]:
    """The predictions of a module in evaluation mode, which may write to its batch."""
    was_training, batch = module.training, declared.batch
    if hasattr(batch, "clone"):
        batch = batch.clone()
    else:
        batch = apply_to_collection(batch, torch.Tensor, lambda tensor: tensor.detach().clone())
    module.eval()
    try:
        with torch.inference_mode(False), torch.enable_grad():  # forces by autograd
            output = module(batch) if preset is None else preset.predict(module, batch)
    finally:
        module.train(was_training)
    declaration = declared.declaration
    return DeclaredBatch(batch, declaration).predictions(output, declaration.targets)


def _load(source: Any, checkpoint: Any, preset: Preset | None, module_class: Any) -> Any:
    if module_class is None and preset is not None:
        module_class = preset.module_class(checkpoint)
    if module_class is None:
        raise ValueError(
            f"fold: the class of the module in '{source}' is not known; give module_class=…"
        )
    # Two distributions of Lightning have a LightningModule.
    if not isinstance(module_class, type) or not hasattr(module_class, "load_from_checkpoint"):
        raise TypeError(
            "fold: expected a LightningModule's class as module_class, such as "
            f"module_class=Net, got {kind_of(module_class)}"
        )
    name = module_class.__name__
    scaled: Any = module_class
    if not issubclass(scaled, ScaledSteps):
        scaled = scaled_class(scaled)
    with loading_weights(source, f"module_class={name} is not the class that was trained"):
        return scaled.load_from_checkpoint(source, map_location="cpu", weights_only=False)


def _save(folded: Any, checkpoint: Any, predict: Predict, out: Any) -> None:
    """Write a checkpoint without scaler and optimizer, and read it again before it is final."""
    kept = ("epoch", "global_step", "pytorch-lightning_version", "hparams_name", "hparams_type")
    written = {name: checkpoint[name] for name in kept if name in checkpoint}
    written["state_dict"] = folded.state_dict()
    if folded.hparams:
        written["hyper_parameters"] = dict(folded.hparams)
    with replacing(out) as temporary:
        torch.save(written, temporary)
        again = type(folded).load_from_checkpoint(temporary, map_location="cpu", weights_only=False)
        restored = predict(again)
        for name, prediction in predict(folded).items():
            first, second = (
                tensor.block().values.detach() for tensor in (prediction, restored[name])
            )
            if not torch.equal(first, second):
                raise ValueError(
                    f"fold: {type(folded).__name__}.load_from_checkpoint does not restore the "
                    f"folded layers ('{name}' differs by {float((first - second).abs().max()):.1e})"
                    f", so '{out}' was not written; use the module that fold(module, batch) returns"
                )
