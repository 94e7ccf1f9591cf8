"""Torchmetrics in the units of the data set."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from metatensor.torch import TensorMap
from torchmetrics import Metric, MetricCollection
from torchmetrics.wrappers.abstract import WrapperMetric
from typing_extensions import override

from .atoms import Atoms, HasTypes, read_atoms
from .matching import averaged, matched, positioned
from .scaler import Scaler
from .system_labels import read_positions, read_system_labels
from .torchscript import gradient_samples, values_and_gradients


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

        Raises:
            ValueError: without scales or predictions of the target, or for rows without one.
        """
        if self.target in targets:
            self.update_physical(_matched_pairs(self.target, scaler, systems, predictions, targets))

    def update_physical(self, pairs: Sequence["PhysicalPair"]) -> None:
        """Take in one batch in physical units already, as :func:`physical_pairs` gives it."""
        entries = self._entries(pairs)
        if entries is not None:
            metrics = [self.metric] if isinstance(self.metric, Metric) else self.metric.values()
            leave_inference_mode(metrics)
            self.metric.update(*entries)

    @override
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Take in one batch (as :meth:`update`) and return the metric over it alone."""
        named = dict(zip(("scaler", "systems", "predictions", "targets"), args, strict=False))
        named.update(kwargs)
        if self.target not in named["targets"]:
            return None
        entries = self._entries(_matched_pairs(self.target, **named))
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

    def _entries(self, pairs: Sequence["PhysicalPair"]) -> tuple[torch.Tensor, torch.Tensor] | None:
        predicted, given = [], []
        for pair in pairs:
            wrong_block = any(pair.key[name] != value for name, value in self.block.items())
            if pair.gradient == self.gradient and not wrong_block:
                present = ~torch.isnan(pair.target)
                if bool(present.all()):
                    predicted.append(pair.prediction.reshape(-1))
                    given.append(pair.target.reshape(-1))
                else:
                    predicted.append(pair.prediction[present])
                    given.append(pair.target[present])
        if sum(entries.numel() for entries in given) == 0:
            return None
        return torch.cat(predicted), torch.cat(given)


def leave_inference_mode(metrics: Iterable[Metric]) -> None:
    """Make metrics writable outside of inference mode, under which Lightning resets them."""
    for metric in metrics:
        for name, state in metric.metric_state.items():
            if isinstance(state, torch.Tensor) and state.is_inference():
                setattr(metric, name, state.clone())


class PhysicalPair(NamedTuple):
    """Predicted and true numbers of a block, or of one of its gradients, in physical units."""

    key: dict[str, int]
    gradient: str | None
    prediction: torch.Tensor
    target: torch.Tensor


def physical_pairs(
    name: str, scaler: Scaler, atoms: Atoms, prediction: TensorMap, target: TensorMap
) -> list[PhysicalPair]:
    """Blocks and gradients of one target in physical units, without the baseline.

    Args:
        name: of the target.
        scaler: gives its scales.
        atoms: of the batch.
        prediction: loss space, in the rows of the target and per atom where extensive.
        target: loss space.

    Returns:
        Float64 tensors in the shapes of the blocks and gradients, detached.
    """
    atoms = atoms.to(target.device)
    names = target.keys.names
    keys = [dict(zip(names, key, strict=True)) for key in target.keys.values.tolist()]
    factors = _factors(name, scaler, atoms, target)
    ours, our_gradients = values_and_gradients(target)
    theirs, their_gradients = values_and_gradients(prediction)
    pairs = [
        PhysicalPair(key, None, _physical(predicted, factor), _physical(given, factor))
        for key, factor, predicted, given in zip(keys, factors, theirs, ours, strict=True)
    ]
    if our_gradients:
        blocks, parameters, rows, _ = gradient_samples(target)
        for i, (predicted, given) in enumerate(zip(their_gradients, our_gradients, strict=True)):
            factor = factors[blocks[i]]
            if factor.numel() != 1:
                factor = factor.index_select(0, rows[i])
            numbers = _physical(predicted, factor), _physical(given, factor)
            pairs.append(PhysicalPair(keys[blocks[i]], parameters[i], *numbers))
    return pairs


def _physical(values: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    shape = (-1, *[1] * (values.dim() - 1))
    return values.detach().double() * factor.reshape(shape)


def _factors(name: str, scaler: Scaler, atoms: Atoms, target: TensorMap) -> list[torch.Tensor]:
    """For each block the per-target scale of every row, or the only one there is."""
    scales, unseen_types = scaler.targets[name], scaler.settings.unseen_types
    device = atoms.types.device
    if scales.layout.kind != "atom":
        return [scales.per_target[:1].to(device, non_blocking=True)] * len(target)
    reading = read_positions(atoms, {name: target})
    if name in reading.usual:
        of_kinds = scales.per_target[scales.rows(atoms.kinds, unseen_types)]
        return [atoms.of_kinds(of_kinds.to(device, non_blocking=True))] * len(target)
    per_target = scales.per_target.to(device)
    rows = [reading.atom_rows(name, block.samples, atoms) for block in target.blocks()]
    return [per_target[scales.rows(atoms.types[row], unseen_types)] for row in rows]


def _matched_pairs(
    name: str,
    scaler: Scaler,
    systems: Sequence[HasTypes] | Atoms,
    predictions: Mapping[str, TensorMap],
    targets: Mapping[str, TensorMap],
) -> list[PhysicalPair]:
    if name not in scaler.targets:
        raise ValueError(
            f"no scales for the target '{name}', only for {sorted(scaler.targets)}; fit them with "
            "the TargetScaler callback or a ScaleAccumulator"
        )
    if name not in predictions:
        raise ValueError(f"no prediction for the target '{name}', only for {sorted(predictions)}")
    target, prediction = targets[name], predictions[name]
    atoms = read_atoms(systems).to(target.device)
    setting = scaler.settings.system_labels
    reading = read_system_labels(atoms, {name: target}, setting, exact=True)
    target = positioned(name, target, reading, atoms)
    prediction = matched(name, prediction, target)
    if scaler.targets[name].extensive:
        prediction, target = averaged(prediction, atoms), averaged(target, atoms)
    return physical_pairs(name, scaler, atoms, prediction, target)
