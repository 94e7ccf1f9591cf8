"""The targets and predictions of a batch in loss space."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import compress
from operator import is_
from typing import Any

import torch
from metatensor.torch import TensorMap

from ..batches import (
    Atoms,
    HasTypes,
    IndexedBatch,
    IndexedTarget,
    SystemIndexing,
    describe_type,
    index_batch,
    read_atoms,
    relabel_by_position,
)
from ..tensors import (
    PREDICTION,
    apply_mask,
    dtype_of,
    have_dtype,
    have_labels,
    is_tensormap,
)
from .alignment import align_prediction, check_device
from .conversion import Conversion, convert_targets
from .scaler import Scaler

Systems = Sequence[HasTypes] | Atoms
BY_POSITION = SystemIndexing("position")

# metatrain adds maps such as last-layer features under these names.
AUXILIARY = "mtt::aux::"


def is_auxiliary(name: str) -> bool:
    """Whether a TensorMap of a batch is not a target unless it is named as one."""
    return name.startswith(AUXILIARY)


class LossTargets(dict[str, TensorMap]):
    """Targets in loss space by name, with the rows and layouts that were found for them.

    Predictions and metrics of the same batch need these again. They are not kept for a TensorMap
    that replaces one of these, nor in a plain dict made from this one, and are then found again.

    Args:
        tensors: targets in loss space, and TensorMaps without scales, by name.
        indexed: the targets with rows and layouts.
        dtype: dtype of the targets; ``None`` if it is not known.
    """

    def __init__(
        self,
        tensors: Mapping[str, TensorMap],
        indexed: Mapping[str, IndexedTarget],
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(tensors)
        self._indexed = dict(indexed)
        self._dtype = dtype

    def indexed(self, name: str) -> IndexedTarget | None:
        """The target with its rows and layout, unless it has been replaced."""
        known = self._indexed.get(name)
        return known if known is not None and known.tensor is self.get(name) else None

    def dtype(self, names: Iterable[str]) -> torch.dtype | None:
        """The dtype of some targets; ``None`` if it is not known, or one has been replaced."""
        return self._dtype if all(map(self.indexed, names)) else None


class LossPredictions(dict[str, TensorMap]):
    """Predictions in loss space by target name.

    Args:
        tensors: predictions in the rows of their targets.
        complete: whether every value that was predicted is among them.
    """

    def __init__(self, tensors: Mapping[str, TensorMap], complete: bool) -> None:
        super().__init__(tensors)
        self._all = dict(tensors) if complete else None

    @property
    def complete(self) -> bool:
        """Whether every value that was predicted is here, none removed or replaced since."""
        known = self._all or {}
        same = [*self] == [*known] and all(map(is_, self.values(), known.values()))
        return self._all is not None and same


def index_loss_targets(
    scaler: Scaler, systems: Systems, names: Iterable[str], targets: Mapping[str, TensorMap]
) -> dict[str, IndexedTarget]:
    """Rows and layouts of targets in loss space, found before or now.

    Args:
        scaler: fitted scaler.
        systems: systems of the batch, or their atoms.
        names: names of some of the targets, all of which have scales.
        targets: result of :func:`targets_to_loss`, or any targets in loss space.
    """
    indexed, others = {}, {}
    for name in names:
        known = targets.indexed(name) if isinstance(targets, LossTargets) else None
        if known is None:
            others[name] = targets[name]
        else:
            indexed[name] = known
    if others:
        indexed |= index_batch(systems, others, scaler.layouts).targets
    return indexed


def targets_to_loss(
    scaler: Scaler,
    systems: Systems,
    targets: Mapping[str, TensorMap],
    masks: Mapping[str, TensorMap] | None = None,
    dtype: torch.dtype = torch.float32,
) -> LossTargets:
    """Targets in loss space, per atom where extensive.

    Masked values become NaN, and ``system`` labels positions in the batch. TensorMaps without
    scales pass through unchanged.

    Args:
        scaler: fitted scaler.
        systems: systems of the batch, or their atoms.
        targets: targets in physical space, by name.
        masks: masks by target name; ``False`` (or 0) marks a missing value.
        dtype: dtype of the result; everything before is computed in the dtype of the targets, or
            in float64 where a baseline is subtracted.
    """
    known = {name: tensor for name, tensor in targets.items() if name in scaler.targets}
    if not known:
        return LossTargets(targets, {})
    batch = index_by_position(scaler, systems, known, masks)
    # Targets are data, even where an additive module is a function of positions with a graph.
    with torch.no_grad():
        conversion = Conversion("physical", "loss", per_atom=True, dtype=dtype)
        in_loss = convert_targets(scaler, batch, conversion)
    indexed = {name: t._replace(tensor=in_loss[name]) for name, t in batch.targets.items()}
    return LossTargets({**targets, **in_loss}, indexed, dtype)


def index_by_position(
    scaler: Scaler,
    systems: Systems,
    targets: Mapping[str, TensorMap],
    masks: Mapping[str, TensorMap] | None = None,
) -> IndexedBatch:
    """Targets with positions in the batch as ``system`` labels, and NaN for masked values.

    Args:
        scaler: fitted scaler; its setting ``system_labels`` says what the labels mean.
        systems: systems of the batch, or their atoms.
        targets: targets by name, all of which have scales.
        masks: masks by target name.

    Raises:
        ValueError: for labels that could mean two things, or masks that differ from their target.
    """
    setting = scaler.settings.system_labels
    batch = index_batch(systems, targets, scaler.layouts, setting, exact=True)
    indexed = {}
    for name, target in batch.targets.items():
        tensor = target.tensor
        if masks and name in masks:
            tensor = apply_mask(name, tensor, masks[name])
        tensor = relabel_by_position(name, tensor, batch.indexing, batch.atoms)
        labels = target.labels if batch.indexing.ids is None else None
        indexed[name] = target._replace(tensor=tensor, labels=labels)
    return IndexedBatch(batch.atoms, BY_POSITION, indexed)


def predictions_to_loss(
    scaler: Scaler,
    systems: Systems,
    predictions: Mapping[str, TensorMap],
    targets: Mapping[str, TensorMap],
) -> LossPredictions:
    """Predictions in loss space, in the rows and the dtype of the targets of the batch.

    Args:
        scaler: fitted scaler.
        systems: systems of the batch, or their atoms.
        predictions: predictions in model space, by target name, with positions in the batch as
            ``system`` labels.
        targets: result of :func:`targets_to_loss`.

    Raises:
        TypeError: for predictions other than a mapping of TensorMaps.
        ValueError: for a target of the batch without a prediction, or without scales.
    """
    chosen = _predictions_of_targets(scaler, predictions, targets)
    if not chosen:
        return LossPredictions({}, complete=False)
    if not isinstance(targets, LossTargets):
        targets = LossTargets(targets, {})
    same = _with_same_labels(systems, chosen, targets)
    dtype = targets.dtype(chosen) or _common_dtype([targets[name] for name in chosen])
    atoms = read_atoms(systems).to(next(iter(chosen.values())).device)
    # Predictions with the labels of their targets have their rows and layouts too.
    found = index_loss_targets(scaler, atoms, same, targets)
    indexed = {name: t._replace(tensor=chosen[name]) for name, t in found.items()}
    others = {name: tensor for name, tensor in chosen.items() if name not in same}
    if others:
        for name, tensor in others.items():
            check_device(name, tensor, targets[name])
        indexed |= index_batch(atoms, others, scaler.layouts, what=PREDICTION).targets
    batch = IndexedBatch(atoms, BY_POSITION, indexed)
    conversion = Conversion("model", "loss", per_atom=True, dtype=dtype)
    in_loss = convert_targets(scaler, batch, conversion)
    aligned = {
        name: in_loss[name]
        if dtype and name in same
        else align_prediction(name, in_loss[name], targets[name])
        for name in chosen
    }
    complete = not any(name not in same and is_tensormap(t) for name, t in predictions.items())
    return LossPredictions(aligned, complete)


def _with_same_labels(
    systems: Systems, predictions: Mapping[str, TensorMap], targets: LossTargets
) -> set[str]:
    """The names of the predictions that have all labels of their targets."""
    atoms, same, others = read_atoms(systems), set(), []
    for name, prediction in predictions.items():
        target = targets.indexed(name)
        record = atoms.label_record(prediction)
        if target is not None and record is not None and record.original is target.labels:
            same.add(name)
        else:
            others.append(name)
    if others:
        pairs = [predictions[name] for name in others], [targets[name] for name in others]
        same |= set(compress(others, have_labels(*pairs)))
    return same


def _common_dtype(tensors: list[TensorMap]) -> torch.dtype | None:
    """The dtype of all tensors that have blocks; ``None`` if there are several, or none."""
    first = next((tensor for tensor in tensors if len(tensor.keys)), None)
    if first is None:
        return None
    dtype = dtype_of(first)
    return dtype if all(have_dtype(tensors, dtype)) else None


def predictions_to_physical(
    scaler: Scaler, systems: Systems, predictions: Mapping[str, TensorMap]
) -> dict[str, TensorMap]:
    """Predictions in physical space, from model space; those without scales are unchanged.

    Raises:
        TypeError: for predictions other than a mapping of TensorMaps.
    """
    _check_mapping(predictions)
    known = {name: tensor for name, tensor in predictions.items() if name in scaler.targets}
    for name, tensor in known.items():
        _check_tensormap(name, tensor)
    converted = scaler.convert(systems, known, source="model", target="physical")
    return {**predictions, **converted}


def _predictions_of_targets(
    scaler: Scaler, predictions: Mapping[str, TensorMap], targets: Mapping[str, TensorMap]
) -> dict[str, TensorMap]:
    """The predictions that have a target in the batch, after checking both.

    See :func:`predictions_to_loss` for the errors.
    """
    _check_mapping(predictions)
    chosen = {}
    for name, target in targets.items():
        if name in scaler.targets and name not in predictions:
            raise ValueError(
                f"the batch has the target '{name}', for which forward gives no prediction; it "
                f"gives {sorted(predictions)}; predict it, or fit without it by "
                "TargetScaler(targets=[...])"
            )
        if name not in scaler.targets and (is_auxiliary(name) or not is_tensormap(target)):
            continue
        if name in predictions and name not in scaler.targets:
            raise ValueError(
                f"the batch has the target '{name}' and forward predicts it, but there are no "
                f"scales for it, only for {sorted(scaler.targets)}; name it in "
                "TargetScaler(targets=[...]) and fit again, or do not predict it"
            )
        if name in predictions:
            _check_tensormap(name, predictions[name])
        if name in predictions and is_tensormap(target):
            chosen[name] = predictions[name]
    return chosen


def _check_mapping(predictions: Any) -> None:
    if not isinstance(predictions, Mapping):
        raise TypeError(
            "expected forward to give a dict of TensorMaps by target name, got "
            f"{describe_type(predictions)}"
        )


def _check_tensormap(name: str, prediction: Any) -> None:
    if not is_tensormap(prediction):
        raise TypeError(
            f"prediction of '{name}': expected forward to give a TensorMap, got "
            f"{describe_type(prediction)}"
        )
