"""Small batches that wait to be read together."""

import copy

import pytest
import torch
from builders import forces, labels, scale, spherical, structure_target, system

from lightning_scaler import CompositionBaseline, ScaleAccumulator
from lightning_scaler.batches.atoms import Atoms
from lightning_scaler.scaling.gathered import SETS_OF_TARGETS
from lightning_scaler.statistics.pending import (
    ENTRIES_AT_ONCE,
    SYSTEMS_AT_ONCE,
    WaitingBatches,
    copies_of_small,
)
from lightning_scaler.tensors.layout import TargetLayout

NAN, INF = float("nan"), float("inf")


def energy(*values, **options):
    return structure_target(list(values), **options)


def waiting_entries(accumulator):
    """The most that waits of any target: systems, and atoms or entries of a block."""
    waiting = accumulator._gathered._waiting.values()
    return max((w.n_systems for w in waiting), default=0), max(
        (w.n_entries for w in waiting), default=0
    )


def test_batches_are_joined():
    first, second = energy(1.0, 2.0), energy(3.0)
    waiting = WaitingBatches({"e": TargetLayout.of("e", first)})
    for systems, tensor in (([system(8), system(1, 8)], first), ([system(6)], second)):
        copies = {"e": copies_of_small([tensor], 100)[0]}
        assert not waiting.add(Atoms.from_systems(systems), copies)
    atoms, values = waiting.joined()
    assert atoms.types.tolist() == [8, 1, 8, 6]
    assert atoms.counts.tolist() == [1, 2, 1]
    assert [of_block.tolist() for of_block in values["e"]] == [[[1.0], [2.0], [3.0]]]


@pytest.mark.parametrize(
    ("types", "n_batches"),
    [((1,) * 64, ENTRIES_AT_ONCE // 64), ((1,), SYSTEMS_AT_ONCE)],
    ids=["atoms", "systems"],
)
def test_few_are_enough(types, n_batches):
    waiting = WaitingBatches({"e": TargetLayout.of("e", energy(1.0))})
    atoms, values = Atoms.from_systems([system(*types)]), {"e": [torch.ones(1, 1)]}
    assert [waiting.add(atoms, values) for _ in range(n_batches)].index(True) == n_batches - 1


def test_what_may_wait():
    plain, missing = energy(1.0, 2.0), energy(NAN, 2.0)
    infinite, overflowing, short = energy(1.0, INF), energy(1e200, NAN), energy(1e30, 1.0)
    short = short.to(torch.float32)
    samples = labels("system", [0])
    wide = spherical({0: torch.ones(1, 1, 1), 2: torch.ones(1, 5, 20)}, samples)
    tensors = [plain, missing, infinite, overflowing, short, wide]
    found = copies_of_small(tensors, 100)
    assert [len(values) for values in found] == [1, 1, 0, 0, 1, 0]
    assert [len(values) for values in copies_of_small(tensors, 101)] == [1, 1, 0, 0, 1, 2]
    assert found[4][0].dtype == torch.float32
    assert found[0][0].data_ptr() != plain.block().values.data_ptr()


def test_waiting_changes_nothing(monkeypatch):
    """Two sizes of batches, missing values, a type that comes late, a change of the dtype."""
    batches = [
        ([system(8), system(1, 8, 1)], energy(2.0, 12.0), forces([[1, 2, 3]] * 4, 1, 3)),
        ([system(1)], energy(-1.0), forces([[NAN, 4, 4]], 1)),
        ([system(6, 6)], energy(5.0, dtype=torch.float32), forces([[0, 1, 0]] * 2, 2)),
        ([system(8)], energy(7.0), forces([[9, 1, 5]], 1)),
    ]
    scalers = []
    for at_once in (ENTRIES_AT_ONCE, 5, 1):
        monkeypatch.setattr("lightning_scaler.scaling.gathered.ENTRIES_AT_ONCE", at_once)
        monkeypatch.setattr("lightning_scaler.statistics.pending.ENTRIES_AT_ONCE", at_once)
        accumulator = ScaleAccumulator(baseline=CompositionBaseline())
        for systems, e, f in batches:
            accumulator.update(systems, {"e": e, "f": f})
        assert bool(accumulator._gathered._waiting) == (at_once > 1)
        scalers.append(accumulator.compute())
    for name in ("e", "f"):
        together, *others = (torch.tensor(scale(scaler, name)) for scaler in scalers)
        for other in others:
            torch.testing.assert_close(other, together, rtol=1e-13, atol=0.0)


def test_what_waits_is_read_before_other_data_come():
    """A dtype that is rounded otherwise, and a target that turns out to have another block."""
    accumulator = ScaleAccumulator()
    for dtype in (torch.float32, torch.float64):
        accumulator.update([system(8)], {"e": energy(1.0, dtype=dtype)})
    assert accumulator._gathered.statistics["e"].blocks[(0,)].epsilon == 2.0**-23
    samples = labels("system", [0])
    scalar = spherical({0: torch.ones(1, 1, 1)}, samples)
    both = spherical({0: torch.ones(1, 1, 1), 2: torch.full((1, 5, 1), 3.0)}, samples)
    for tensor in (scalar, both, both, scalar):
        accumulator.update([system(8)], {"p": tensor})
    # Four times 1, and ten times 9.
    expected = (94 / 14) ** 0.5
    found = accumulator.compute().per_target_scales["p"].block_by_id(0).values
    assert found.item() == pytest.approx(expected, rel=1e-15)


def test_a_layout_of_waiting_data_is_kept_to():
    accumulator, samples = ScaleAccumulator(), labels("system", [0])
    scalar, tensor = torch.ones(1, 1, 1), torch.ones(1, 5, 1)
    for blocks in ({0: scalar}, {0: scalar, 2: tensor}):
        accumulator.update([system(8)], {"p": spherical(blocks, samples)})
    with pytest.raises(ValueError, match=r"(?s)target 'p', block \(o3_lambda=2.*as before"):
        accumulator.update([system(8)], {"p": spherical({2: torch.ones(1, 5, 3)}, samples)})


def test_what_waits_is_a_copy():
    accumulator, values = ScaleAccumulator(), (3.0, 4.0)
    for _ in range(2):
        accumulator.update([system(8), system(1)], {"e": energy(*values)})
    tensor = energy(*values)
    accumulator.update([system(8), system(1)], {"e": tensor})
    tensor.block().values.fill_(100.0)
    # Per atom 3 and 4.
    assert scale(accumulator.compute(), "e")[0][0] == pytest.approx(12.5**0.5, rel=1e-15)


def test_what_waits_is_bounded():
    accumulator = ScaleAccumulator()
    systems, most = [system(8), system(1, 8)], (0, 0)
    targets = {"e": energy(1.0, 2.0), "q": forces([[1, 2, 2]] * 3, 1, 2)}
    for _ in range(3 * SYSTEMS_AT_ONCE // 2):
        accumulator.update(systems, targets)
        most = max(most, waiting_entries(accumulator))
    assert SYSTEMS_AT_ONCE - 2 <= most[0] < SYSTEMS_AT_ONCE
    assert scale(accumulator.compute(), "q") == [[3**0.5], [3**0.5]]


def test_batches_of_many_sets_of_targets():
    accumulator, names = ScaleAccumulator(), "abcde"
    sets = [[n for i, n in enumerate(names) if 2**i & chosen] for chosen in range(1, 32)]
    for chosen in sets:
        accumulator.update([system(8)], {name: energy(float(len(chosen))) for name in chosen})
        assert len(accumulator._gathered._waiting) <= SETS_OF_TARGETS
    # Each is in as many sets of 1, 2, 3, 4 and 5 targets: 1, 4, 6, 4 and 1.
    squares = [1 * 1, 4 * 4, 6 * 9, 4 * 16, 1 * 25]
    scaler = accumulator.compute()
    for name in names:
        assert scale(scaler, name)[0][0] == pytest.approx((sum(squares) / 16) ** 0.5, rel=1e-15)


def test_an_infinite_value_is_told_with_its_batch():
    accumulator = ScaleAccumulator()
    accumulator.update([system(8)], {"e": energy(2.0)})
    with pytest.raises(ValueError, match=r"target 'e', .* 1 infinite entries"):
        accumulator.update([system(8)], {"e": energy(INF)})
    assert scale(accumulator.compute(), "e") == [[2.0]]


@pytest.mark.parametrize("values", [[1.2e154], [1e153] * 3])
def test_what_might_overflow_with_others_does_not_wait(values):
    """Else it would be read late, together with good data."""
    accumulator = ScaleAccumulator()
    accumulator.update([system(8)] * len(values), {"e": energy(*values)})
    assert not accumulator._gathered._waiting


def test_a_single_value_whose_square_overflows_is_told_with_its_batch():
    accumulator = ScaleAccumulator()
    with pytest.raises(ValueError, match=r"target 'e', .* sum of squares overflows"):
        accumulator.update([system(8)], {"e": energy(1e200)})
    accumulator.update([system(8)], {"q": energy(2.0)})
    assert list(accumulator.compute().targets) == ["q"]


def test_empty_batches_do_not_pile_up():
    accumulator, nothing = ScaleAccumulator(), energy(1.0)
    accumulator.update([system(8)], {"e": nothing})
    empty = structure_target(torch.zeros(0, 1), [])
    for _ in range(SYSTEMS_AT_ONCE):
        accumulator.update([], {"e": empty})
    (waiting,) = accumulator._gathered._waiting.values()
    assert len(waiting.values) < 10


def test_all_that_looks_inside_reads_what_waits():
    def waiting():
        accumulator = ScaleAccumulator()
        accumulator.update([system(8)], {"e": energy(2.0)})
        assert accumulator._gathered._waiting
        return accumulator

    merged = ScaleAccumulator()
    merged.merge(waiting())
    restored = ScaleAccumulator()
    restored.merge_state(waiting().state())
    into = waiting()
    into.merge(waiting())
    for accumulator in (waiting(), copy.deepcopy(waiting()), merged, restored, into):
        assert scale(accumulator.compute(), "e") == [[2.0]]
