"""Small batches that are kept until they are read together."""

import copy
import pickle

import pytest
import torch
from builders import forces, labels, scale, spherical, structure_target, system

from lightning_scaler import CompositionBaseline, ScaleAccumulator
from lightning_scaler.batches import Atoms
from lightning_scaler.statistics import PendingBatches, copy_small_values
from lightning_scaler.statistics.pending import (
    ALL_VALUES_PER_GROUP,
    MAX_GROUPS,
    SYSTEMS_PER_GROUP,
    VALUES_PER_GROUP,
)
from lightning_scaler.tensors import TargetLayout

NAN, INF = float("nan"), float("inf")
SOME = TargetLayout.of("e", structure_target([1.0]))


def energy(*values, **options):
    return structure_target(list(values), **options)


def atoms_of(*systems):
    return Atoms.from_systems([system(*types) for types in systems])


def pickled_size(accumulator):
    return len(pickle.dumps(accumulator))


def test_batches_are_joined():
    first, second = energy(1.0, 2.0), energy(3.0)
    pending = PendingBatches()
    for systems, tensor in (([(8,), (1, 8)], first), ([(6,)], second)):
        copies = {"e": copy_small_values([tensor], 100)[0]}
        assert pending.add({"e": SOME}, atoms_of(*systems), copies) == []
    assert len(pending) == 2
    (joined,) = pending.take_all()
    assert joined.layouts == {"e": SOME}
    assert joined.atoms.types.tolist() == [8, 1, 8, 6]
    assert joined.atoms.n_atoms.tolist() == [1, 2, 1]
    assert [of_block.tolist() for of_block in joined.values["e"]] == [[[1.0], [2.0], [3.0]]]
    assert len(pending) == 0
    assert pending.take_all() == []


@pytest.mark.parametrize(
    ("types", "n_values", "n_batches"),
    [
        ((1,) * 64, 1, VALUES_PER_GROUP // 64),
        ((1,), 64, VALUES_PER_GROUP // 64),
        ((1,), 1, SYSTEMS_PER_GROUP),
        (None, 0, SYSTEMS_PER_GROUP),
    ],
    ids=["atoms", "values", "systems", "batches without systems"],
)
def test_group_is_read_once_it_is_large(types, n_values, n_batches):
    pending = PendingBatches()
    atoms = atoms_of() if types is None else atoms_of(types)
    batch = {"e": SOME}, atoms, {"e": [torch.ones(len(atoms.n_atoms), n_values)]}
    for _ in range(2):
        due = [pending.add(*batch) for _ in range(n_batches)]
        assert [len(groups) for groups in due] == [0] * (n_batches - 1) + [1]
        assert due[-1][0].atoms.n_systems == n_batches * atoms.n_systems
        assert len(pending) == 0


def test_a_group_of_many_blocks_is_read_after_fewer_values_of_each():
    pending, n_blocks = PendingBatches(), 64
    batch = {"e": SOME}, atoms_of([8]), {"e": [torch.ones(1, 1024)] * n_blocks}
    n_batches = ALL_VALUES_PER_GROUP // (n_blocks * 1024)
    assert n_batches * 1024 < VALUES_PER_GROUP
    due = [pending.add(*batch) for _ in range(n_batches)]
    assert [len(groups) for groups in due] == [0] * (n_batches - 1) + [1]


@pytest.mark.parametrize("name", ["SYSTEMS_PER_GROUP", "VALUES_PER_GROUP"])
def test_groups_of_one_are_read_at_once(name, monkeypatch):
    monkeypatch.setattr(f"lightning_scaler.statistics.pending.{name}", 1)
    due = PendingBatches().add({"e": SOME}, atoms_of([8]), {"e": [torch.ones(1, 1)]})
    assert len(due) == 1


def test_group_is_read_before_another_dtype_or_layout():
    pending, atoms = PendingBatches(), atoms_of([8])
    other = TargetLayout.of("e", structure_target([1.0]))
    single, double = torch.ones(1, 1), torch.ones(1, 1).double()
    assert pending.add({"e": SOME}, atoms, {"e": [single]}) == []
    for layout, values, before in ((SOME, double, single), (other, double, double)):
        (due,) = pending.add({"e": layout}, atoms, {"e": [values]})
        assert due.layouts["e"] is SOME
        assert due.values["e"][0].dtype == before.dtype
    (rest,) = pending.take_all()
    assert rest.layouts["e"] is other


def test_number_of_groups_is_bounded():
    pending, atoms = PendingBatches(), atoms_of([8])
    for n in range(1, 4 * MAX_GROUPS):
        names = [f"e{i}" for i in range(n)]
        values = {name: [torch.full((1, 1), float(n))] for name in names}
        due = pending.add(dict.fromkeys(names, SOME), atoms, values)
        # All groups at a time, as soon as there is one more.
        expected = MAX_GROUPS if n > MAX_GROUPS and n % MAX_GROUPS == 1 else 0
        assert len(due) == expected
        assert len(pending) <= MAX_GROUPS


def test_what_may_wait():
    plain, missing = energy(1.0, 2.0), energy(NAN, 2.0)
    infinite, overflowing, short = energy(1.0, INF), energy(1e200, NAN), energy(1e30, 1.0)
    short = short.to(torch.float32)
    samples = labels("system", [0])
    wide = spherical({0: torch.ones(1, 1, 1), 2: torch.ones(1, 5, 20)}, samples)
    tensors = [plain, missing, infinite, overflowing, short, wide]
    found = copy_small_values(tensors, 100)
    assert [len(values) for values in found] == [1, 1, 0, 0, 1, 0]
    assert [len(values) for values in copy_small_values(tensors, 101)] == [1, 1, 0, 0, 1, 2]
    assert found[4][0].dtype == torch.float32
    assert found[0][0].data_ptr() != plain.block().values.data_ptr()


@pytest.mark.parametrize("values", [[1.2e154], [1e153] * 3])
def test_values_that_might_overflow_with_others_may_not_wait(values):
    """Otherwise the error would come late, and the good batches of the group would be lost."""
    assert copy_small_values([energy(*values)]) == [[]]


@pytest.mark.parametrize("name", ["SYSTEMS_PER_GROUP", "VALUES_PER_GROUP"])
def test_scales_do_not_depend_on_the_size_of_groups(name, monkeypatch):
    """Two sizes of batches, missing values, a type that comes late, a change of the dtype."""
    batches = [
        ([system(8), system(1, 8, 1)], energy(2.0, 12.0), forces([[1, 2, 3]] * 4, 1, 3)),
        ([system(1)], energy(-1.0), forces([[NAN, 4, 4]], 1)),
        ([system(6, 6)], energy(5.0, dtype=torch.float32), forces([[0, 1, 0]] * 2, 2)),
        ([system(8)], energy(7.0), forces([[9, 1, 5]], 1)),
    ]
    scalers = []
    for size in (VALUES_PER_GROUP, 5, 3, 1):
        monkeypatch.setattr(f"lightning_scaler.statistics.pending.{name}", size)
        accumulator = ScaleAccumulator(baseline=CompositionBaseline())
        for systems, e, f in batches:
            accumulator.update(systems, {"e": e, "f": f})
        scalers.append(accumulator.compute())
    for target in ("e", "f"):
        together, *others = (torch.tensor(scale(scaler, target)) for scaler in scalers)
        for other in others:
            torch.testing.assert_close(other, together, rtol=1e-13, atol=0.0)


def test_rounding_noise_of_float32_is_known_after_float64_data():
    """2^-10 is below the resolution of float32 at 10^4, 2^-23 * 10^4, in all of the data."""
    baseline = CompositionBaseline(fixed={"e": {8: 1e4}})
    accumulator = ScaleAccumulator(baseline=baseline)
    for dtype in (torch.float32, torch.float64):
        accumulator.update([system(8)], {"e": energy(1e4 + 2.0**-10, dtype=dtype)})
    with pytest.warns(UserWarning, match="below their rounding noise after subtracting"):
        assert scale(accumulator.compute(), "e") == [[1.0]]


def test_rounding_noise_of_float32_is_known_if_only_one_of_the_targets_changes_its_dtype():
    """The numbers of the test above, beside a target that is always float64."""
    baseline = CompositionBaseline(fixed={"e": {8: 1e4}})
    accumulator = ScaleAccumulator(baseline=baseline)
    for dtype, other in ((torch.float32, 1.0), (torch.float64, 3.0)):
        targets = {"e": energy(1e4 + 2.0**-10, dtype=dtype), "q": energy(other)}
        accumulator.update([system(8)], targets)
    with pytest.warns(UserWarning, match=r"rounding noise .* target 'e'"):
        scaler = accumulator.compute()
    # The values 1 and 3 are 1 away from their mean.
    assert [scale(scaler, name) for name in "eq"] == [[[1.0]], [[1.0]]]


def test_blocks_that_come_and_go():
    accumulator, samples = ScaleAccumulator(), labels("system", [0])
    scalar = spherical({0: torch.ones(1, 1, 1)}, samples)
    both = spherical({0: torch.ones(1, 1, 1), 2: torch.full((1, 5, 1), 3.0)}, samples)
    for tensor in (scalar, both, both, scalar):
        accumulator.update([system(8)], {"p": tensor})
    # Four times 1, and ten times 9.
    expected = (94 / 14) ** 0.5
    found = accumulator.compute().per_target_scales["p"].block_by_id(0).values
    assert found.item() == pytest.approx(expected, rel=1e-15)


def test_layout_of_pending_data_must_be_kept():
    accumulator, samples = ScaleAccumulator(), labels("system", [0])
    scalar, tensor = torch.ones(1, 1, 1), torch.ones(1, 5, 1)
    for blocks in ({0: scalar}, {0: scalar, 2: tensor}):
        accumulator.update([system(8)], {"p": spherical(blocks, samples)})
    with pytest.raises(
        ValueError, match=r"target 'p', block \(o3_lambda=2[^\n]*as in earlier batches"
    ):
        accumulator.update([system(8)], {"p": spherical({2: torch.ones(1, 5, 3)}, samples)})


def test_pending_values_are_copies():
    accumulator, values = ScaleAccumulator(), (3.0, 4.0)
    for _ in range(2):
        accumulator.update([system(8), system(1)], {"e": energy(*values)})
    tensor = energy(*values)
    accumulator.update([system(8), system(1)], {"e": tensor})
    tensor.block().values.fill_(100.0)
    # Per atom 3 and 4.
    assert scale(accumulator.compute(), "e")[0][0] == pytest.approx(12.5**0.5, rel=1e-15)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_batches():
    accumulator = ScaleAccumulator()
    systems, per_group = [system(8), system(1, 8)], SYSTEMS_PER_GROUP // 2
    targets = {"e": energy(1.0, 2.0), "q": forces([[1, 2, 2]] * 3, 1, 2)}
    full, empty = [], []
    for n in range(1, 3 * per_group + 1):
        accumulator.update(systems, targets)
        if n % per_group == per_group - 1:
            full.append(pickled_size(accumulator))
        elif n % per_group == 0:
            empty.append(pickled_size(accumulator))
    assert max(empty) < 0.1 * min(full)
    assert max(full) < 1.05 * min(full)
    assert max(empty) < 1.2 * min(empty)
    assert scale(accumulator.compute(), "q") == [[3**0.5], [3**0.5]]


def test_memory_does_not_grow_with_empty_batches():
    accumulator, nothing = ScaleAccumulator(), structure_target(torch.zeros(0, 1), [])
    accumulator.update([system(8)], {"e": energy(1.0)})
    sizes = []
    for n in range(1, SYSTEMS_PER_GROUP + 1):
        accumulator.update([], {"e": nothing})
        if n in (10, SYSTEMS_PER_GROUP):
            sizes.append(pickled_size(accumulator))
    assert sizes[1] < sizes[0]
    assert scale(accumulator.compute(), "e") == [[1.0]]


def test_batches_of_many_sets_of_targets():
    accumulator, names = ScaleAccumulator(), "abcde"
    sets = [[n for i, n in enumerate(names) if 2**i & chosen] for chosen in range(1, 32)]
    for chosen in sets:
        accumulator.update([system(8)], {name: energy(float(len(chosen))) for name in chosen})
    # Each is in as many sets of 1, 2, 3, 4 and 5 targets: 1, 4, 6, 4 and 1.
    squares = [1 * 1, 4 * 4, 6 * 9, 4 * 16, 1 * 25]
    scaler = accumulator.compute()
    for name in names:
        assert scale(scaler, name)[0][0] == pytest.approx((sum(squares) / 16) ** 0.5, rel=1e-15)


def test_infinite_value_is_an_error_of_its_own_batch():
    accumulator = ScaleAccumulator()
    accumulator.update([system(8)], {"e": energy(2.0)})
    with pytest.raises(ValueError, match=r"target 'e', .* 1 infinite values"):
        accumulator.update([system(8)], {"e": energy(INF)})
    assert scale(accumulator.compute(), "e") == [[2.0]]


@pytest.mark.parametrize("degree", [0, 2])
def test_infinite_value_of_any_block_is_an_error_of_its_own_batch(degree):
    shapes = {0: (1, 1, 1), 2: (1, 5, 1)}

    def both(value):
        blocks = {d: torch.full(s, value if d == degree else 2.0) for d, s in shapes.items()}
        return {"p": spherical(blocks, labels("system", [0]))}

    accumulator = ScaleAccumulator()
    accumulator.update([system(8)], both(2.0))
    with pytest.raises(ValueError, match=rf"block \(o3_lambda={degree}.* infinite values"):
        accumulator.update([system(8)], both(INF))
    assert accumulator.compute().per_target_scales["p"].block_by_id(0).values.tolist() == [[2.0]]


def test_single_value_whose_square_overflows_is_an_error_of_its_own_batch():
    accumulator = ScaleAccumulator()
    with pytest.raises(ValueError, match=r"target 'e', .* sum of squares overflows"):
        accumulator.update([system(8)], {"e": energy(1e200)})
    accumulator.update([system(8)], {"q": energy(2.0)})
    assert list(accumulator.compute().targets) == ["q"]


def test_pending_batches_are_part_of_copies_states_and_merged_accumulators():
    def pending():
        accumulator = ScaleAccumulator()
        accumulator.update([system(8)], {"e": energy(2.0)})
        return accumulator

    merged = ScaleAccumulator()
    merged.merge(pending())
    restored = ScaleAccumulator()
    restored.merge_state(pending().state())
    into = pending()
    into.merge(pending())
    copies = copy.deepcopy(pending()), pickle.loads(pickle.dumps(pending()))
    for accumulator in (pending(), *copies, merged, restored, into):
        assert scale(accumulator.compute(), "e") == [[2.0]]
