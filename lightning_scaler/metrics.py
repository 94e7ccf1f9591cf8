"""Torchmetrics in the units of the data set."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from metatensor.torch import TensorMap
from torchmetrics import Metric, MetricCollection
from torchmetrics.wrappers.abstract import WrapperMetric
from typing_extensions import override

from .atoms import POSITION, Atoms, HasTypes, read_system_labels
from .conversion import convert_target
from .matching import averaged, matched, positioned
from .scaler import Scaler


class PhysicalUnits(WrapperMetric):
    """Any torchmetrics metric over the entries of one target, in the units of the data set.

    Predictions and targets come in loss space and go to physical units by the per-target scale
    alone: the baseline cancels in a difference and is never added. Extensive per-structure targets
    are compared per atom. Missing (NaN) target entries are left out. The state is float64.

    Args:
        metric: takes two float64 tensors ``(n_entries,)``, predictions and targets.
        target: name of the target.
        gradient: a gradient of the target, such as ``"positions"``, instead of its values.
        block: key of the only block to look at, such as ``{"o3_lambda": 2}``; default all.

    Raises:
        TypeError: if ``metric`` is neither a ``Metric`` nor a ``MetricCollection``.

    Example:
        >>> from torchmetrics import MeanSquaredError
        >>> PhysicalUnits(MeanSquaredError(squared=False), target="energy")
        PhysicalUnits(
          target='energy'
          (metric): MeanSquaredError()
        )
    """

    def __init__(
        self,
        metric: Metric | MetricCollection,
        target: str,
        gradient: str | None = None,
        block: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(metric, (Metric, MetricCollection)):
            raise TypeError(
                "expected a torchmetrics Metric or MetricCollection, got "
                f"{type(metric).__name__}: {metric!r}"
            )
        self.metric = metric
        self.metric.set_dtype(torch.float64)
        self.target = target
        self.gradient = gradient
        self.block = dict(block or {})

    @override
    def update(
        self,
        scaler: Scaler,
        systems: Sequence[HasTypes] | Atoms,
        predictions: Mapping[str, TensorMap],
        targets: Mapping[str, TensorMap],
    ) -> None:
        """Take in one batch; one that lacks the target is passed over.

        Args:
            scaler: gives the per-target scales; it is not kept.
            systems: of the batch.
            predictions: loss space, by target name, ``system`` being the position in the batch.
            targets: loss space, by target name; NaN where missing.
        """
        if self.target in targets:
            self.update_physical(*physical_pair(self.target, scaler, systems, predictions, targets))

    def update_physical(self, prediction: TensorMap, target: TensorMap) -> None:
        """Take in one batch in physical units already, as :func:`physical_pair` gives it."""
        entries = self._entries(prediction, target)
        if entries is not None:
            self.metric.update(*entries)

    @override
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Take in one batch (as :meth:`update`) and return the metric over it alone."""
        named = dict(zip(("scaler", "systems", "predictions", "targets"), args, strict=False))
        named.update(kwargs)
        if self.target not in named["targets"]:
            return None
        entries = self._entries(*physical_pair(self.target, **named))
        return None if entries is None else self.metric(*entries)

    @override
    def compute(self) -> Any:
        """The metric over all batches since the last reset, in the units of the data set."""
        return self.metric.compute()

    @override
    def reset(self) -> None:
        """Forget all batches."""
        self.metric.reset()

    @override
    def extra_repr(self) -> str:
        """Name the target."""
        parts = {"target": self.target, "gradient": self.gradient, "block": self.block}
        return ", ".join(f"{name}={value!r}" for name, value in parts.items() if value)

    def _entries(
        self, prediction: TensorMap, target: TensorMap
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        predicted, given = [], []
        for row, key in enumerate(target.keys):
            if any(key[name] != value for name, value in self.block.items()):
                continue
            ours, theirs = target.block_by_id(row), prediction.block_by_id(row)
            if self.gradient is not None:
                if self.gradient not in ours.gradients_list():
                    continue
                ours, theirs = ours.gradient(self.gradient), theirs.gradient(self.gradient)
            present = ~torch.isnan(ours.values)
            predicted.append(theirs.values[present])
            given.append(ours.values[present])
        if sum(entries.numel() for entries in given) == 0:
            return None
        return torch.cat(predicted), torch.cat(given)


def physical_pair(
    name: str,
    scaler: Scaler,
    systems: Sequence[HasTypes] | Atoms,
    predictions: Mapping[str, TensorMap],
    targets: Mapping[str, TensorMap],
) -> tuple[TensorMap, TensorMap]:
    """Prediction and target of one name in the same rows and in physical units, per atom.

    Args:
        name: of the target.
        scaler: gives the per-target scales.
        systems: of the batch.
        predictions: loss space, by target name.
        targets: loss space, by target name.

    Returns:
        Two float64 TensorMaps without the baseline.

    Raises:
        ValueError: without scales or predictions of the target, or for rows without one.
    """
    if name not in scaler.targets:
        raise ValueError(
            f"no scales for the target '{name}', only for {sorted(scaler.targets)}; fit them with "
            "the TargetScaler callback or a ScaleAccumulator"
        )
    if name not in predictions:
        raise ValueError(f"no prediction for the target '{name}', only for {sorted(predictions)}")
    target, prediction = targets[name], predictions[name]
    atoms = systems if isinstance(systems, Atoms) else Atoms.from_systems(systems)
    atoms = atoms.to(target.device)
    setting = scaler.settings.system_labels
    reading = read_system_labels(atoms, {name: target}, setting, exact=True)
    target = positioned(name, target, reading, atoms)
    prediction = matched(name, prediction, target)
    if scaler.targets[name].extensive:
        prediction, target = averaged(prediction, atoms), averaged(target, atoms)
    return matched_to_physical(name, scaler, atoms, prediction, target)


def matched_to_physical(
    name: str, scaler: Scaler, atoms: Atoms, prediction: TensorMap, target: TensorMap
) -> tuple[TensorMap, TensorMap]:
    """As :func:`physical_pair`, for two that are matched and per atom already."""
    scales, unseen_types = scaler.targets[name], scaler.settings.unseen_types

    def physical(tensor: TensorMap) -> TensorMap:
        tensor = tensor.to(dtype=torch.float64)
        return convert_target(
            scales, tensor, atoms, POSITION, "loss", "physical", False, unseen_types
        )

    with torch.no_grad():
        return physical(prediction), physical(target)
