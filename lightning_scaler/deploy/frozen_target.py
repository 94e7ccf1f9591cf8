"""The scales and the baseline of one target as a TorchScript module."""

# ruff: noqa: UP045, RUF005 (TorchScript classes have no operator `|`, TorchScript has no `*shape`)

from typing import NamedTuple, Optional

import torch
from metatensor.torch import Labels, TensorMap
from torch import Tensor

from ..batches import find_types
from ..scaling import (
    ConversionArgs,
    TargetScales,
    check_factors,
    refuse_unseen_types,
    rescale_target,
)
from ..settings import Settings
from ..tensors import rebuild


class FrozenAtoms(NamedTuple):
    """The atoms of a batch, in the form that the frozen scales need.

    Attributes:
        type_index: row of every atom's type in the tables, ``(n_all_atoms,)`` int64.
        first_atom: index of the first atom of every system, ``(n_systems,)`` int64.
        n_atoms: number of atoms of every system, ``(n_systems,)`` int64.
        unique_types: rows of the types that occur, sorted, ``(n_unique_types,)`` int64.
        type_counts: selected atoms of each of these in every system,
            ``(n_systems, n_unique_types)`` float64.
    """

    type_index: Tensor
    first_atom: Tensor
    n_atoms: Tensor
    unique_types: Tensor
    type_counts: Tensor


class FrozenTarget(torch.nn.Module):
    """One target from model space to physical units, for a fixed list of atomic types.

    What is done about unseen types is settled here, once; tables have one row per type of the list.
    They are plain attributes, which no ``.to(dtype)`` rounds, and follow the device of the atoms.

    Args:
        scales: scales and baseline of the target.
        types: sorted atomic types, ``(n_types,)`` int64.
        settings: settings of the fit.
        dtype: dtype in which predictions come, which must hold all scales.

    Raises:
        ValueError: for types without a scale or a weight, and scales that ``dtype`` does not hold.
    """

    keys: Labels
    factors: list[Tensor]  # by block (n_types or 1,), or (n_types or 1, n_properties)
    n_properties: list[int]
    # For blocks with a composition, (n_types, n_properties); otherwise without rows.
    weights: list[Tensor]
    unknown: list[Tensor]
    has_trace: list[bool]

    def __init__(
        self, scales: TargetScales, types: Tensor, settings: Settings, dtype: torch.dtype
    ) -> None:
        super().__init__()
        layout = scales.layout
        self.name = layout.name
        self.sample_kind: str = layout.sample_kind
        self.additive = scales.additive
        self.has_weights = len(scales.weights) > 0
        self.by_fractions = scales.composition == "fractions"
        self.keys = layout.keys()
        rows = torch.zeros(1, dtype=torch.int64)
        if layout.sample_kind == "atom":
            rows = scales.rows(types, settings.unseen_types)
        self.factors, self.n_properties = [], []
        self.weights, self.unknown, self.has_trace = [], [], []
        for key, block in layout.blocks.items():
            self.factors.append(scales.factors("full", key)[rows].contiguous())
            self.n_properties.append(block.n_properties)
            weights, unknown = _composition(scales, key, types, settings)
            self.weights.append(weights)
            self.unknown.append(unknown)
            trace = len(block.components) == 2 and layout.invariance(key) == "trace"
            self.has_trace.append(key in scales.weights and trace)
        if not (self.has_weights or self.additive or layout.sample_kind == "pair"):
            check_factors(scales, "full", dtype, self.factors, [])

    def forward(
        self, tensor: TensorMap, atoms: FrozenAtoms, contributions: Optional[TensorMap] = None
    ) -> TensorMap:
        """Multiply by the full scales and add the baseline, as ``Scaler.convert`` does.

        Args:
            tensor: prediction in model space; ``system`` is the position in the batch. Samples
                ``["system", "atom"]`` of a per-structure target are the shares of its atoms.
            atoms: atoms of the batch.
            contributions: output of the additive module for this target.
        """
        if self.sample_kind == "pair" or len(tensor.keys) == 0:
            return tensor
        self._follow(atoms.type_index.device)
        index_of_block = self._find_blocks(tensor)
        factors: list[Tensor] = []
        scale_index: list[Tensor] = []
        baselines: list[Tensor | None] = []
        for i, block in enumerate(tensor.blocks()):
            k = index_of_block[i]
            samples = block.samples.values
            system, rows = samples[:, 0].long(), samples[:, 0].long()
            of_atoms = "atom" in block.samples.names
            if of_atoms:
                rows = atoms.first_atom[system] + samples[:, 1].long()
            factors.append(self.factors[k])
            if self.sample_kind == "atom":
                scale_index.append(atoms.type_index[rows])
            if self.has_weights or contributions is not None:
                baseline: Tensor | None = None
                if self.weights[k].size(0) > 0:
                    baseline = self._composition(k, atoms, of_atoms, system, rows)
                    for _ in range(block.values.dim() - 2):
                        baseline = baseline.unsqueeze(1)
                    if self.has_trace[k]:
                        size = block.values.size(1)
                        diagonal = torch.eye(size, dtype=torch.bool, device=baseline.device)
                        baseline = torch.where(diagonal.unsqueeze(-1), baseline, 0.0)
                if contributions is not None:
                    added = self._contribution(contributions, tensor, i, atoms, of_atoms, rows)
                    if added is not None:
                        baseline = added if baseline is None else baseline + added
                baselines.append(baseline)
        args = ConversionArgs(tensor, factors, scale_index, [], baselines, [])
        values, gradients = rescale_target(args, True, len(baselines) > 0, None)
        return rebuild(tensor, values, gradients)

    def _follow(self, device: torch.device) -> None:
        if len(self.factors) > 0 and self.factors[0].device != device:
            self.factors = [table.to(device) for table in self.factors]
            self.weights = [table.to(device) for table in self.weights]
            self.unknown = [table.to(device) for table in self.unknown]

    def _find_blocks(self, tensor: TensorMap) -> list[int]:
        """The index in the tables of every block."""
        keys, known = tensor.keys.to("cpu"), self.keys.to("cpu")
        if keys.names != known.names:
            raise ValueError(
                f"prediction of '{self.name}': expected keys named {known.names}, as in the fit, "
                f"got {keys.names}"
            )
        found: list[int] = []
        for i in range(len(keys)):
            position = known.position(keys.values[i])
            if position is None:
                key: list[int] = keys.values[i].long().tolist()
                raise ValueError(
                    f"prediction of '{self.name}': no scale for the block {key} (keys "
                    f"{keys.names}), which was not in the data of the fit"
                )
            n_properties = tensor.block_by_id(i).values.size(-1)
            if n_properties != self.n_properties[position]:
                raise ValueError(
                    f"prediction of '{self.name}': expected {self.n_properties[position]} "
                    f"properties, as in the fit, got {n_properties}"
                )
            found.append(position)
        return found

    def _composition(
        self, k: int, atoms: FrozenAtoms, of_atoms: bool, system: Tensor, rows: Tensor
    ) -> Tensor:
        """The composition baseline of every row, ``(n_rows, n_properties)``; see the Scaler."""
        baseline = self._of_rows(self.weights[k], atoms, of_atoms, system, rows)
        if self.unknown[k].size(0) > 0:
            n_unknown = self._of_rows(self.unknown[k], atoms, of_atoms, system, rows)
            baseline = torch.where(n_unknown > 0.0, torch.nan, baseline)
        return baseline

    def _of_rows(
        self, weights: Tensor, atoms: FrozenAtoms, of_atoms: bool, system: Tensor, rows: Tensor
    ) -> Tensor:
        if self.sample_kind == "atom":
            return weights.index_select(0, atoms.type_index[rows])
        n_atoms = atoms.n_atoms.to(torch.float64).unsqueeze(1)
        if of_atoms:
            shares = weights.index_select(0, atoms.type_index[rows])
            return shares / n_atoms[system] if self.by_fractions else shares
        counts = atoms.type_counts
        if self.by_fractions:
            counts = (counts / n_atoms).nan_to_num()
        return (counts @ weights.index_select(0, atoms.unique_types))[system]

    def _contribution(
        self,
        contributions: TensorMap,
        tensor: TensorMap,
        i: int,
        atoms: FrozenAtoms,
        of_atoms: bool,
        rows: Tensor,
    ) -> Tensor | None:
        """The contribution to every row of a block; ``None`` for a block without any."""
        position = contributions.keys.to("cpu").position(tensor.keys.to("cpu").values[i])
        if position is None:
            return None
        block, given = tensor.block_by_id(i), contributions.block_by_id(position)
        if len(block.gradients_list()) > 0:
            raise ValueError(
                f"prediction of '{self.name}': expected no gradients beside an additive module, "
                "whose part autograd adds; leave them out"
            )
        samples = given.samples.values
        given_rows = samples[:, 0].long()
        if of_atoms:
            given_rows = atoms.first_atom[given_rows] + samples[:, 1].long()
            expected = torch.ones_like(atoms.type_index)
        else:  # a system without selected atoms may be left out
            expected = (atoms.type_counts.sum(1) > 0.0).long()
        known = torch.zeros_like(expected).index_fill(0, given_rows, 1)
        if bool((known < expected)[rows].any()):
            raise ValueError(f"target '{self.name}': rows without an additive contribution")
        shape = [expected.size(0)] + block.values.shape[1:]
        zeros = torch.zeros(shape, dtype=torch.float64, device=samples.device)
        return zeros.index_add(0, given_rows, given.values.to(torch.float64))[rows]


def _composition(
    scales: TargetScales, key: tuple[int, ...], types: Tensor, settings: Settings
) -> tuple[Tensor, Tensor]:
    """Weights of a block, and which of them are unknown (1.0), ``(n_types, n_properties)``.

    Both are without rows where there are none.
    """
    none = torch.zeros((0, 0), dtype=torch.float64)
    if key not in scales.weights:
        return none, none
    by_type, unknown_by_type = scales.weights[key], scales.unknown.get(key)
    index, seen = find_types(types, scales.baseline_types)
    if not bool(seen.all()) and settings.unseen_types != "identity" and not settings.provisional:
        refuse_unseen_types(scales, key, types[~seen].tolist())
    weights = torch.where(seen[:, None], by_type[index], 0.0).contiguous()
    if unknown_by_type is None:
        return weights, none
    unknown = (unknown_by_type[index] & seen[:, None]).double()
    return weights, unknown if bool(unknown.any()) else none
