"""Scales against plain loops that restate the formulas, over targets of every kind."""

import itertools
import math
import re
import warnings
from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest
import torch
from builders import labels
from by_hand import rms
from cases import EXAMPLES, RANK_TWO, UNSEEN, Case, Entry, cases, has_baseline, over
from hypothesis import given, strategies as st

from lightning_scaler import Scaler

EPSILON = {torch.float32: 2.0**-23, torch.float64: 2.0**-52}
pytestmark = pytest.mark.usefixtures("one_thread")


def is_invariant(case: Case, entry: Entry) -> bool:
    """Whether this value has a baseline: scalars, and the diagonal of rank-2 blocks."""
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
    """Least squares of the totals on the counts of the types, at every entry.

    Intensive values are fitted to the fractions of the types, which are 0 without atoms.
    """
    types = sorted({z for of in case.compositions for z in of})
    columns, offsets = defaultdict(list), {}
    for entry in entries:
        columns[entry.block, entry.property].append(entry)
    for column in columns.values():
        counts = [[case.compositions[entry.system].count(z) for z in types] for entry in column]
        matrix, totals = np.array(counts, float), np.array([entry.value for entry in column])
        if case.intensive:
            matrix = matrix / np.maximum(matrix.sum(1, keepdims=True), 1.0)
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
    """The fixed number of an atom, or of a structure, at every entry.

    That of a structure is the sum over its atoms, or their mean for intensive values.
    """
    number, contributions = case.baseline.fixed["t"], {}
    for entry in entries:
        types = [entry.type] if case.per_atom else case.compositions[entry.system]
        divisor = max(len(types), 1) if case.intensive else 1
        contributions[entry] = math.fsum(number[z] for z in types) / divisor
    return contributions


def residuals(case: Case) -> tuple[dict[tuple, list[float]], bool]:
    """What the scales are taken from, by block, property and type; and whether any of it vanishes.

    Numbers that are stored as 0 do not count, unless all are.

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
    vanishing = [group for group in left if rms(*left[group]) <= noise * rms(*stored[group])]
    left.update({group: [0.0] * len(left[group]) for group in vanishing})
    padding = [group for group in stored if not any(stored[group])]
    only_zeros = padding == list(stored)
    return dict(left), bool(vanishing) and (only_zeros or not {*vanishing} <= {*padding})


class Reference:
    """The scales of a case, by the formulas and the rules for missing values and zeros.

    An atomic type of ``None`` stands for all types together.
    """

    def __init__(self, case: Case) -> None:
        self.case = case
        left, self.some_vanish = residuals(case)
        # By block and property, and by type: the sum of squares and how many numbers there are.
        self.sums: dict[tuple[int | None, int | None, int | None], tuple[float, int]] = {}
        together = defaultdict(list)
        for (b, p, atomic_type), numbers in left.items():
            squares = [y * y for y in numbers]
            for group in itertools.product(((b, p), (None, None)), (atomic_type, None)):
                together[(*group[0], group[1])] += squares
        for group, squares in together.items():
            self.sums[group] = math.fsum(squares), len(squares)
        self.single_property = [case.n_properties[b] for b in case.blocks] == [1]

    def per_target(self, atomic_type: int | None) -> float:
        """The fixed number or the RMS of a type."""
        fixed = self.case.fixed
        if isinstance(fixed, float):
            return fixed
        if isinstance(fixed, dict) and atomic_type is not None:
            return fixed[atomic_type]
        return self._of_data(atomic_type)

    def per_property(self, b: int, p: int, atomic_type: int | None) -> float:
        """The RMS inside one block, one property and one type, relative to the target's."""
        if self.single_property:
            return 1.0
        squares, count = self.sums.get((b, p, atomic_type), (0.0, 0))
        if not count:
            return 1.0 / self.per_target(atomic_type)
        return math.sqrt(squares / count) / self._of_data(atomic_type) if squares else 1.0

    def full(self, b: int, p: int, atomic_type: int | None) -> float:
        return self.per_target(atomic_type) * self.per_property(b, p, atomic_type)

    def _of_data(self, atomic_type: int | None) -> float:
        squares, count = self.sums.get((None, None, atomic_type), (0.0, 0))
        if squares:
            return math.sqrt(squares / count)
        # No numbers; or zeros alone, which take what all types have.
        return self._of_data(None) if count and atomic_type is not None else 1.0


# The first 21 letters of warnings about baselines that do not suit drawn data, or missing values.
OTHER_WARNINGS = {"subtracting the basel", "some atomic types hav", "the targets ['t'] hav"}


def computed(
    case: Case, some_vanish: bool, unseen_types: str = "error", restored: bool = False
) -> Scaler:
    """The Scaler of a case, with one warning of noise if some of its data vanish, else with none.

    Args:
        case: its data.
        some_vanish: whether the warning is expected.
        unseen_types: a setting of the Scaler.
        restored: the state of the Scaler is loaded into another one.
    """
    fixed = {} if case.fixed is None else {"t": case.fixed}
    accumulator = case.accumulated()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        # torch, about TorchScript, which may be compiled here first.
        warnings.simplefilter("ignore", DeprecationWarning)
        scaler = accumulator.compute(fixed, unseen_types)
    words = [str(one.message)[:21] for one in caught]
    assert words.count("these data are zero, ") == some_vanish
    others = [word for word in words if word != "these data are zero, "]
    assert len(set(others)) == len(others)
    assert {*others} <= OTHER_WARNINGS
    if not restored:
        return scaler
    other = Scaler()
    other.load_state_dict(scaler.state_dict())
    return other


def tolerance(case: Case) -> float:
    return 1e-12 if case.baseline is None else 1e-8


@pytest.mark.slow
@over(EXAMPLES)
@given(cases())
def test_scales_against_plain_loops(case):
    if not case.blocks:
        with pytest.raises(ValueError, match="no target was seen"):
            case.accumulated().compute()
        return
    reference = Reference(case)
    scaler = computed(case, reference.some_vanish, restored=case.seed % 4 == 0)
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


class Conversion:
    """The numbers that values of seen and unseen types are multiplied by."""

    def __init__(self, reference: Reference, unseen_types: str) -> None:
        self.reference, self.unseen_types = reference, unseen_types
        self.fixed, self.seen = reference.case.fixed, reference.case.types

    def is_unseen(self, atomic_type: int) -> bool:
        """Whether there is no number for a type: a single property needs only the fixed one."""
        if atomic_type in self.seen:
            return False
        numbers = self.fixed if isinstance(self.fixed, dict) else {}
        given = isinstance(self.fixed, float) or atomic_type in numbers
        return not (self.reference.single_property and given)

    def factors(self, b: int, p: int, atomic_type: int) -> dict[tuple[str, str], float]:
        """By source and target."""
        if not self.is_unseen(atomic_type):
            per_target = self.reference.per_target(atomic_type)
            per_property = self.reference.per_property(b, p, atomic_type)
        elif self.unseen_types == "pooled":
            per_target = self.reference.per_target(None)
            per_property = self.reference.per_property(b, p, None)
        else:
            per_target = per_property = 1.0
        return {
            ("model", "loss"): per_property,
            ("loss", "physical"): per_target,
            ("model", "physical"): per_target * per_property,
            ("physical", "loss"): 1.0 / per_target,
        }


def with_unseen_types(case: Case, rng: np.random.Generator) -> tuple[Case, list[int]]:
    """Structures of seen and unseen types; every block has rows of its own, in its own order."""
    elsewhere = (
        [z for z in case.fixed if z not in case.types] if isinstance(case.fixed, dict) else []
    )
    pool = [*case.types[:3], UNSEEN, *elsewhere[:1]]
    compositions = [rng.choice(pool, rng.integers(1, 5)).tolist() for _ in range(3)]
    values, rows = {}, {}
    for i, types in enumerate(compositions):
        for b in case.blocks:
            rows[i, b] = [atom for atom in range(len(types)) if rng.random() < 0.6]
            shape = (len(rows[i, b]), *case.axes[b], case.n_properties[b])
            values[i, b] = rng.uniform(1.0, 2.0, shape)
    there = {
        types[a] for i, types in enumerate(compositions) for b in case.blocks for a in rows[i, b]
    }
    other = replace(
        case,
        compositions=compositions,
        values=values,
        rows=rows,
        dtype=torch.float64,
        kept=None,
        labels_are="position",
    )
    return other, sorted(there)


@pytest.mark.slow
@over(EXAMPLES // 8)
@given(
    cases(families=("plain", "parts", "spherical", "rank two"), readings=("position",)),
    st.sampled_from(["pooled", "identity", "error"]),
    st.booleans(),
)
def test_types_that_were_not_seen_against_plain_loops(case, unseen_types, restored):
    if not case.blocks or not case.per_atom:
        return
    conversion = Conversion(Reference(case), unseen_types)
    scaler = computed(case, conversion.reference.some_vanish, unseen_types, restored)
    batch, types = with_unseen_types(case, np.random.default_rng(case.seed))
    systems, tensors, _ = batch.tensors(range(3), case.blocks, shuffled=True)
    unseen = [z for z in types if conversion.is_unseen(z)]
    if unseen_types == "error" and unseen:
        with pytest.raises(ValueError, match=r"target 't': no scale for the atomic types \["):
            scaler.convert(systems, tensors, "model", "physical", baseline=False)
        return
    spaces = [("model", "loss"), ("loss", "physical"), ("model", "physical"), ("physical", "loss")]
    for source, target in spaces:
        found = scaler.convert(systems, tensors, source, target, baseline=False)["t"]
        for row, b in enumerate(case.blocks):
            ours, theirs = found.block_by_id(row), tensors["t"].block_by_id(row)
            of_rows = [batch.compositions[i][atom] for i, atom in theirs.samples.values.tolist()]
            n_properties = case.n_properties[b]
            factors = [
                [conversion.factors(b, p, z)[source, target] for p in range(n_properties)]
                for z in of_rows
            ]
            shape = (len(of_rows), *[1] * len(case.axes[b]), n_properties)
            expected = theirs.values.numpy() * np.array(factors).reshape(shape)
            np.testing.assert_allclose(ours.values.numpy(), expected, rtol=tolerance(case))


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
    words += f"{np.isinf(numbers).sum()} infinite values"
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
