"""A batch's targets and predictions brought to loss space together, ready to be compared."""

from collections.abc import Mapping, Sequence
from itertools import compress

import torch
from metatensor.torch import TensorMap

from ..batches import (
    Atoms,
    HasTypes,
    align_prediction,
    index_by_position,
    infer_system_indexing,
    read_atoms,
    relabel_by_position,
)
from ..tensors import apply_mask, dtype_of, have_labels, have_one_dtype, is_tensormap
from .conversion import Conversion
from .scaler import Scaler


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
    atoms = read_atoms(systems).to(next(iter(known.values())).device)
    for name, mask in (masks or {}).items():
        if name in known:
            known[name] = apply_mask(name, known[name], mask)
            atoms.known.learn_same(known[name], targets[name])
    reading = infer_system_indexing(atoms, known, scaler.settings.system_labels, exact=True)
    if reading.ids is not None:
        known = {
            name: relabel_by_position(name, tensor, reading, atoms)
            for name, tensor in known.items()
        }
        reading = index_by_position(atoms, known)
    conversion = Conversion(
        "physical", "loss", True, scaler.settings.unseen_types, per_atom=True, dtype=dtype
    )
    return {**targets, **scaler.convert_known(known, atoms, reading, conversion)}


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
    wanted = [targets[name] for name in chosen]
    same = set(compress(chosen, have_labels(list(chosen.values()), wanted)))
    for name in same:
        atoms.known.learn_same(chosen[name], targets[name])
    filled = next((target for target in wanted if len(target.keys)), None)
    dtype = dtype_of(filled) if filled is not None and have_one_dtype(wanted) else None
    unseen_types = scaler.settings.unseen_types
    conversion = Conversion("model", "loss", True, unseen_types, per_atom=True, dtype=dtype)
    in_loss = _between_positions(scaler, atoms, chosen, conversion)
    return {
        name: tensor if dtype and name in same else align_prediction(name, tensor, targets[name])
        for name, tensor in in_loss.items()
    }


def between_positions(
    scaler: Scaler, atoms: Atoms, tensors: Mapping[str, TensorMap], source: str, target: str
) -> dict[str, TensorMap]:
    """:meth:`Scaler.convert` of tensors whose ``system`` is known to be the position."""
    conversion = Conversion(source, target, unseen_types=scaler.settings.unseen_types)
    return _between_positions(scaler, atoms, tensors, conversion)


def _between_positions(
    scaler: Scaler, atoms: Atoms, tensors: Mapping[str, TensorMap], conversion: Conversion
) -> dict[str, TensorMap]:
    known = {name: tensor for name, tensor in tensors.items() if name in scaler.targets}
    if not known:
        return dict(tensors)
    atoms = atoms.to(next(iter(known.values())).device)
    reading = index_by_position(atoms, known)
    return {**tensors, **scaler.convert_known(known, atoms, reading, conversion)}
