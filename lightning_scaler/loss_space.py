"""A batch's targets and predictions brought to loss space together, ready to be compared."""

from collections.abc import Mapping, Sequence

import torch
from metatensor.torch import TensorMap

from .atoms import Atoms, HasTypes, read_atoms
from .conversion import Conversion
from .matching import averaged, matched, positioned
from .scaler import Scaler
from .system_labels import POSITION, read_system_labels
from .tensormap import is_tensormap, mask_entries


def targets_to_loss(
    scaler: Scaler,
    systems: Sequence[HasTypes] | Atoms,
    targets: Mapping[str, TensorMap],
    masks: Mapping[str, TensorMap] | None = None,
    dtype: torch.dtype = torch.float32,
) -> dict[str, TensorMap]:
    """Targets in loss space, per atom where extensive.

    Masked entries become NaN, ``system`` labels positions in the batch. Tensors without scales pass
    through untouched.

    Args:
        scaler: fitted.
        systems: of the batch.
        targets: physical space, by target name.
        masks: by target name; ``False`` (or 0) where an entry is missing.
        dtype: of the result; everything before is computed in the dtype of the targets, or in
            float64 where a baseline comes off.
    """
    known = {name: tensor for name, tensor in targets.items() if name in scaler.targets}
    if not known:
        return dict(targets)
    for name, mask in (masks or {}).items():
        if name in known:
            known[name] = mask_entries(name, known[name], mask)
    atoms = read_atoms(systems).to(next(iter(known.values())).device)
    reading = read_system_labels(atoms, known, scaler.settings.system_labels, exact=True)
    known = {name: positioned(name, tensor, reading, atoms) for name, tensor in known.items()}
    in_loss = between_positions(scaler, atoms, known, "physical", "loss")
    return {
        **targets,
        **{name: _per_atom(scaler, name, t, atoms).to(dtype=dtype) for name, t in in_loss.items()},
    }


def predictions_to_loss(
    scaler: Scaler,
    systems: Sequence[HasTypes] | Atoms,
    predictions: Mapping[str, TensorMap],
    targets: Mapping[str, TensorMap],
) -> dict[str, TensorMap]:
    """Predictions in loss space, in the rows and the dtype of the targets that the batch has.

    Args:
        scaler: fitted.
        systems: of the batch.
        predictions: model space, by target name, ``system`` being the position in the batch.
        targets: of :func:`targets_to_loss`.

    Raises:
        TypeError: for predictions that are no mapping of TensorMaps.
        ValueError: for a target of the batch without prediction, or without scales.
    """
    if not isinstance(predictions, Mapping):
        raise TypeError(
            "expected forward to give a dict of TensorMaps by target name, got "
            f"{type(predictions).__name__}"
        )
    chosen = {}
    for name, target in targets.items():
        if name in scaler.targets and name not in predictions:
            raise ValueError(
                f"the batch has the target '{name}', of which forward gives no prediction; it "
                f"gives {sorted(predictions)}; predict it, or fit without it by "
                "TargetScaler(targets=[...])"
            )
        if name in predictions and name not in scaler.targets:
            raise ValueError(
                f"the batch has the target '{name}' and forward predicts it, but there are no "
                f"scales for it, only for {sorted(scaler.targets)}; name it in "
                "TargetScaler(targets=[...]) and fit again"
            )
        if name in predictions and not is_tensormap(predictions[name]):
            raise TypeError(
                f"target '{name}': expected forward to give a TensorMap, got "
                f"{type(predictions[name]).__name__}"
            )
        if name in predictions and is_tensormap(target):
            chosen[name] = predictions[name]
    atoms = read_atoms(systems)
    in_loss = between_positions(scaler, atoms, chosen, "model", "loss")
    return {
        name: _per_atom(scaler, name, matched(name, tensor, targets[name]), atoms)
        for name, tensor in in_loss.items()
    }


def between_positions(
    scaler: Scaler, atoms: Atoms, tensors: Mapping[str, TensorMap], source: str, target: str
) -> dict[str, TensorMap]:
    """:meth:`Scaler.convert` of tensors whose ``system`` is known to be the position."""
    if not tensors:
        return {}
    atoms = atoms.to(next(iter(tensors.values())).device)
    conversion = Conversion(source, target, unseen_types=scaler.settings.unseen_types)
    known = {name: tensor for name, tensor in tensors.items() if name in scaler.targets}
    return {**tensors, **scaler.convert_known(known, atoms, POSITION, conversion)}


def _per_atom(scaler: Scaler, name: str, tensor: TensorMap, atoms: Atoms) -> TensorMap:
    if not scaler.targets[name].extensive:
        return tensor
    return averaged(tensor, atoms.to(tensor.device))
