"""Torchmetrics in the units of the dataset."""

from collections.abc import Mapping, Sequence
from types import NoneType
from typing import Any

import torch
from metatensor.torch import TensorMap
from torchmetrics import Metric, MetricCollection
from torchmetrics.wrappers.abstract import WrapperMetric
from typing_extensions import override

from ..batches import Atoms, HasTypes
from ..scaling import (
    LossTargets,
    PhysicalValues,
    Scaler,
    add_baseline,
    align_prediction,
    index_by_position,
    values_in_physical_units,
)
from ..settings import did_you_mean, kind_of, list_or_count
from ..tensors import TargetLayout, is_tensormap
from .metric_parts import depends_on_baseline, leave_inference_mode, set_double_precision


class PhysicalUnits(WrapperMetric):
    """Any torchmetrics metric of one target, in the units of the dataset.

    Predictions and targets in loss space are multiplied by the per-target scale alone: the baseline
    cancels in a difference. For a metric that is not a function of the difference, such as R2 or
    MAPE, ``baseline=True`` adds it back to both. Extensive per-structure targets are compared per
    atom. Missing (NaN) target values are left out. The state is float64.

    Args:
        metric: metric of two float64 tensors ``(n_values,)``, predictions and targets. If it
            returns a dict, so does :meth:`compute`.
        target: name of the target.
        gradient: parameter of a gradient, such as ``"positions"``, to compare instead of values.
        block: key of the only block to compare, such as ``{"o3_lambda": 2}``; all by default.
        baseline: add the baseline back to predictions and targets, in float64. An additive module
            in it needs the systems of the batch, not only their atoms.

    Raises:
        TypeError: if ``metric`` is neither a ``Metric`` nor a ``MetricCollection``, or for another
            argument of another type.
        ValueError: for a metric of torchmetrics that is not a function of the difference, without
            ``baseline=True``.

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
        baseline: bool = False,
    ) -> None:
        super().__init__()
        if not isinstance(metric, (Metric, MetricCollection)):
            raise TypeError(
                f"expected a torchmetrics Metric or MetricCollection, got {kind_of(metric)}; pass "
                "an instance, such as PhysicalUnits(MeanAbsoluteError(), target='energy')"
            )
        for argument, value, expected, example in (
            ("target", target, str, "'energy'"),
            ("gradient", gradient, (str, NoneType), "'positions'"),
            ("block", block, (Mapping, NoneType), "{'o3_lambda': 2}"),
            ("baseline", baseline, bool, "True"),
        ):
            if not isinstance(value, expected):
                raise TypeError(
                    f"PhysicalUnits, {argument}: expected a value such as {example}, got {value!r}"
                )
        dependent = None if baseline else depends_on_baseline(metric)
        if dependent is not None:
            raise ValueError(
                f"target '{target}': {dependent} is not a function of the difference of prediction "
                "and target, so it would change with the baseline, which is subtracted from both; "
                f"write PhysicalUnits({dependent}(...), target='{target}', baseline=True), which "
                "adds the baseline back"
            )
        self.metric = metric
        set_double_precision(metric)
        self.target = target
        self.gradient = gradient
        self.block = dict(block or {})
        self.baseline = baseline

    @override
    def update(
        self,
        scaler: Scaler,
        systems: Sequence[HasTypes] | Atoms,
        predictions: Mapping[str, TensorMap],
        targets: Mapping[str, TensorMap],
    ) -> None:
        """Add one batch; a batch without the target is skipped.

        Args:
            scaler: fitted scaler; no reference to it is kept.
            systems: systems of the batch, or their atoms.
            predictions: predictions in loss space, by target name, with positions in the batch as
                ``system`` labels.
            targets: targets in loss space, by name; NaN where missing. Both may come from
                :meth:`Scaler.convert`, or from ``targets_to_loss`` and ``predictions_to_loss`` of
                the mixin, whose extensive targets are per atom already (this is known as long as
                the targets are not copied into another dict).

        Raises:
            ValueError: for a target without scales or predictions, or a row without a prediction.
        """
        selected = self._select(scaler, systems, predictions, targets)
        if selected is not None:
            self.metric.update(*selected)

    @override
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Add one batch, as :meth:`update`, and return the metric of this batch alone."""
        selected = self._select(*args, **kwargs)
        return None if selected is None else self.metric(*selected)

    @override
    def compute(self) -> Any:
        """The metric of all batches since the last reset, in the units of the dataset.

        A dict, to be logged with ``log_dict``, for a collection, or for a metric that returns one.
        """
        return self.metric.compute()

    @override
    def reset(self) -> None:
        """Forget all batches."""
        self.metric.reset()

    @override
    def extra_repr(self) -> str:
        """Name the target."""
        names = ("target", "gradient", "block", "baseline")
        parts = {name: getattr(self, name) for name in names}
        return ", ".join(f"{name}={value!r}" for name, value in parts.items() if value)

    def _select(
        self,
        scaler: Scaler,
        systems: Sequence[HasTypes] | Atoms,
        predictions: Mapping[str, TensorMap],
        targets: Mapping[str, TensorMap],
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        _check_batch(scaler, self.target, predictions, targets)
        if self.target not in scaler.targets:
            raise ValueError(
                f"no scales for the target '{self.target}', only for {sorted(scaler.targets)}; fit "
                "them with the TargetScaler callback or a ScaleAccumulator"
            )
        if self.target not in targets:
            return None
        self._check_parts(scaler.targets[self.target].layout, targets[self.target])
        leave_inference_mode(self.metric)
        values = _aligned_values(self.target, scaler, systems, predictions, targets, self.baseline)
        return select_values(values, self.gradient, self.block)

    def _check_parts(self, layout: TargetLayout, target: TensorMap) -> None:
        """Refuse a block and a gradient that the target cannot have."""
        if self.block and not any(
            self.block.items() <= dict(zip(layout.key_names, key, strict=True)).items()
            for key in layout.blocks
        ):
            keys = [f"({layout.describe(key)})" for key in layout.blocks]
            raise ValueError(
                f"target '{self.target}': expected block={self.block} to be the key of one of its "
                f"blocks, which are {list_or_count(keys, 'blocks')}"
            )
        if self.gradient is None or self.gradient in layout.gradients:
            return
        gradients = {g for block in target.blocks() for g in block.gradients_list()}
        if self.gradient not in gradients:
            raise ValueError(
                f"target '{self.target}': it has no gradient '{self.gradient}'; "
                f"{did_you_mean(self.gradient, gradients | {*layout.gradients})}"
            )


def select_values(
    values: Sequence[PhysicalValues], gradient: str | None, block: Mapping[str, int] | None
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """All values that a metric compares, predictions and targets; ``None`` if there are none.

    Args:
        values: values of the blocks and gradients of one target.
        gradient: parameter of a gradient, to select it instead of the values.
        block: key of the only block to select; all blocks by default.
    """
    chosen = [
        part
        for part in values
        if part.gradient == gradient
        and all(part.key[name] == value for name, value in (block or {}).items())
    ]
    if sum(part.target.numel() for part in chosen) == 0:
        return None
    if len(chosen) == 1:
        return chosen[0].prediction, chosen[0].target
    return (
        torch.cat([part.prediction for part in chosen]),
        torch.cat([part.target for part in chosen]),
    )


def _check_batch(scaler: Any, name: str, predictions: Any, targets: Any) -> None:
    """Refuse arguments of another type, such as plain tensors."""
    if not isinstance(scaler, Scaler):
        raise TypeError(f"expected a Scaler, such as model.scaler, got {kind_of(scaler)}")
    for what, tensors in (("predictions", predictions), ("targets", targets)):
        is_dict = isinstance(tensors, Mapping)
        if not is_dict or (name in tensors and not is_tensormap(tensors[name])):
            raise TypeError(
                f"{what}: expected a dict of TensorMaps in loss space by target name, got "
                f"{f'{kind_of(tensors[name])} in it' if is_dict else kind_of(tensors)}; "
                "targets_to_loss and predictions_to_loss of the mixin return one, and so does "
                "Scaler.convert"
            )


def _aligned_values(
    name: str,
    scaler: Scaler,
    systems: Sequence[HasTypes] | Atoms,
    predictions: Mapping[str, TensorMap],
    targets: Mapping[str, TensorMap],
    baseline: bool,
) -> list[PhysicalValues]:
    """Values of one target, whose rows may be in any order, in physical units."""
    if name not in predictions:
        raise ValueError(f"no prediction for the target '{name}', only for {sorted(predictions)}")
    per_atom = not isinstance(targets, LossTargets)
    if per_atom:
        batch = index_by_position(scaler, systems, {name: targets[name]})
        targets = {name: batch.targets[name].tensor}
    prediction = align_prediction(name, predictions[name], targets[name])
    values = values_in_physical_units(scaler, systems, {name: prediction}, targets, per_atom)[name]
    return add_baseline(scaler, systems, name, values, targets) if baseline else values
