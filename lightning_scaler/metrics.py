"""Torchmetrics in the units of the data set."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from metatensor.torch import Labels, TensorBlock, TensorMap
from torchmetrics import Metric, MetricCollection
from torchmetrics.wrappers.abstract import WrapperMetric
from typing_extensions import override

from .atoms import Atoms, HasTypes
from .matching import averaged, matched
from .scaler import Scaler
from .tensormap import map_blocks, same_block


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
        matched: bool = False,
    ) -> None:
        """Take in one batch; one that lacks the target is passed over.

        Args:
            scaler: gives the per-target scales; it is not kept.
            systems: of the batch.
            predictions: loss space, by target name.
            targets: loss space, by target name; NaN where missing.
            matched: the predictions are in the rows of the targets, and both per atom, already
                (as the mixin's helpers give them).
        """
        entries = self._entries(scaler, systems, predictions, targets, matched)
        if entries is not None:
            self.metric.update(*entries)

    @override
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Take in one batch (as :meth:`update`) and return the metric over it alone."""
        entries = self._entries(*args, **kwargs)
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
        self,
        scaler: Scaler,
        systems: Sequence[HasTypes] | Atoms,
        predictions: Mapping[str, TensorMap],
        targets: Mapping[str, TensorMap],
        is_matched: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        name = self.target
        if name not in targets:
            return None
        if name not in scaler.targets:
            raise ValueError(
                f"no scales for the target '{name}', only for {sorted(scaler.targets)}; fit them "
                "with the TargetScaler callback or a ScaleAccumulator"
            )
        if name not in predictions:
            raise ValueError(
                f"no prediction for the target '{name}', only for {sorted(predictions)}"
            )
        atoms = systems if isinstance(systems, Atoms) else Atoms.from_systems(systems)
        target, prediction = targets[name], predictions[name]
        if not is_matched:
            prediction = matched(name, prediction, target)
            if scaler.targets[name].extensive:
                atoms = atoms.to(target.device)
                prediction, target = averaged(prediction, atoms), averaged(target, atoms)
        physical = [
            scaler.convert(atoms, {name: _double(tensor)}, "loss", "physical", baseline=False)[name]
            for tensor in (prediction, target)
        ]
        return self._present_entries(*physical)

    def _present_entries(
        self, prediction: TensorMap, target: TensorMap
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        columns: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
        for row, key in enumerate(target.keys):
            if any(key[name] != value for name, value in self.block.items()):
                continue
            ours, theirs = target.block_by_id(row), prediction.block_by_id(row)
            if self.gradient is not None:
                if self.gradient not in ours.gradients_list():
                    continue
                ours, theirs = ours.gradient(self.gradient), theirs.gradient(self.gradient)
            present = ~torch.isnan(ours.values)
            columns[0].append(theirs.values[present])
            columns[1].append(ours.values[present])
        if sum(column.numel() for column in columns[1]) == 0:
            return None
        return torch.cat(columns[0]), torch.cat(columns[1])


def _double(tensor: TensorMap) -> TensorMap:
    def double(_row: int, _keys: Labels, block: TensorBlock) -> TensorBlock:
        gradients = {
            name: block.gradient(name).values.detach().double() for name in block.gradients_list()
        }
        return same_block(block, block.values.detach().double(), gradients)

    return map_blocks(tensor, double)
