"""Targets of every kind: hypothesis draws the shapes, a seeded generator the numbers."""

import itertools
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from builders import labels
from hypothesis import HealthCheck, settings, strategies as st
from metatensor.torch import Labels, TensorBlock, TensorMap

from lightning_scaler import CompositionBaseline, ScaleAccumulator

EXAMPLES = int(os.environ.get("LIGHTNING_SCALER_EXAMPLES", "2000"))

SPHERICAL = ("o3_lambda", "o3_sigma")
BASIS = (*SPHERICAL, "atom_type")
UNSEEN = 122  # a type that no case has
RANK_TWO = ("o3_lambda_1", "o3_lambda_2", "o3_sigma_1", "o3_sigma_2")
SIGMAS = [(1, 1), (1, -1), (-1, 1), (-1, -1)]


def over(n_examples: int) -> settings:
    """The same examples in every run."""
    return settings(
        max_examples=max(n_examples, 10),
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


@dataclass(frozen=True)
class Molecule:
    """A system with the types and the length that the core needs."""

    types: torch.Tensor

    def __len__(self) -> int:
        return len(self.types)


class Entry(NamedTuple):
    """One value of the data, with everything that the formulas depend on."""

    block: int
    property: int
    system: int
    type: int  # of the atom; -1 for a value of a whole structure
    component: int
    value: float


@dataclass(frozen=True)
class Case:
    """A dataset with one target, ``"t"``, and the settings of its fit.

    Attributes:
        per_atom: whether the target is per-atom.
        key_names: names of the keys.
        keys: key of each block.
        axes: lengths of the components of each block.
        n_properties: number of properties of each block.
        compositions: types of the atoms of each structure.
        batches: indices of the structures of each batch, in order.
        lacking: pairs of batch and block, for blocks that are absent from a batch.
        values: values by structure and block, ``(n_rows, *axes, n_properties)``.
        rows: atom of each row (0 for a structure), by structure and block.
        kept: whether a mask keeps each value, by structure and block; ``None`` without masks.
        mask_dtype: dtype of the masks.
        dtype: dtype of the values.
        intensive: whether a per-structure target is intensive.
        labels_are: meaning of the ``system`` labels; rows are shuffled if it is ``"position"``.
        ids: id of each structure.
        baseline: baseline to subtract.
        fixed: fixed scale of the target.
        seed: seed of the order of the rows.
        gathered_by: ``"update"`` of one accumulator, which reads small batches in groups; ``"one by
            one"``, where it reads each by itself; ``"merge"`` of one accumulator per batch, or of
            its ``"state"``.
    """

    per_atom: bool
    key_names: tuple[str, ...]
    keys: list[tuple[int, ...]]
    axes: list[tuple[int, ...]]
    n_properties: list[int]
    compositions: list[list[int]]
    batches: list[list[int]]
    lacking: set[tuple[int, int]]
    values: dict[tuple[int, int], np.ndarray]
    rows: dict[tuple[int, int], list[int]]
    kept: dict[tuple[int, int], np.ndarray] | None
    mask_dtype: torch.dtype
    dtype: torch.dtype
    intensive: bool
    labels_are: str
    ids: list[int]
    baseline: CompositionBaseline | None
    fixed: Any
    seed: int
    gathered_by: str = "update"

    @property
    def extensive(self) -> bool:
        return not self.per_atom and not self.intensive

    def blocks_of(self, k: int) -> list[int]:
        """The blocks in a batch."""
        return [b for b in range(len(self.keys)) if (k, b) not in self.lacking]

    @property
    def blocks(self) -> list[int]:
        """The blocks in any batch."""
        return sorted({b for k in range(len(self.batches)) for b in self.blocks_of(k)})

    @property
    def types(self) -> list[int]:
        """The types in batches with the target; -1 for a per-structure target."""
        with_target = [batch for k, batch in enumerate(self.batches) if self.blocks_of(k)]
        seen = {z for batch in with_target for i in batch for z in self.compositions[i]}
        return sorted(seen) if self.per_atom else [-1]

    def entries(self) -> Iterator[Entry]:
        """Every value that is neither missing nor masked."""
        for k, batch in enumerate(self.batches):
            for i in batch:
                types = self.compositions[i]
                for b in self.blocks_of(k):
                    numbers = self.values[i, b]
                    if self.kept is not None:
                        numbers = np.where(self.kept[i, b], numbers, np.nan)
                    shape = len(numbers), math.prod(self.axes[b]), self.n_properties[b]
                    numbers = numbers.reshape(shape)
                    for atom, of_row in zip(self.rows[i, b], numbers.tolist(), strict=True):
                        z = types[atom] if self.per_atom else -1
                        for c, of_component in enumerate(of_row):
                            for p, value in enumerate(of_component):
                                if not math.isnan(value):
                                    yield Entry(b, p, i, z, c, value)

    def systems(self, chosen: Sequence[int]) -> list[Molecule]:
        return [Molecule(torch.tensor(self.compositions[i], dtype=torch.int32)) for i in chosen]

    def batch(self, k: int) -> tuple[list[Molecule], dict[str, TensorMap], dict[str, TensorMap]]:
        """Systems, targets and masks of a batch."""
        shuffled = self.labels_are == "position"
        return self.tensors(self.batches[k], self.blocks_of(k), shuffled)

    def tensors(
        self, chosen: Sequence[int], blocks: Sequence[int] | None = None, shuffled: bool = False
    ) -> tuple[list[Molecule], dict[str, TensorMap], dict[str, TensorMap]]:
        """Some structures with some of their blocks, as a batch."""
        blocks = range(len(self.keys)) if blocks is None else blocks
        rng = np.random.default_rng(self.seed + 1)
        values, masks = [], []
        for b in blocks:
            rows = [
                [self.ids[i] if self.labels_are == "id" else position, atom]
                for position, i in enumerate(chosen)
                for atom in self.rows[i, b]
            ]
            order = rng.permutation(len(rows)) if shuffled else np.arange(len(rows))
            names = ["system", "atom"] if self.per_atom else ["system"]
            numbers = np.array(rows, dtype=np.int64).reshape(-1, 2)[order, : len(names)]
            samples = labels(names, numbers)
            values.append(self._block(b, self.values, chosen, order, samples, self.dtype))
            if self.kept is not None:
                masks.append(self._block(b, self.kept, chosen, order, samples, self.mask_dtype))
        keys = [self.keys[b] for b in blocks]
        of_targets = {"t": TensorMap(labels(self.key_names, keys), values)}
        of_masks = {"t": TensorMap(labels(self.key_names, keys), masks)} if masks else {}
        return self.systems(chosen), of_targets, of_masks

    def _block(
        self,
        b: int,
        numbers: dict[tuple[int, int], np.ndarray],
        chosen: Sequence[int],
        order: np.ndarray,
        samples: Labels,
        dtype: torch.dtype,
    ) -> TensorBlock:
        axes, n_properties = self.axes[b], self.n_properties[b]
        parts = [np.empty((0, *axes, n_properties)), *(numbers[i, b] for i in chosen)]
        together = torch.from_numpy(np.concatenate(parts)[order]).to(dtype)
        components = [_column(f"axis_{a + 1}", length) for a, length in enumerate(axes)]
        return TensorBlock(together, samples, components, _column("n", n_properties))

    def accumulator(self) -> ScaleAccumulator:
        """An accumulator with the settings of this case."""
        intensive = ["t"] if self.intensive else []
        return ScaleAccumulator(
            intensive_targets=intensive, baseline=self.baseline, system_labels=self.labels_are
        )

    def accumulated(self) -> ScaleAccumulator:
        """An accumulator of all batches."""
        total = self.accumulator()
        with pytest.MonkeyPatch.context() as patch:
            if self.gathered_by == "one by one":
                patch.setattr("lightning_scaler.statistics.pending.SYSTEMS_PER_GROUP", 1)
            for k in range(len(self.batches)):
                part = total.fresh() if self.gathered_by in ("merge", "state") else total
                part.update(*self.batch(k))
                if self.gathered_by == "merge":
                    total.merge(part)
                elif self.gathered_by == "state":
                    total.merge_state(part.state())
        return total


@lru_cache
def _column(name: str, length: int) -> Labels:
    return labels(name, range(length))


def _blocks(
    family: str, n_blocks: int, n_axes: int, pool: list[int], rng: np.random.Generator
) -> tuple[tuple[str, ...], list[tuple[int, ...]], list[tuple[int, ...]]]:
    """Names of the keys, keys and lengths of the components."""
    if family == "plain":
        return ("_",), [(0,)], [(3,) * n_axes]
    if family == "parts":
        axes = rng.integers(1, 5, (n_blocks, n_axes)).tolist()
        return ("part",), [(3 * b,) for b in range(n_blocks)], [tuple(of) for of in axes]
    if family == "rank two":
        every = [(*lambdas, *sigmas) for lambdas in np.ndindex(3, 3) for sigmas in SIGMAS]
        keys = [every[k] for k in rng.permutation(len(every))[:n_blocks]]
        # Half of the blocks have a trace.
        keys = [(key[0], key[0], 1, 1) if k % 2 else key for k, key in enumerate(keys)]
        keys = list(dict.fromkeys(keys))
        return RANK_TWO, keys, [(2 * key[0] + 1, 2 * key[1] + 1) for key in keys]
    every = [(o3_lambda, sigma) for o3_lambda in range(4) for sigma in (1, -1)]
    if family == "basis":
        every = [(o3_lambda, 1, z) for o3_lambda in range(3) for z in [*pool[:3], 121]]
    keys = [every[k] for k in rng.permutation(len(every))[:n_blocks]]
    if rng.random() < 0.7 and every[0] not in keys:
        keys[0] = every[0]  # (0, 1), which has a baseline
    return BASIS if family == "basis" else SPHERICAL, keys, [(2 * key[0] + 1,) for key in keys]


def _partition(n_systems: int, rng: np.random.Generator) -> list[list[int]]:
    """All systems in random order, in one to five batches, some of them empty."""
    order = rng.permutation(n_systems).tolist()
    cuts = sorted(rng.integers(0, n_systems + 1, rng.integers(0, 5)).tolist())
    return [order[start:stop] for start, stop in itertools.pairwise([0, *cuts, n_systems])]


@st.composite
def cases(
    draw: st.DrawFn,
    families: Sequence[str] = ("plain", "parts", "spherical", "basis", "rank two"),
    baselines: Sequence[str] = ("none", "composition", "fixed"),
    exponents: tuple[int, int] = (-120, 120),
    readings: Sequence[str] = ("position", "auto", "id"),
    every_block: bool = False,
    complete: bool = False,
) -> Case:
    """A dataset of one target.

    Args:
        families: kinds of keys.
        baselines: none, fitted, or fixed numbers per type.
        exponents: smallest and largest power of ten.
        readings: settings ``system_labels``.
        every_block: every batch has all blocks.
        complete: neither zeros nor missing entries, rows or blocks, and no fixed scale.
    """
    seed = draw(st.integers(0, 2**32 - 1))
    family = draw(st.sampled_from(families))
    per_atom = family == "basis" or draw(st.booleans())
    n_blocks = draw(st.integers(1, 6))
    n_axes = draw(st.integers(0, 3))
    most_properties = draw(st.sampled_from([3, 1, 8]))
    n_types = draw(st.integers(1, 20))
    n_systems = draw(st.sampled_from([2, 5, 12, 1, 0]))
    most_atoms = draw(st.sampled_from([2, 5, 12]))
    dtype = draw(st.sampled_from([torch.float64, torch.float32]))
    nan_fraction = 0.0 if complete else draw(st.sampled_from([0.0, 0.1, 0.3, 0.9]))
    mask_dtype = None if complete else draw(st.sampled_from([None, torch.bool, torch.float64]))
    kind_of_baseline = draw(st.sampled_from(baselines))
    labels_are = draw(st.sampled_from(readings))
    gathered_by = draw(st.sampled_from(["update", "one by one", "merge", "state"]))
    kind_of_fixed = None if complete else draw(st.sampled_from([None, "one", "per type"]))
    zeros = not complete and draw(st.booleans())
    exponent = draw(st.integers(*exponents))
    mixed = draw(st.booleans())
    rng = np.random.default_rng(seed)

    if kind_of_baseline != "none" and family in ("plain", "parts") and rng.random() < 0.8:
        family, n_axes = "plain", 0
    pool = rng.choice(120, n_types, replace=False).tolist()
    if family == "basis" or (labels_are == "id" and per_atom):
        fewest, labels_are = 1, "position" if family == "basis" else labels_are
    else:
        fewest = 0
    sizes = rng.integers(fewest, most_atoms + 1, n_systems).tolist()
    compositions = [rng.choice(pool, size).tolist() for size in sizes]
    seen = list(dict.fromkeys([z for types in compositions for z in types] + pool))
    key_names, keys, axes = _blocks(family, n_blocks, n_axes, seen, rng)
    n_properties = rng.integers(1, most_properties + 1, len(keys)).tolist()
    if kind_of_baseline == "fixed":
        n_properties = [1] * len(keys)
        if not any(has_baseline(key_names, key, of) for key, of in zip(keys, axes, strict=True)):
            kind_of_baseline = "composition"
    # Sums of squares and least squares lose what is far smaller; float32 ends at 3e38.
    if kind_of_baseline != "none" and (kind_of_baseline == "fixed" or not per_atom):
        exponent, mixed = exponent % 7 - 3, False
    lowest, highest = exponents if dtype == torch.float64 else (-30, 30)
    exponent = max(lowest, min(highest, exponent))

    batches = _partition(n_systems, rng)
    lacking = set()
    if not (complete or every_block) and kind_of_baseline != "fixed" and rng.random() < 0.5:
        first = 1 if labels_are == "id" else 0  # ids need a block that covers every system
        lacking = {
            (k, b)
            for k in range(len(batches))
            for b in range(first, len(keys))
            if rng.random() < 0.3
        }

    drop = not complete and labels_are == "position" and rng.random() < 0.3
    shift = rng.choice([0.0, 30.0])
    weights = {z: float(rng.normal()) * 10.0**exponent for z in [*pool, 121]}
    values, rows, kept = {}, {}, {}
    for b, key in enumerate(keys):
        unit = 10.0 ** (rng.integers(lowest, highest + 1) if mixed else exponent)
        unit *= 3.0 ** rng.uniform(-1, 1)
        zero = np.zeros(n_properties[b], dtype=bool)
        if zeros:
            zero = rng.random(n_properties[b]) < 0.3
        zero_types = [z for z in pool if zeros and rng.random() < 0.2]
        for i, types in enumerate(compositions):
            atoms = list(range(len(types))) if per_atom else [0]
            if family == "basis":
                atoms = [atom for atom in atoms if types[atom] == key[-1]]
            if drop:
                atoms = [atom for atom in atoms if rng.random() < 0.7]
            shape = (len(atoms), *axes[b], n_properties[b])
            numbers = rng.normal(size=shape) + shift
            if per_atom:
                numbers[[types[atom] in zero_types for atom in atoms]] = 0.0
            numbers[..., zero] = 0.0
            numbers[rng.random(shape) < nan_fraction] = np.nan
            numbers = torch.from_numpy(numbers * unit).to(dtype).double().numpy()
            values[i, b], rows[i, b] = numbers, atoms
            kept[i, b] = rng.random(shape) < 0.7

    baseline = {
        "none": None,
        "composition": CompositionBaseline(),
        "fixed": CompositionBaseline({"t": weights}),
    }[kind_of_baseline]
    fixed = None
    if kind_of_fixed is not None:
        fixed = float(10.0 ** rng.uniform(-3, 3))
    if kind_of_fixed == "per type" and per_atom:
        fixed = {z: float(10.0 ** rng.uniform(-3, 3)) for z in pool}
    return Case(
        per_atom=per_atom,
        key_names=key_names,
        keys=keys,
        axes=axes,
        n_properties=n_properties,
        compositions=compositions,
        batches=batches,
        lacking=lacking,
        values=values,
        rows=rows,
        kept=None if mask_dtype is None else kept,
        mask_dtype=mask_dtype or torch.bool,
        dtype=dtype,
        intensive=bool(rng.random() < 0.5) and not per_atom,
        labels_are=labels_are,
        ids=rng.permutation(1000)[:n_systems].tolist(),
        baseline=baseline,
        fixed=fixed,
        seed=seed,
        gathered_by=gathered_by,
    )


def has_baseline(key_names: tuple[str, ...], key: tuple[int, ...], axes: tuple[int, ...]) -> bool:
    """Whether a block has a part that is invariant under rotation and inversion."""
    if key_names == ("_",):
        return not axes
    if key_names == RANK_TWO:
        return key[0] == key[1] and key[2:] == (1, 1)
    return key_names in (SPHERICAL, BASIS) and key[:2] == (0, 1)
