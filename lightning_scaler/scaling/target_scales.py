"""The fitted scales and baseline of one target."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from operator import is_
from typing import Any, Literal

import torch
from metatensor.torch import Labels, TensorBlock, TensorMap

from ..batches import TABLED, find_types
from ..settings import FixedScale
from ..tensors import Key, TargetLayout

ScaleKind = Literal["per_target", "per_property", "full"]

# The names that states have had since version 0.1.0.
_SAVED_NAMES = {
    "fixed_only_types": "given_types",
    "baseline_types": "composition_types",
    "explained_variance": "explained",
}


@dataclass
class TargetScales:
    """Scales and baseline weights of one target, float64 on the CPU.

    The tensors of scales have one row per type of :attr:`types`, then one of the RMS over all
    types (for ``unseen_types="pooled"``), one of ones (for ``"identity"``), and one per type of
    :attr:`fixed_only_types`: ``n_rows`` in all.

    Attributes:
        layout: keys, components and properties of the target.
        extensive: whether values were divided by the number of atoms before the statistics.
        types: sorted atomic types, ``(n_types,)``; a single -1 unless the target is per-atom.
        per_target: ``(n_rows,)``.
        per_property: by key ``(n_rows, n_properties)``.
        fixed: the fixed per-target scale, if there is one.
        fixed_only_types: sorted types that have a fixed scale and were not in the data.
        baseline_types: sorted types of the baseline's weights, ``(n_composition_types,)``.
        weights: by key ``(n_composition_types, n_properties)``, for blocks with a baseline.
        fixed_weights: the fixed baseline of every type, if there is one.
        additive: whether contributions of an additive module come off before the baseline.
        rms_before: RMS over all entries, per atom if extensive, as the data store them.
        rms_after: the same once contributions and baseline are off.
        explained_variance: the fraction of the variance that contributions and baseline explain.
    """

    layout: TargetLayout
    extensive: bool
    types: torch.Tensor
    per_target: torch.Tensor
    per_property: dict[Key, torch.Tensor]
    fixed: FixedScale | None = None
    fixed_only_types: torch.Tensor = field(
        default_factory=lambda: torch.empty(0, dtype=torch.int64)
    )
    baseline_types: torch.Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    weights: dict[Key, torch.Tensor] = field(default_factory=dict)
    fixed_weights: dict[int, float] | None = None
    additive: bool = False
    rms_before: float = 1.0
    rms_after: float = 1.0
    explained_variance: float = 0.0
    _tables: "Tables | None" = field(default=None, init=False, repr=False, compare=False)

    def values(self, which: ScaleKind, key: Key) -> torch.Tensor:
        """One kind of scale of a block, ``(n_rows, n_properties)``."""
        if which == "per_property":
            return self.per_property[key]
        per_target = self.per_target[:, None].expand_as(self.per_property[key])
        return per_target if which == "per_target" else per_target * self.per_property[key]

    def factors(self, which: ScaleKind, key: Key) -> torch.Tensor:
        """As :meth:`values`, or ``(n_rows,)`` where one number serves all properties.

        Single numbers are gathered five times faster than rows of one number.
        """
        if which == "per_target":
            return self.per_target
        values = self.values(which, key)
        return values[:, 0] if values.shape[1] == 1 else values

    def as_tensormap(self, which: ScaleKind, device: torch.device) -> TensorMap:
        """One kind of scale as a TensorMap with samples ``["atomic_type"]`` and no components."""
        samples = Labels(["atomic_type"], self.types.reshape(-1, 1)).to(device)
        blocks = [
            TensorBlock(
                self.values(which, key)[: self.types.numel()].clone().to(device),
                samples,
                [],
                block.properties.to(device),
            )
            for key, block in self.layout.blocks.items()
        ]
        return TensorMap(self.layout.keys().to(device), blocks)

    def rows(self, types: torch.Tensor, unseen_types: str) -> torch.Tensor:
        """Row of the scales for each atomic type, ``(n_atoms,)``.

        A single-property target has its fixed scales for unseen types too.

        Raises:
            ValueError: for unseen types under ``"error"``.
        """
        rows, known = find_types(types, self.types.to(types.device))
        if bool(known.all()):
            return rows
        n_types = self.types.numel()
        if isinstance(self.fixed, float) and self.layout.single_property:
            return torch.where(known, rows, n_types)
        index, given = find_types(types, self.fixed_only_types.to(types.device))
        rows = torch.where(given, n_types + 2 + index, rows)
        known = known | given
        if bool(known.all()):
            return rows
        if unseen_types == "error":
            unseen = types[~known].unique().tolist()
            raise ValueError(
                f"target '{self.layout.name}': no scale for the atomic types {unseen}, which were "
                f"not in the data of the fit (types {self.types.tolist()}); fit on data that have "
                "them, or set unseen_types='pooled' or 'identity'"
            )
        stand_in = n_types + (unseen_types == "identity")
        return torch.where(known, rows, stand_in)

    def by_type(
        self, which: ScaleKind, kinds: Iterable[int], device: torch.device
    ) -> Mapping[Key, torch.Tensor] | None:
        """One kind of scale of each block in a table that atomic types are looked up in.

        Args:
            which: of the scales.
            kinds: all types that will be looked up.
            device: of the tables.

        Returns:
            ``(largest type + 1,)``, or ``(largest type + 1, n_properties)`` for several properties,
            NaN where there is no scale; one row unless the target is per-atom; float64 where the
            device has it. ``None`` if some of the types have no scale of their own, which
            :meth:`rows` tells what to do with.
        """
        if self._tables is None or not self._tables.are_of(self):
            self._tables = Tables(self)
        if self.layout.kind == "atom" and not self._tables.types.issuperset(kinds):
            return None
        return self._tables.get(self, which, device)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_tables": None}

    def state(self) -> dict[str, Any]:
        """Plain Python objects and tensors (``torch.load(weights_only=True)``)."""
        plain = dict(vars(self))
        plain.pop("_tables", None)
        plain["layout"] = self.layout.state()
        for name, saved in _SAVED_NAMES.items():
            plain[saved] = plain.pop(name)
        for name in ("per_property", "weights"):
            plain[name] = [(list(key), tensor) for key, tensor in plain[name].items()]
        return plain

    @classmethod
    def from_state(cls, name: str, state: dict[str, Any]) -> "TargetScales":
        """The inverse of :meth:`state`."""
        plain = dict(state)
        plain["layout"] = TargetLayout.from_state(name, state["layout"])
        for attribute, saved in _SAVED_NAMES.items():
            if saved in plain:
                plain[attribute] = plain.pop(saved)
        for field_name in ("per_property", "weights"):
            plain[field_name] = {tuple(key): tensor for key, tensor in state[field_name]}
        return cls(**plain)


def on_device(factors: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Float64 factors on a device, without waiting for it; float32 on MPS, which has no float64."""
    if device.type == "mps":
        factors = factors.float()
    return factors.to(device, non_blocking=True)


class Tables:
    """The scales of one target by atomic type, made when they are first asked for.

    Args:
        scales: of the target.

    Attributes:
        types: those that can be looked up, of a per-atom target.
    """

    def __init__(self, scales: TargetScales) -> None:
        self._sources = _sources(scales)
        self._versions = _versions(self._sources)
        n_types = len(scales.types)
        rows = {z: row for row, z in enumerate(scales.types.tolist()) if 0 <= z < TABLED}
        for row, z in enumerate(scales.fixed_only_types.tolist(), n_types + 2):
            if z < TABLED:
                rows.setdefault(z, row)
        self.types = frozenset(rows)
        self._rows = rows
        self._made: dict[tuple[ScaleKind, torch.device], dict[Key, torch.Tensor]] = {}

    def are_of(self, scales: TargetScales) -> bool:
        """Whether the scales are still those that the tables were made from.

        Changes in place are seen unless they go around autograd (``.data``, ``.numpy()``).
        """
        sources = _sources(scales)
        return (
            len(sources) == len(self._sources)
            and all(map(is_, sources, self._sources))
            and _versions(sources) == self._versions
        )

    def get(
        self, scales: TargetScales, which: ScaleKind, device: torch.device
    ) -> Mapping[Key, torch.Tensor]:
        """See :meth:`TargetScales.by_type`."""
        if (which, device) not in self._made:
            # Tables that a validation in inference mode makes serve the training after it too.
            with torch.inference_mode(False):
                self._made[which, device] = {
                    key: on_device(self._table(scales, scales.factors(which, key)), device)
                    for key in scales.layout.blocks
                }
        return self._made[which, device]

    def _table(self, scales: TargetScales, values: torch.Tensor) -> torch.Tensor:
        if scales.layout.kind != "atom":
            return values[:1].clone()
        table = values.new_full((max(self.types, default=-1) + 1, *values.shape[1:]), torch.nan)
        table[list(self._rows)] = values[list(self._rows.values())]
        return table


def _sources(scales: TargetScales) -> tuple[torch.Tensor, ...]:
    return scales.types, scales.fixed_only_types, scales.per_target, *scales.per_property.values()


def _versions(tensors: Iterable[torch.Tensor]) -> list[int]:
    """What changes when a tensor is changed in place."""
    return [0 if tensor.is_inference() else tensor._version for tensor in tensors]
