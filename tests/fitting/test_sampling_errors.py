"""Standard errors of scales from a random sample, against numpy."""

import numpy as np
import pytest
import torch
from builders import atom_target, labels as labels_of, spherical, structure_target, system

from lightning_scaler import CompositionBaseline, ScaleAccumulator, Scaler
from lightning_scaler.fitting import estimate_sample, load_saved, merge_files, merged
from lightning_scaler.fitting.sampling_errors import relative_standard_error
from lightning_scaler.tensors import InvalidStateError

N_GROUPS = 20


def test_the_error_of_a_mean_is_the_textbook_one():
    """With groups of one value: s / sqrt(n), times sqrt(1 - f)."""
    values = np.random.default_rng(0).normal(3.0, 2.0, 50)
    without_one = torch.tensor([np.delete(values, i).mean() for i in range(50)])
    error = relative_standard_error(torch.tensor(values.mean()), without_one, fraction=0.36)
    expected = 0.8 * values.std(ddof=1) / np.sqrt(50) / values.mean()
    assert error.item() == pytest.approx(expected, rel=1e-12)


def test_the_error_is_about_the_estimate_of_all_groups_not_their_mean():
    """Of 1 and 5 about 2: (1 + 9) / 2 = 5, and about their mean 3 it would be 4."""
    error = relative_standard_error(torch.tensor(2.0), torch.tensor([1.0, 5.0]), fraction=0.0)
    assert error.item() == pytest.approx(np.sqrt(5.0) / 2.0)


def test_one_group_and_groups_without_data_leave_the_error_unknown():
    whole = torch.tensor([2.0, 2.0])
    assert relative_standard_error(whole, whole[None], 0.0).isnan().all()
    replicates = torch.tensor([[2.0, 2.0], [2.0, torch.nan]])
    assert relative_standard_error(whole, replicates, 0.0).isnan().tolist() == [False, True]


def test_an_estimate_of_zero_that_never_differs_has_no_error():
    zero = torch.zeros(1)
    assert relative_standard_error(zero, torch.zeros(3, 1), 0.0).tolist() == [0.0]


class Structures:
    """Random molecules with energies, forces, spherical tensors and charges, also as arrays."""

    def __init__(self, n=400, seed=0):
        rng = np.random.default_rng(seed)
        self.types = [rng.choice([1, 6, 8], rng.integers(1, 6)) for _ in range(n)]
        counts = np.array([[(t == z).sum() for z in (1, 6, 8)] for t in self.types], float)
        self.counts, self.n_atoms = counts, counts.sum(1)
        self.energies = counts @ [-10.0, -500.0, -900.0] + self.n_atoms * rng.normal(size=n)
        self.gradients = [rng.standard_t(5, (len(t), 3)) for t in self.types]
        self.scalars, self.vectors = rng.normal(size=(n, 1, 2)), rng.normal(size=(n, 3, 1)) ** 3
        self.charges = [rng.normal(size=len(t)) * t for t in self.types]

    def add(self, accumulator, rows):
        count = range(len(rows))
        samples = [[i, atom] for i in count for atom in range(len(self.types[rows[i]]))]
        targets = {
            "energy": structure_target(
                self.energies[rows],
                gradient={"positions": [self.gradients[i].tolist() for i in rows]},
            ),
            "tensor": spherical(
                {0: self.scalars[rows], 1: self.vectors[rows]}, labels_of("system", count)
            ),
            "charges": atom_target(np.concatenate([self.charges[i] for i in rows]), samples),
        }
        accumulator.update([system(*self.types[i]) for i in rows], targets)


def empty():
    return ScaleAccumulator(
        intensive_targets=["tensor"], baseline=CompositionBaseline(excluded=("tensor", "charges"))
    )


def groups_of(data, rows=None):
    """Twenty accumulators, and the structures of each."""
    rows = np.arange(len(data.types)) if rows is None else rows
    batches = np.split(rows, len(rows) // 4)
    groups, members = [empty() for _ in range(N_GROUPS)], [[] for _ in range(N_GROUPS)]
    for i, batch in enumerate(batches):
        data.add(groups[i % N_GROUPS], batch)
        members[i % N_GROUPS] += batch.tolist()
    return groups, members


def rms(values):
    return np.sqrt(np.mean(np.square(np.concatenate([np.ravel(v) for v in values]))))


def energy_scale(data, rows):
    weights = np.linalg.lstsq(data.counts[rows], data.energies[rows], rcond=None)[0]
    return rms([(data.energies[rows] - data.counts[rows] @ weights) / data.n_atoms[rows]])


def force_rms(data, rows):
    """In loss space, of forces that are not divided by the number of atoms."""
    return rms([data.gradients[i] for i in rows]) / energy_scale(data, rows)


SCALES = {
    ("energy", 0): [energy_scale, force_rms],
    ("tensor", 0): [
        lambda data, rows: rms([data.scalars[rows], data.vectors[rows]]),
        lambda data, rows: rms([data.scalars[rows, :, 0]]),
        lambda data, rows: rms([data.scalars[rows, :, 1]]),
        lambda data, rows: rms([data.vectors[rows]]),
    ],
    **{
        ("charges", row): [
            lambda data, rows, z=z: rms([data.charges[i][data.types[i] == z] for i in rows])
        ]
        for row, z in enumerate((1, 6, 8))
    },
}


@pytest.mark.slow
def test_errors_are_those_of_scales_of_each_type_and_property_and_of_gradients():
    """Computed again from arrays, without each group of 20 structures in turn."""
    data = Structures()
    groups, members = groups_of(data)
    sample = estimate_sample(groups, 100, 250, relative_error=0.5)
    everything = np.arange(400)
    errors = {}
    for key, functions in SCALES.items():
        of_functions = []
        for scale in functions:
            whole = scale(data, everything)
            parts = [scale(data, np.setdiff1d(everything, part)) for part in members]
            variance = (1 - 0.4) * 19 / 20 * np.sum((np.array(parts) - whole) ** 2)
            of_functions.append(np.sqrt(variance) / whole)
        errors[key] = max(of_functions)
    for (name, row), error in errors.items():
        assert sample.errors[name][row].item() == pytest.approx(error, rel=1e-7), (name, row)
    assert sample.largest == pytest.approx(max(errors.values()), rel=1e-7)
    assert (sample.n_batches, sample.n_all_batches, sample.rare) == (100, 250, ())
    assert not sample.complete
    assert sample.precise


@pytest.mark.parametrize(
    ("n_structures", "baseline", "known"),
    [
        (20, CompositionBaseline(), True),
        (4, CompositionBaseline(), False),  # three without any of the groups
        (3, CompositionBaseline(), False),
        (3, None, True),
        (3, CompositionBaseline(fixed={"energy": {1: -10.0, 6: -500.0, 8: -900.0}}), True),
    ],
)
def test_a_baseline_through_all_values_says_nothing(n_structures, baseline, known):
    """With three types, the residual of three structures is 0, whatever the data are."""
    data = Structures()
    groups = [ScaleAccumulator(["energy"], baseline=baseline) for _ in range(N_GROUPS)]
    for i in range(n_structures):
        data.add(groups[i % N_GROUPS], np.array([i]))
    found = estimate_sample(groups, 100, 1000, 0.5)
    assert bool(found.errors["energy"].isfinite().all()) is known
    assert known or not found.precise


def test_groups_without_batches_do_not_count():
    data = Structures(80)
    groups, _ = groups_of(data)
    with_empty = estimate_sample([empty(), *groups, empty()], 20, 50, 0.1)
    without = estimate_sample(groups, 20, 50, 0.1)
    assert with_empty.largest == without.largest > 0.0


def test_batches_without_any_target_say_nothing_yet():
    sample = estimate_sample([empty() for _ in range(20)], 100, 200, 0.1)
    assert not sample.precise


def test_all_batches_have_no_error():
    groups, _ = groups_of(Structures(80))
    sample = estimate_sample(groups, 20, 20, 0.1)
    assert sample.complete
    assert sample.precise
    assert (sample.largest, sample.errors) == (0.0, {})
    assert str(sample).startswith("all 20 batches were read, so that the scales have no error")


def with_rare_type(n_rare):
    """Charges of 2000 structures, of which some have a sulfur atom."""
    data = Structures(2000)
    for i in range(n_rare):
        data.types[7 * i] = np.append(data.types[7 * i], 16)
        data.charges[7 * i] = np.append(data.charges[7 * i], 1.0 + i)
        data.gradients[7 * i] = np.append(data.gradients[7 * i], np.ones((1, 3)), axis=0)
    return data


@pytest.mark.slow
def test_a_type_that_is_too_rare_is_named_and_does_not_count():
    """Two sulfur atoms in a fifth of the data: about ten in all, of the 10 000 that 1 % needs."""
    groups, _ = groups_of(with_rare_type(2))
    sample = estimate_sample(groups, 500, 2500, relative_error=0.05)
    assert sample.precise
    (rare,) = sample.rare
    assert rare.startswith("type 16 of 'charges' (")
    assert sample.errors["charges"][3] > 0.2
    assert sample.largest < 0.05
    assert "too few values in the data: type 16 of 'charges'" in str(sample)


@pytest.mark.slow
def test_a_type_in_one_group_has_an_unknown_error():
    groups, _ = groups_of(with_rare_type(1))
    sample = estimate_sample(groups, 500, 2500, relative_error=0.05)
    assert sample.rare == ("type 16 of 'charges' (unknown)",)
    assert sample.errors["charges"].isnan().tolist() == [False, False, False, True]


@pytest.mark.slow
@pytest.mark.parametrize("n_all_batches", [12_500, 25_000])
def test_a_rare_type_counts_if_the_data_have_enough_of_it(n_all_batches):
    """Of 20 in 500 batches there are 500 in 12 500 batches, and 1000 in 25 000.

    A relative error of 0.04 needs 1 / 0.04² = 625.
    """
    groups, _ = groups_of(with_rare_type(20))
    sample = estimate_sample(groups, 500, n_all_batches, relative_error=0.04)
    assert sample.errors["charges"][3] > 0.04
    assert len(sample.rare) == (1 if n_all_batches == 12_500 else 0)
    assert sample.precise == (n_all_batches == 12_500)


def test_types_of_few_data_are_not_rare_if_they_are_frequent():
    groups, _ = groups_of(Structures(80))
    sample = estimate_sample(groups, 20, 50, relative_error=0.001)
    assert sample.rare == ()
    assert not sample.precise


@pytest.mark.slow
def test_a_rare_property_is_named_with_its_block():
    data = Structures(2000)
    data.scalars[4:, :, 1] = np.nan
    groups, _ = groups_of(data)
    sample = estimate_sample(groups, 500, 2500, relative_error=0.05)
    (rare,) = sample.rare
    assert rare.startswith(
        "block (o3_lambda=0, o3_sigma=1), property (property=1) of 'tensor' (unknown)"
    )


def sampled():
    """An accumulator of a sample."""
    groups, _ = groups_of(Structures())
    accumulator = merged(groups)
    accumulator.sample = estimate_sample(groups, 100, 250, 0.5)
    return accumulator


@pytest.mark.slow
def test_scales_have_their_errors_and_fixed_ones_none(tmp_path):
    accumulator = sampled()
    errors = accumulator.sample.errors
    scaler = accumulator.compute({"charges": {6: 2.0}, "energy": 0.5})
    found = {name: scales.relative_errors.tolist() for name, scales in scaler.targets.items()}
    first, _, last = errors["charges"].tolist()
    assert found["charges"] == [first, 0.0, last]
    assert found["energy"] == [0.0]
    assert found["tensor"] == errors["tensor"].tolist()
    loaded = Scaler()
    loaded.load_state_dict(scaler.state_dict())
    assert loaded.targets["charges"].relative_errors.tolist() == found["charges"]
    whole, _ = groups_of(Structures(80))
    assert merged(whole).compute().targets["charges"].relative_errors is None


def test_a_file_keeps_the_sample_until_batches_are_added(tmp_path):
    accumulator = sampled()
    accumulator.save(tmp_path / "sample")
    loaded = load_saved(tmp_path / "sample")
    assert str(loaded.sample) == str(accumulator.sample)
    for name, errors in accumulator.sample.errors.items():
        assert loaded.compute().targets[name].relative_errors.equal(errors)
    Structures().add(loaded, np.arange(4))
    assert loaded.sample is None


@pytest.mark.slow
def test_statistics_of_a_sample_are_not_merged_with_others(tmp_path):
    (other, *_), _ = groups_of(Structures(80, seed=1))
    sampled().save(tmp_path / "sample")
    other.save(tmp_path / "other")
    message = r"got those of a random sample \(100 of 250 batches\).*without relative_error"
    for one, two in ((sampled(), other), (other, sampled())):
        with pytest.raises(ValueError, match=message):
            one.merge(two)
    with pytest.raises(ValueError, match=rf"other, merged into .*sample: .*{message}"):
        merge_files([tmp_path / "sample", tmp_path / "other"])
    into_nothing = empty()
    into_nothing.merge(sampled())
    assert into_nothing.sample.n_batches == 100


def test_statistics_of_all_batches_are_merged_whoever_read_them():
    (other, *_), _ = groups_of(Structures(80, seed=1))
    groups, _ = groups_of(Structures(80))
    accumulator = merged(groups)
    accumulator.sample = estimate_sample(groups, 20, 20, 0.5)
    accumulator.merge(other)
    assert accumulator.sample is None


def test_a_state_with_errors_of_other_types_is_refused():
    state = sampled().state()
    state["sample"]["errors"]["charges"] = torch.zeros(2).double()
    with pytest.raises(InvalidStateError, match="sample: expected 3 errors of the target 'charges"):
        empty().merge_state(state)


def test_what_is_not_in_a_sample_need_not_be_missing_in_the_data():
    accumulator = ScaleAccumulator(targets=["energy", "gap"])
    accumulator.update([system(8)], {"energy": structure_target([1.0])})
    accumulator.sample = sampled().sample
    message = r"'gap' was requested .* does not occur in the random sample of the data that was re"
    with pytest.raises(ValueError, match=message):
        accumulator.compute()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "consecutive"),
    [("normal", False), ("ordered", False), ("ordered", True), ("skewed", False)],
)
def test_the_error_stated_is_that_found_but_for_heavy_tails(kind, consecutive):
    """Over 40 draws of 100 of 400 batches; tests/benchmarks/sampled_fit.py has more."""
    rng = np.random.default_rng(1)
    size, batch_size, types = 3200, 8, [system(1)] * 8
    values = rng.normal(size=size)
    if kind == "skewed":
        values = np.exp(1.5 * values)
    if kind == "ordered":
        values *= np.repeat(np.exp(0.5 * rng.normal(size=size // 80)), 80)
    exact, stated, found = np.sqrt(np.mean(values**2)), [], []
    for _ in range(40):
        groups = [ScaleAccumulator() for _ in range(N_GROUPS)]
        in_turn = np.arange(size) if consecutive else rng.permutation(size)
        batches = in_turn.reshape(-1, batch_size)[rng.permutation(size // batch_size)[:100]]
        for i, rows in enumerate(batches):
            target = structure_target(values[rows])
            groups[i % N_GROUPS].update(types, {"energy": target})
        stated.append(float(estimate_sample(groups, 100, 400, 0.01).errors["energy"]))
        found.append(np.sqrt(np.mean(values[batches] ** 2)) / exact - 1.0)
    typical, found = np.median(stated), np.sqrt(np.mean(np.square(found)))
    if kind == "skewed":
        assert found > 1.5 * typical
    else:
        assert found == pytest.approx(typical, rel=0.3)
    if kind == "normal":  # sqrt((1 - f) / 2n)
        assert typical == pytest.approx(np.sqrt(0.75 / 1600), rel=0.1)
    if kind == "ordered":  # the same number of samples says less if they are neighbours
        assert (typical > 0.05) == consecutive
