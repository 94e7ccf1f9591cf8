"""Torchmetrics in the units of the data set."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from metatensor.torch import TensorMap
from torchmetrics import Metric, MetricCollection
from torchmetrics.wrappers.abstract import WrapperMetric
from typing_extensions import override

from ..batches import (
    Atoms,
    HasTypes,
    align_prediction,
    index_by_position,
    infer_system_indexing,
    per_atom,
    read_atoms,
    relabel_by_position,
    rows_of_blocks,
)
from ..scaling import Scaler, factors_of_rows, physical_entries


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
        if self.target not in targets:
            return
        pairs = _matched_pairs(self.target, scaler, systems, predictions, targets)
        entries = entries_of(pairs, self.gradient, self.block)
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
        entries = entries_of(_matched_pairs(self.target, **named), self.gradient, self.block)
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


def leave_inference_mode(metrics: Iterable[Metric]) -> None:
    """Make metrics writable outside of inference mode, under which Lightning resets them."""
    for metric in metrics:
        for name, state in metric.metric_state.items():
            if isinstance(state, torch.Tensor) and state.is_inference():
                setattr(metric, name, state.clone())


class PhysicalPair(NamedTuple):
    """Numbers of a block, or of one of its gradients, in physical units, where none is missing.

    Attributes:
        key: of the block.
        gradient: its name.
        prediction: float64 ``(n_entries,)``, detached.
        target: likewise.
    """

    key: dict[str, int]
    gradient: str | None
    prediction: torch.Tensor
    target: torch.Tensor


def entries_of(
    pairs: Sequence[PhysicalPair], gradient: str | None, block: Mapping[str, int] | None
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """All numbers that a metric looks at, predictions and targets; ``None`` if there are none.

    Args:
        pairs: of one target.
        gradient: the name of one, instead of the values.
        block: key of the only block to look at; default all.
    """
    chosen = [
        pair
        for pair in pairs
        if pair.gradient == gradient
        and all(pair.key[name] == value for name, value in (block or {}).items())
    ]
    if sum(pair.target.numel() for pair in chosen) == 0:
        return None
    if len(chosen) == 1:
        return chosen[0].prediction, chosen[0].target
    return (
        torch.cat([pair.prediction for pair in chosen]),
        torch.cat([pair.target for pair in chosen]),
    )


def physical_pairs(
    scaler: Scaler,
    atoms: Atoms,
    predictions: Mapping[str, TensorMap],
    targets: Mapping[str, TensorMap],
) -> dict[str, list[PhysicalPair]]:
    """Blocks and gradients of targets in physical units, without the baseline.

    Args:
        scaler: gives the scales.
        atoms: of the batch.
        predictions: loss space, by target name, in the rows of the targets and per atom where
            extensive.
        targets: loss space, by target name, those with a prediction; NaN where missing.
    """
    names = [name for name in scaler.targets if name in predictions]
    if not names:
        return {}
    given = [targets[name] for name in names]
    atoms = atoms.to(given[0].device)
    factors, kinds = _factors(scaler, atoms, {name: targets[name] for name in names})
    entries = physical_entries([predictions[name] for name in names], given, factors, kinds)
    pairs: dict[str, list[PhysicalPair]] = {}
    for name, (blocks, parameters, *numbers) in zip(names, entries, strict=True):
        layout = scaler.targets[name].layout
        known = atoms.known.get(targets[name])
        held = known is not None and known.layout is layout
        values = layout.blocks if held else atoms.on_host(targets[name]).keys.values.tolist()
        keys = [dict(zip(layout.key_names, key, strict=True)) for key in values]
        of_pairs = [*keys, *(keys[block] for block in blocks)]
        gradients = [None] * len(keys) + parameters
        pairs[name] = list(map(PhysicalPair, of_pairs, gradients, *numbers))
    return pairs


def _factors(
    scaler: Scaler, atoms: Atoms, targets: Mapping[str, TensorMap]
) -> tuple[list[list[torch.Tensor]], list[list[torch.Tensor]]]:
    """The per-target scales of the rows of each target; see :func:`rescaling.rescaled`."""
    layouts = {name: scaler.targets[name].layout for name in targets}
    of_atoms = {name: tensor for name, tensor in targets.items() if layouts[name].kind == "atom"}
    reading = index_by_position(atoms, of_atoms)
    factors, kinds = [], []
    for name, tensor in targets.items():
        scales, layout = scaler.targets[name], layouts[name]
        rows = rows_of_blocks(layout, tensor, atoms, reading) if name in of_atoms else []
        found = factors_of_rows(
            scales, "per_target", list(layout.blocks), rows, atoms, scaler.settings.unseen_types
        )
        factors.append(found[0])
        kinds.append(found[1])
    return factors, kinds


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
    reading = infer_system_indexing(atoms, {name: target}, setting, exact=True)
    target = relabel_by_position(name, target, reading, atoms)
    prediction = align_prediction(name, prediction, target)
    if scaler.targets[name].extensive:
        prediction, target = per_atom(prediction, atoms), per_atom(target, atoms)
    return physical_pairs(scaler, atoms, {name: prediction}, {name: target})[name]
