"""The fitted scales and baseline of one target."""

from collections.abc import Mapping, Set
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Annotated, Any, Literal, get_args

import torch
from metatensor.torch import Labels, TensorBlock, TensorMap
from torch import Tensor

from ..baselines import Composition
from ..batches import LARGEST_IN_TABLE, Atoms, IndexedTarget
from ..settings import FixedScale, UnseenTypes
from ..tensors import (
    Key,
    NumberOrNaN,
    TargetLayout,
    TensorCheck,
)

ScaleKind = Literal["per_target", "per_property", "full"]

# What was read, for messages about what was not found in it.
SAMPLED_DATA = "random sample of the data that was read (relative_error=None reads all data)"


def _no_types() -> Tensor:
    return torch.empty(0, dtype=torch.int64)


@dataclass(frozen=True, eq=False)
class TargetScales:
    """Scales and baseline weights of one target, float64 on the CPU; not to be changed in place.

    The tensors of scales have one row per type of :attr:`types`, then one with the RMS over all
    types (for ``unseen_types="pooled"``), one of ones (for ``"identity"``), and one per type of
    :attr:`fixed_only_types`: ``n_rows`` in all.

    Attributes:
        layout: keys, components and properties of the target.
        extensive: whether values were divided by the number of atoms before the statistics.
        types: sorted atomic types, ``(n_types,)``; a single -1 unless the target is per-atom.
        per_target: per-target scales, ``(n_rows,)``.
        per_property: per-property scales by key, ``(n_rows, n_properties)``.
        fixed: the fixed per-target scale, if there is one.
        fixed_only_types: sorted types with a fixed scale that were not in the data.
        baseline_types: sorted types of the baseline weights, ``(n_baseline_types,)``.
        weights: baseline weights by key, ``(n_baseline_types, n_properties)``, for blocks with a
            baseline; 0 for types without data.
        unknown: for each block of a per-structure target in which some types have no data for a
            property, which weights these are, in the same shape, bool.
        composition: what the weights of a per-structure target are multiplied by: ``"counts"`` of
            each type, ``"fractions"`` of all atoms (intensive targets); ``"none"`` for a target
            that was excluded from the baseline.
        fixed_weights: the fixed baseline by type, if there is one.
        additive: whether contributions of an additive module are subtracted before the baseline.
        rms_before: RMS over all values as stored, per atom if extensive.
        rms_after: the same after subtracting contributions and baseline.
        explained_variance: fraction of the variance that contributions and baseline explain.
        mean_squares: mean squares in loss space, used by the loss alone: of the values under
            ``""``, of each gradient under its parameter; empty where they are unknown.
        zeros: for each block with a property that is exactly 0 throughout, which properties these
            are for each type of :attr:`types`, ``(n_types, n_properties)`` bool.
        relative_errors: if the scales were fitted to a random sample of the data, for each type of
            :attr:`types` the largest standard error of its scales relative to them, ``(n_types,)``,
            NaN where it is unknown; ``None`` if they were fitted to all data.
    """

    layout: TargetLayout
    extensive: bool
    # The annotations say how the fields of a loaded state are checked.
    types: Annotated[Tensor, TensorCheck("n_types", dtype=torch.int64)]
    per_target: Annotated[Tensor, TensorCheck("n_rows", allow_nan=True)]
    per_property: Annotated[
        dict[Key, Tensor], TensorCheck("n_rows", "n_properties", allow_nan=True)
    ]
    fixed: FixedScale | None = None
    fixed_only_types: Annotated[Tensor, TensorCheck("n_fixed_only_types", dtype=torch.int64)] = (
        field(default_factory=_no_types)
    )
    baseline_types: Annotated[Tensor, TensorCheck("n_baseline_types", dtype=torch.int64)] = field(
        default_factory=_no_types
    )
    weights: Annotated[
        dict[Key, Tensor], TensorCheck("n_baseline_types", "n_properties", allow_nan=True)
    ] = field(default_factory=dict)
    fixed_weights: dict[int, float] | None = None
    additive: bool = False
    rms_before: Annotated[float, NumberOrNaN()] = 1.0
    rms_after: Annotated[float, NumberOrNaN()] = 1.0
    explained_variance: float = 0.0
    mean_squares: dict[str, float] = field(default_factory=dict)
    unknown: Annotated[
        dict[Key, Tensor], TensorCheck("n_baseline_types", "n_properties", dtype=torch.bool)
    ] = field(default_factory=dict)
    composition: Composition = "counts"
    zeros: Annotated[
        dict[Key, Tensor], TensorCheck("n_types", "n_properties", dtype=torch.bool)
    ] = field(default_factory=dict)
    relative_errors: Annotated[Tensor | None, TensorCheck("n_types", allow_nan=True)] = None

    def values(self, kind: ScaleKind, key: Key) -> Tensor:
        """One kind of scale of a block, ``(n_rows, n_properties)``."""
        if kind == "per_property":
            return self.per_property[key]
        per_target = self.per_target[:, None].expand_as(self.per_property[key])
        return per_target if kind == "per_target" else per_target * self.per_property[key]

    def factors(self, kind: ScaleKind, key: Key) -> Tensor:
        """As :meth:`values`, or ``(n_rows,)`` where one number serves all properties.

        Single numbers are gathered five times faster than rows of one number.
        """
        if kind == "per_target":
            return self.per_target
        values = self.values(kind, key)
        return values[:, 0] if values.shape[1] == 1 else values

    def as_tensormap(self, kind: ScaleKind, device: torch.device) -> TensorMap:
        """One kind of scale as a TensorMap with samples ``["atomic_type"]`` and no components."""
        samples = Labels(["atomic_type"], self.types.reshape(-1, 1)).to(device)
        blocks = [
            TensorBlock(
                self.values(kind, key)[: self.types.numel()].clone().to(device),
                samples,
                [],
                block.properties.to(device),
            )
            for key, block in self.layout.blocks.items()
        ]
        return TensorMap(self.layout.keys().to(device), blocks)

    def row_of_type(self) -> dict[int, int]:
        """The row of the scales of every type that has one of its own."""
        n_types = self.types.numel()
        rows = {z: row for row, z in enumerate(self.types.tolist())}
        fixed_only = enumerate(self.fixed_only_types.tolist(), n_types + 2)
        return {**{z: row for row, z in fixed_only}, **rows}

    def rows(self, types: Tensor, unseen_types: UnseenTypes) -> Tensor:
        """Row of the scales for each atomic type, ``(n_types,)``.

        A single-property target uses its fixed scales for unseen types too.

        Raises:
            ValueError: for unseen types under ``"error"``.
        """
        rows, others = self.row_of_type(), self.types.numel()
        unique, index = types.unique(return_inverse=True)
        unseen = [z for z in unique.tolist() if z not in rows]
        if unseen and not (isinstance(self.fixed, float) and self.layout.single_property):
            if unseen_types == "error":
                give = "give them in fixed_scales, " if self.layout.single_property else ""
                raise ValueError(
                    f"target '{self.layout.name}': no scale for the atomic types {unseen}, which "
                    f"were not in the {self.data_of_fit} (types {self.types.tolist()}); {give}fit "
                    "on data that have them (TargetScaler(refit='types') adds them to restored "
                    "scales and keeps all other numbers), or set unseen_types='pooled' or "
                    "'identity'"
                )
            others += unseen_types == "identity"
        of_unique = [rows.get(z, others) for z in unique.tolist()]
        return torch.tensor(of_unique, dtype=torch.int64, device=types.device)[index]

    @property
    def data_of_fit(self) -> str:
        """The data of the fit, in words for messages about what was not in them."""
        return "data of the fit" if self.relative_errors is None else SAMPLED_DATA

    @cached_property
    def factor_ranges(self) -> dict[ScaleKind, tuple[float, float]]:
        """The smallest and the largest positive scale of each kind; (1, 1) if there are none."""
        found: dict[ScaleKind, tuple[float, float]] = {}
        for kind in get_args(ScaleKind):
            # Scales from metatrain are NaN over all types, and 0 for properties that were 0.
            factors = torch.cat([self.values(kind, key).reshape(-1) for key in self.layout.blocks])
            factors = factors[factors > 0.0]
            limits = (float(factors.min()), float(factors.max())) if len(factors) else (1.0, 1.0)
            found[kind] = limits
        return found

    def factors_of_rows(
        self,
        kind: ScaleKind,
        target: IndexedTarget,
        atoms: Atoms,
        unseen_types: UnseenTypes,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The scales of a target in tables, and the row in them of every sample.

        Returns:
            ``factors`` and ``scale_index`` of :class:`ConversionArgs`.
        """
        device = atoms.types.device
        # One per-target scale serves all blocks, even those without data in the fit.
        keys = list(self.layout.blocks)[:1] if kind == "per_target" else list(target.layout.blocks)
        if self.has_tables_for(atoms.set_of_types):
            tables = self.tables(kind, device)
            factors = [tables[key] for key in keys]
            if target.layout.sample_kind != "atom":
                return factors, []
            scale_index = [atoms.types[rows] for rows in target.rows] or [atoms.types]
        else:
            factors = [self.factors(kind, key) for key in keys]
            if target.rows:
                scale_index = [self.rows(atoms.types[rows], unseen_types) for rows in target.rows]
            else:
                rows_of_types = self.rows(atoms.unique_types, unseen_types)
                factors, scale_index = [f[rows_of_types] for f in factors], [atoms.type_index]
            factors = [_on_device(factor, device) for factor in factors]
        # One table serves all blocks, but each block has rows of its own in it.
        if len(factors) < len(scale_index):
            factors = factors * len(scale_index)
        return factors, scale_index

    def has_tables_for(self, types: Set[int]) -> bool:
        """Whether all these types have scales of their own in :meth:`tables`."""
        return self.layout.sample_kind != "atom" or self._row_of_type.keys() >= types

    @cached_property
    def has_one_scale(self) -> bool:
        """Whether all per-property scales are 1, as those of single-property targets."""
        return all(bool((scales == 1.0).all()) for scales in self.per_property.values())

    def tables(self, kind: ScaleKind, device: torch.device) -> Mapping[Key, Tensor]:
        """One kind of scale of each block in a table indexed by atomic type.

        Returns:
            By key ``(largest type + 1,)``, or ``(largest type + 1, n_properties)`` for several
            properties, NaN for types without a scale; one row unless the target is per-atom;
            float64 where the device has it.
        """
        # Made once per device: without tables, the conversions of a training step of the embedded
        # set take a tenth longer.
        if (kind, device) not in self._tables:
            # Tables made during validation in inference mode serve the training after it too.
            with torch.inference_mode(False):
                self._tables[kind, device] = {
                    key: _on_device(self._table(self.factors(kind, key)), device)
                    for key in self.layout.blocks
                }
        return self._tables[kind, device]

    def _table(self, factors: Tensor) -> Tensor:
        if self.layout.sample_kind != "atom":
            return factors[:1].clone()
        rows = self._row_of_type
        table = factors.new_full((max(rows, default=-1) + 1, *factors.shape[1:]), torch.nan)
        table[list(rows)] = factors[list(rows.values())]
        return table

    @cached_property
    def _row_of_type(self) -> dict[int, int]:
        rows = self.row_of_type()
        return {z: row for z, row in rows.items() if 0 <= z <= LARGEST_IN_TABLE}

    def weights_or_nan(self, key: Key) -> Tensor:
        """The baseline weights of a block, NaN where they are unknown."""
        weights, unknown = self.weights[key], self.unknown.get(key)
        return weights if unknown is None else torch.where(unknown, torch.nan, weights)

    @cached_property
    def set_of_baseline_types(self) -> frozenset[int]:
        """The types of the baseline weights."""
        return frozenset(self.baseline_types.tolist())

    @cached_property
    def unknown_types(self) -> list[int]:
        """The types whose baseline weight is unknown for some property, sorted."""
        rows = torch.zeros(self.baseline_types.numel(), dtype=torch.bool)
        for unknown in self.unknown.values():
            rows = rows | unknown.any(1)
        types: list[int] = self.baseline_types[rows].tolist()
        return types

    @property
    def types_with_weights(self) -> frozenset[int]:
        """The types whose baseline weights are all known."""
        return self.set_of_baseline_types - {*self.unknown_types}

    @cached_property
    def warnings_given(self) -> set[str]:
        """Names of the warnings that were given for this target, each of which is given once."""
        return set()

    @cached_property
    def _tables(self) -> dict[tuple[ScaleKind, torch.device], dict[Key, Tensor]]:
        return {}

    def __getstate__(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self)}


def term_name(target: str, parameter: str) -> str:
    """The name of a term of the loss.

    Args:
        target: name of the target.
        parameter: parameter of the gradient, ``""`` for values.

    Example:
        >>> term_name("energy", "positions")
        'energy/positions'
    """
    return f"{target}/{parameter}" if parameter else target


def _on_device(factors: Tensor, device: torch.device) -> Tensor:
    """Float64 factors on a device, without waiting for it; float32 on MPS, which has no float64."""
    if device.type == "mps":
        factors = factors.float()
    return factors.to(device, non_blocking=True)
