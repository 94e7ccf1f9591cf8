"""Write the scales of a module into its own layers."""

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_info
from lightning_utilities.core.apply_func import apply_to_collection
from metatensor.torch import TensorMap

from ..plain_tensors import Declaration, DeclaredBatch
from ..steps import ScaledSteps
from ..training import scaled_class, unscaled_copy
from .check import check_predictions
from .folded_target import FoldedTarget, read_targets, write_layers
from .nequip import NequIP
from .schnetpack import SchNetPack
from .torchmdnet import TorchMDNet


class Preset(Protocol):
    """What :func:`lightning_scaler.fold` knows of a project."""

    def recognises(self, source: Any) -> bool:
        """Whether a module, or the content of a checkpoint, is of this project."""

    def module_class(self, checkpoint: Any) -> Any:
        """The class of the module in a checkpoint."""

    def batch(self, path: Any) -> Any:
        """A batch for the module in a checkpoint; ``None`` if there is none."""

    def predict(self, module: Any, batch: Any) -> Any:
        """The output of a module for a batch, which has the predictions."""

    def write(
        self, module: Any, targets: Mapping[str, FoldedTarget], declaration: Declaration
    ) -> None:
        """Write scales and shifts into the layers of a module, and into its hyperparameters.

        Raises:
            ValueError: where they have no place.
        """


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
        TypeError: for a module without ``ScaledSteps``.
        ValueError: for scales that layers cannot hold, or predictions that differ.

    Example:
        >>> layers = {"energy": {"scales": ["out.weight"], "shifts": "atomref", "types": [1, 8]}}
        >>> folded = fold(module, batch, layers)  # doctest: +SKIP
        >>> fold("best.ckpt", out="folded.ckpt")  # doctest: +SKIP
    """
    checkpoint: dict[str, Any] = {}
    if isinstance(source, (str, os.PathLike)):
        checkpoint = torch.load(source, map_location="cpu", weights_only=False)
        preset = _find_preset(checkpoint)
        module = _load(source, checkpoint, preset, module_class)
        if batch is None and preset is not None:
            batch = preset.batch(source)
    elif not isinstance(source, ScaledSteps):
        raise TypeError(
            f"fold: expected a module that was trained with ScaledSteps, or the path of its "
            f"checkpoint, got {type(source).__name__}"
        )
    else:
        module, preset = source, _find_preset(source)
    if out is not None and not checkpoint:
        raise ValueError(
            "fold: out= needs the path of a checkpoint instead of the module; save one with "
            "trainer.save_checkpoint"
        )
    if batch is None:
        raise ValueError(
            "fold: expected a batch of a loader, for which predictions before and after are "
            "compared; give fold(…, batch)"
        )
    folded = _fold(module, batch, layers, preset, allow_rounding)
    if out is not None:
        _write(folded, checkpoint, batch, module, preset, Path(out))
    return folded


def _find_preset(source: Any) -> Preset | None:
    """The preset for a module or the content of a checkpoint; ``None`` if there is none."""
    presets: list[Preset] = [NequIP(), SchNetPack(), TorchMDNet()]
    return next((preset for preset in presets if preset.recognises(source)), None)


def _fold(
    module: Any, batch: Any, layers: Any, preset: Preset | None, allow_rounding: bool
) -> LightningModule:
    scaler = module.fitted_scaler
    declaration = scaler.declaration
    targets = read_targets(scaler)
    folded: Any = unscaled_copy(module)
    with torch.no_grad():
        if layers is not None:
            write_layers(folded, targets, layers)
        elif preset is not None:
            preset.write(folded, targets, declaration)
        else:
            raise ValueError(
                f"fold: the layers of {type(folded).__name__} are not known; name those that "
                "multiply and shift each prediction, as in layers={'energy': {'scales': "
                "['out.weight', 'out.bias'], 'shifts': 'references'}}"
            )
    floats = {p.dtype for p in folded.parameters() if p.is_floating_point()}
    narrowest = min(floats, key=lambda dtype: torch.finfo(dtype).bits, default=torch.float64)
    predicted = partial(_predictions, batch=batch, declaration=declaration, preset=preset)
    n_atoms = DeclaredBatch(batch, declaration).atoms.n_atoms
    differences = check_predictions(
        predicted(module), predicted(folded), targets, n_atoms, narrowest, allow_rounding
    )
    rank_zero_info(
        f"fold: {type(folded).__name__} predicts in the units of the data without a scaler; "
        f"largest differences: {differences}"
    )
    return folded  # type: ignore[no-any-return]


def _predictions(
    module: Any, batch: Any, declaration: Declaration, preset: Preset | None
) -> dict[str, TensorMap]:
    """The predictions of a module in evaluation mode, which may write to its batch."""
    was_training = module.training
    batch = batch.clone() if hasattr(batch, "clone") else _clone_tensors(batch)
    module.eval()
    try:
        with torch.inference_mode(False), torch.enable_grad():  # forces by autograd
            output = module(batch) if preset is None else preset.predict(module, batch)
    finally:
        module.train(was_training)
    return DeclaredBatch(batch, declaration).predictions(output, declaration.targets)


def _clone_tensors(batch: Any) -> Any:
    return apply_to_collection(batch, torch.Tensor, lambda tensor: tensor.detach().clone())


def _load(source: Any, checkpoint: Any, preset: Preset | None, module_class: Any) -> Any:
    if module_class is None and preset is not None:
        module_class = preset.module_class(checkpoint)
    if module_class is None:
        raise ValueError(
            f"fold: the class of the module in '{source}' is not known; give module_class=…"
        )
    if not issubclass(module_class, ScaledSteps):
        module_class = scaled_class(module_class)
    return module_class.load_from_checkpoint(source, map_location="cpu", weights_only=False)


def _write(
    folded: Any, checkpoint: Any, batch: Any, module: Any, preset: Preset | None, out: Path
) -> None:
    """Write a checkpoint without scaler and optimizer, and read it again before it is final."""
    kept = ("epoch", "global_step", "pytorch-lightning_version", "hparams_name", "hparams_type")
    written = {name: checkpoint[name] for name in kept if name in checkpoint}
    written["state_dict"] = folded.state_dict()
    if folded.hparams:
        written["hyper_parameters"] = dict(folded.hparams)
    temporary = out.with_name(f"{out.name}.part")
    torch.save(written, temporary)
    try:
        again = type(folded).load_from_checkpoint(temporary, map_location="cpu", weights_only=False)
        declaration = module.target_scaler.declaration
        predicted = partial(_predictions, batch=batch, declaration=declaration, preset=preset)
        for name, first in predicted(folded).items():
            first_values = first.block().values.detach()
            second = predicted(again)[name].block().values.detach()
            if not torch.equal(first_values, second):
                raise ValueError(
                    f"fold: {type(folded).__name__}.load_from_checkpoint does not restore the "
                    f"folded layers ('{name}' differs by "
                    f"{float((first_values - second).abs().max()):.1e}), so '{out}' was not "
                    "written; use the module that fold(module, batch) returns"
                )
        os.replace(temporary, out)
    finally:
        temporary.unlink(missing_ok=True)
