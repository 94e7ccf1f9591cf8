"""Scales against plain loops that restate the formulas, over targets of every kind."""

import math
import re
import warnings
from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest
import torch
from builders import labels
from cases import EXAMPLES, RANK_TWO, UNSEEN, Case, Entry, cases, has_baseline, over
from hypothesis import given, strategies as st

from lightning_scaler import Scaler

EPSILON = {torch.float32: 2.0**-23, torch.float64: 2.0**-52}
pytestmark = pytest.mark.usefixtures("one_thread")


def rms(numbers: list[float]) -> float:
    return math.sqrt(math.fsum(y * y for y in numbers) / len(numbers))


def is_invariant(case: Case, entry: Entry) -> bool:
    """Whether the baseline comes off this entry: scalars, and the diagonal of rank-2 blocks."""
    b = entry.block
    if not has_baseline(case.key_names, case.keys[b], case.axes[b]):
        return False
    return case.key_names != RANK_TWO or entry.component % (case.axes[b][0] + 1) == 0


def means(entries: list[Entry]) -> dict[Entry, float]:
    """The mean of each type, of every block and property, at every entry."""
    groups = defaultdict(list)
    for entry in entries:
        groups[entry.block, entry.property, entry.type].append(entry.value)
    mean = {group: math.fsum(values) / len(values) for group, values in groups.items()}
    return {entry: mean[entry.block, entry.property, entry.type] for entry in entries}


def compositions(case: Case, entries: list[Entry]) -> dict[Entry, float]:
    """Least squares of the totals on the counts of the types, at every entry."""
    types = sorted({z for of in case.compositions for z in of})
    columns, offsets = defaultdict(list), {}
    for entry in entries:
        columns[entry.block, entry.property].append(entry)
    for column in columns.values():
        counts = [[case.compositions[entry.system].count(z) for z in types] for entry in column]
        matrix, totals = np.array(counts, float), np.array([entry.value for entry in column])
        weights = np.zeros(len(types))
        for _ in range(2):  # the second time on what the first has left
            weights += np.linalg.lstsq(matrix, totals - matrix @ weights, rcond=1e-10)[0]
        of_rows = matrix @ weights
        with_atoms = np.array([any(of) for of in counts])
        rank = np.linalg.matrix_rank(matrix) if matrix.size else 0
        if rank == with_atoms.sum():  # as many weights as totals leave nothing at all
            of_rows[with_atoms] = totals[with_atoms]
        offsets.update(zip(column, of_rows.tolist(), strict=True))
    return offsets


def fixed_contributions(case: Case, entries: list[Entry]) -> dict[Entry, float]:
    """The fixed number of an atom, or the sum of those of a structure, at every entry."""
    number = case.baseline.fixed["t"]
    return {
        entry: number[entry.type]
        if case.per_atom
        else math.fsum(number[z] for z in case.compositions[entry.system])
        for entry in entries
    }


def residuals(case: Case) -> tuple[dict[tuple, list[float]], bool]:
    """What the scales are taken from, by block, property and type; and whether any of it vanishes.

    The baseline is off, extensive values are per atom, and what rounding leaves of a number is 0.
    """
    entries, offsets = list(case.entries()), {}
    if case.baseline is not None:
        invariant = [entry for entry in entries if is_invariant(case, entry)]
        if case.baseline.fixed:
            offsets = fixed_contributions(case, invariant)
        else:
            offsets = means(invariant) if case.per_atom else compositions(case, invariant)
    left, stored = defaultdict(list), defaultdict(list)
    for entry in entries:
        n_atoms = len(case.compositions[entry.system]) if case.extensive else 1
        if n_atoms > 0:
            group = entry.block, entry.property, entry.type
            left[group].append((entry.value - offsets.get(entry, 0.0)) / n_atoms)
            stored[group].append(entry.value / n_atoms)
    noise = max(EPSILON[case.dtype], 16 * 2.0**-52)
    vanishing = [group for group in left if rms(left[group]) <= noise * rms(stored[group])]
    left.update({group: [0.0] * len(left[group]) for group in vanishing})
    return dict(left), bool(vanishing)


class Reference:
    """The scales of a case, by the formulas and the rules for what is missing or vanishes."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.left, self.some_vanish = residuals(case)
        every = self._numbers()
        self.pooled = rms(every) if any(every) else 1.0
        self.single_property = [case.n_properties[b] for b in case.blocks] == [1]

    def per_target(self, atomic_type: int | None) -> float:
        """The fixed number or the RMS of a type; ``None``: over all types."""
        fixed = self.case.fixed
        if isinstance(fixed, float):
            return fixed
        if isinstance(fixed, dict) and atomic_type is not None:
            return fixed[atomic_type]
        return self._of_data(atomic_type)

    def per_property(self, b: int, p: int, atomic_type: int | None) -> float:
        """The RMS inside one block, one property and one type, relative to the target's."""
        numbers = self._numbers(b, p, atomic_type)
        if self.single_property:
            return 1.0
        if not numbers:
            return 1.0 / self.per_target(atomic_type)
        return rms(numbers) / self._of_data(atomic_type) if any(numbers) else 1.0

    def full(self, b: int, p: int, atomic_type: int | None) -> float:
        return self.per_target(atomic_type) * self.per_property(b, p, atomic_type)

    def _of_data(self, atomic_type: int | None) -> float:
        numbers = self._numbers(None, None, atomic_type)
        if not numbers:
            return 1.0
        return rms(numbers) if any(numbers) else self.pooled

    def _numbers(self, *wanted: int | None) -> list[float]:
        """Those of a block, a property and a type, ``None`` standing for all."""
        wanted = wanted or (None, None, None)
        return [
            y
            for group, numbers in self.left.items()
            if all(want in (None, have) for want, have in zip(wanted, group, strict=True))
            for y in numbers
        ]


def computed(case: Case, some_vanish: bool, unseen_types: str = "error") -> Scaler:
    """The Scaler of a case, with one warning if some of its data vanish, else with none."""
    fixed = {} if case.fixed is None else {"t": case.fixed}
    accumulator = case.accumulated()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        # torch, about TorchScript, which may be compiled here first.
        warnings.simplefilter("ignore", DeprecationWarning)
        scaler = accumulator.compute(fixed, unseen_types)
    assert [str(one.message)[:21] for one in caught] == ["these data are zero, "] * some_vanish
    return scaler


def tolerance(case: Case) -> float:
    return 1e-12 if case.baseline is None else 1e-8


@over(EXAMPLES)
@given(cases())
def test_scales_against_plain_loops(case):
    if not case.blocks:
        with pytest.raises(ValueError, match="no target was seen"):
            case.accumulated().compute()
        return
    reference = Reference(case)
    scaler = computed(case, reference.some_vanish)
    for shown, wanted in (
        (scaler.per_target_scales, lambda b, p, z: reference.per_target(z)),
        (scaler.per_property_scales, reference.per_property),
        (scaler.scales, reference.full),
    ):
        assert len(shown["t"].keys) == len(case.blocks)
        for b in case.blocks:
            block = shown["t"].block(dict(zip(case.key_names, case.keys[b], strict=True)))
            assert block.samples == labels("atomic_type", case.types)
            numbers = [[wanted(b, p, z) for p in range(case.n_properties[b])] for z in case.types]
            expected = np.array(numbers).reshape(len(case.types), case.n_properties[b])
            np.testing.assert_allclose(block.values.numpy(), expected, rtol=tolerance(case))


@over(EXAMPLES // 10)
@given(cases(families=("plain", "parts", "spherical", "rank two"), readings=("position",)))
def test_pooled_scales_against_plain_loops(case):
    if not case.blocks or not case.per_atom:
        return
    reference = Reference(case)
    scaler = computed(case, reference.some_vanish, "pooled")
    one = {b: np.ones((1, *case.axes[b], case.n_properties[b])) for b in case.blocks}
    unseen = replace(
        case,
        compositions=[[UNSEEN]],
        values={(0, b): ones for b, ones in one.items()},
        rows={(0, b): [0] for b in case.blocks},
        dtype=torch.float64,
        kept=None,
    )
    systems, ones, _ = unseen.tensors([0], case.blocks)
    for space, wanted in (
        ("loss", lambda b, p, z: reference.per_property(b, p, z)),
        ("physical", reference.full),
    ):
        found = scaler.convert(systems, ones, "model", space, baseline=False)["t"]
        for row, b in enumerate(case.blocks):
            expected = [wanted(b, p, None) for p in range(case.n_properties[b])]
            values = found.block_by_id(row).values.numpy().reshape(-1, len(expected))
            for of_component in values:
                np.testing.assert_allclose(of_component, expected, rtol=tolerance(case))


@over(EXAMPLES // 20)
@given(cases(complete=True), st.sampled_from([math.inf, -math.inf]))
def test_infinite_entries_are_an_error_that_counts_them(case, infinity):
    with_atoms = [i for i in case.batches[0] if case.compositions[i]]
    wanted = [(i, b) for i in with_atoms for b in case.blocks if case.values[i, b].size]
    if not wanted:
        return
    i, b = wanted[case.seed % len(wanted)]
    numbers = np.where(case.values[i, b] > case.values[i, b].mean(), infinity, case.values[i, b])
    numbers.flat[0] = infinity
    case = replace(case, values=case.values | {(i, b): numbers})
    where = ", ".join(f"{n}={k}" for n, k in zip(case.key_names, case.keys[b], strict=True))
    words = f"target 't', block ({where}): expected finite numbers, or NaN for missing ones, got "
    words += f"{np.isinf(numbers).sum()} infinite entries"
    with pytest.raises(ValueError, match=re.escape(words)):
        case.accumulated()


@over(EXAMPLES // 20)
@given(cases(families=("plain", "parts"), baselines=("none",), complete=True), st.booleans())
def test_squares_that_overflow_are_an_error(case, in_one_batch):
    # 1e200 squared is no float64; 1.3e154 squared is one, three times that is none.
    size = 1e200 if in_one_batch else 1.3e154
    b = case.blocks[0]
    huge = {i: np.full_like(case.values[i, b], size) for i in range(len(case.compositions))}
    case = replace(
        case,
        values=case.values | {(i, b): numbers for i, numbers in huge.items()},
        dtype=torch.float64,
        intensive=not case.per_atom,
    )
    if sum(numbers.size for numbers in huge.values()) < 3:
        return
    with pytest.raises(ValueError, match=r"target 't', block \(.*the sum of squares.* overflows"):
        case.accumulated().compute()
