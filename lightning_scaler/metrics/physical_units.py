"""Torchmetrics in the units of the dataset."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from metatensor.torch import TensorMap
from torchmetrics import Metric, MetricCollection
from torchmetrics.wrappers.abstract import WrapperMetric
from typing_extensions import override

from ..batches import Atoms, HasTypes
from ..scaling import (
    PhysicalValues,
    Scaler,
    align_prediction,
    index_by_position,
    values_in_physical_units,
)


class PhysicalUnits(WrapperMetric):
    """Any torchmetrics metric of one target, in the units of the dataset.

    Predictions and targets in loss space are multiplied by the per-target scale alone: the baseline
    cancels in a difference and is never added. Extensive per-structure targets are compared per
    atom. Missing (NaN) target values are left out. The state is float64.

    Args:
        metric: metric of two float64 tensors ``(n_values,)``, predictions and targets.
        target: name of the target.
        gradient: parameter of a gradient, such as ``"positions"``, to compare instead of values.
        block: key of the only block to compare, such as ``{"o3_lambda": 2}``; all by default.

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
        """Add one batch; a batch without the target is skipped.

        Args:
            scaler: fitted scaler; no reference to it is kept.
            systems: systems of the batch, or their atoms.
            predictions: predictions in loss space, by target name, with positions in the batch as
                ``system`` labels.
            targets: targets in loss space, by name; NaN where missing. Extensive targets and their
                predictions are not per atom yet, as :meth:`Scaler.convert` returns them.

        Raises:
            ValueError: for a target without scales or predictions, or a row without a prediction.
        """
        if self.target not in targets:
            return
        values = _aligned_values(self.target, scaler, systems, predictions, targets)
        selected = select_values(values, self.gradient, self.block)
        if selected is not None:
            metrics = [self.metric] if isinstance(self.metric, Metric) else self.metric.values()
            leave_inference_mode(metrics)
            self.metric.update(*selected)

    @override
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Add one batch, as :meth:`update`, and return the metric of this batch alone."""
        named = dict(zip(("scaler", "systems", "predictions", "targets"), args, strict=False))
        named.update(kwargs)
        if self.target not in named["targets"]:
            return None
        values = _aligned_values(self.target, **named)
        selected = select_values(values, self.gradient, self.block)
        return None if selected is None else self.metric(*selected)

    @override
    def compute(self) -> Any:
        """The metric of all batches since the last reset, in the units of the dataset."""
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


def leave_inference_mode(metrics: Iterable[Metric]) -> None:
    """Make metrics writable outside of inference mode, under which Lightning resets them."""
    for metric in metrics:
        for name, state in metric.metric_state.items():
            if isinstance(state, torch.Tensor) and state.is_inference():
                setattr(metric, name, state.clone())


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


def _aligned_values(
    name: str,
    scaler: Scaler,
    systems: Sequence[HasTypes] | Atoms,
    predictions: Mapping[str, TensorMap],
    targets: Mapping[str, TensorMap],
) -> list[PhysicalValues]:
    """Values of one target, whose rows may be in any order, in physical units."""
    if name not in scaler.targets:
        raise ValueError(
            f"no scales for the target '{name}', only for {sorted(scaler.targets)}; fit them with "
            "the TargetScaler callback or a ScaleAccumulator"
        )
    if name not in predictions:
        raise ValueError(f"no prediction for the target '{name}', only for {sorted(predictions)}")
    target = index_by_position(scaler, systems, {name: targets[name]}).targets[name].tensor
    prediction = align_prediction(name, predictions[name], target)
    return values_in_physical_units(
        scaler, systems, {name: prediction}, {name: target}, per_atom=True
    )[name]
