"""One pass over the data: batches, merging and errors."""

import copy
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from builders import (
    Springs,
    atom_samples,
    atom_target,
    cartesian,
    fit,
    forces,
    labels,
    mask_of,
    pair_target,
    scale,
    spherical,
    structure_target,
    system,
)
from metatensor.torch import TensorMap

from lightning_scaler import CompositionBaseline, ScaleAccumulator

NAN, INF = float("nan"), float("inf")
FITTED = CompositionBaseline()
SHIFTS = [(3.0, 4.0), (-3.0, -4.0)]
FEW_DATA = pytest.mark.filterwarnings("ignore:these data are zero")


def accumulated(batches, **options):
    accumulator = ScaleAccumulator(**options)
    for systems, targets in batches:
        accumulator.update(systems, targets)
    return accumulator


def numbers(scaler):
    """All scales and weights by name, as flat arrays."""
    flat = {}
    for name, scales in scaler.targets.items():
        flat[name] = np.concatenate(
            [scales.per_target.numpy(), *(v.numpy().ravel() for v in scales.per_property.values())]
        )
        for key, weights in scales.weights.items():
            flat[f"{name} {key}"] = weights.numpy().ravel()
    return flat


def assert_same(first, second, rtol=1e-12, weights_rtol=1e-10):
    ours, theirs = numbers(first), numbers(second)
    assert ours.keys() == theirs.keys()
    for name, values in ours.items():
        tolerance = weights_rtol if " " in name else rtol
        np.testing.assert_allclose(values, theirs[name], rtol=tolerance, err_msg=name)


# A dataset of several kinds of targets, some values missing.

COMPOSITIONS = [
    (8,),
    (1, 8, 1),
    (6, 8),
    (6, 1, 1, 1, 1),
    (1, 1),
    (8, 6, 8),
    (1, 6, 7),
    (7, 1, 1, 1),
]


def molecules(chosen):
    """Some of eight molecules with their energy, polarizability, forces and charges."""
    systems = [system(*COMPOSITIONS[i]) for i in chosen]
    rows = labels("system", range(len(chosen)))
    counts = [len(s) for s in systems]

    def drawn(name, *shape):
        seeds = [ord(name) * 1000 + i for i in chosen]
        return np.concatenate(
            [
                np.zeros((0, *shape)),
                *(
                    np.random.default_rng(seed).normal(size=(n if name in "fq" else 1, *shape))
                    for seed, n in zip(seeds, counts, strict=True)
                ),
            ]
        )

    energies = np.array([[-10.0 * sum(s.types.tolist()), 3.0] for s in systems])
    energies = energies.reshape(-1, 2) + drawn("e", 2)
    energies[[i in (2, 5) for i in chosen], 1] = NAN
    charges = drawn("q", 2)
    charges[charges > 1.2] = NAN
    return systems, {
        "energy": structure_target(energies),
        "alpha": spherical({0: drawn("a", 1, 1) + 4, 2: drawn("b", 5, 2)}, rows),
        "forces": forces(drawn("f", 3), *counts),
        "charges": atom_target(charges, atom_samples(*counts)),
    }


def test_names_that_only_the_other_has_seen():
    first, other = ScaleAccumulator(targets=["force"]), ScaleAccumulator(targets=["force"])
    other.update([system(8)], {"forces": forces([[1, 2, 3]], 1)})
    by_state = first.fresh()
    first.merge(other)
    by_state.merge_state(other.state())
    for merged in (first, by_state):
        with pytest.raises(ValueError, match=r"not occur in the data; .*mean 'forces'\?"):
            merged.compute()


def test_an_accumulator_per_thread_merged_gives_the_scales_of_one():
    systems = [system(*([1] * (i % 3) + [8])) for i in range(40)]
    batches = [([s], {"e": structure_target([1.5 * i - 7.0])}) for i, s in enumerate(systems)]
    with ThreadPoolExecutor(4) as threads:
        first, *others = threads.map(accumulated, [batches[i::4] for i in range(4)])
    for other in others:
        first.merge(other)
    # Per atom: uncentred RMS of (1.5 i - 7) / (i mod 3 + 1).
    squares = [((1.5 * i - 7.0) / (i % 3 + 1)) ** 2 for i in range(40)]
    expected = math.sqrt(math.fsum(squares) / 40)
    assert scale(first.compute(), "e")[0] == [pytest.approx(expected, rel=1e-13)]


def test_a_mask_of_a_target_that_is_not_fitted_is_no_error_after_a_merge():
    """Each batch has the energy; one of them has the mask of the forces, the other the forces."""
    systems, energy, vectors = [system(8)], structure_target([2.0]), forces([[1, 2, 3]], 1)
    mask = {"forces": mask_of(vectors, [[[True] * 3]])}
    masked, other = (ScaleAccumulator(targets=["energy"]) for _ in range(2))
    masked.update(systems, {"energy": energy}, mask)
    other.update(systems, {"energy": energy, "forces": vectors})
    masked.merge(other)
    assert scale(masked.compute(), "energy") == [[2.0]]


@pytest.mark.parametrize(
    ("baseline", "expected"),
    [
        # Weights of -10 and -70 leave ±3 and ±4: sqrt((9 + 9 + 16 + 16) / 4).
        ("composition", math.sqrt(12.5)),
        # sqrt((49 + 169 + 66² + 74²) / 4)
        ("none", math.sqrt(2512.5)),
    ],
)
def test_fit_takes_the_batches_of_any_loader(baseline, expected):
    systems = [system(1), system(8)]
    batches = ((systems, {"energy": structure_target([-10.0 + d, -70.0 + e])}) for d, e in SHIFTS)
    scaler = ScaleAccumulator(baseline=baseline).fit(batches)
    assert scale(scaler, "energy")[0] == pytest.approx([expected], rel=1e-12)
    with pytest.raises(ValueError, match="fit: expected at least one batch, got none"):
        ScaleAccumulator(baseline=baseline).fit(batches)  # which have been read


def test_other_baselines_are_refused():
    with pytest.raises(ValueError, match=r"baseline: expected one of \['composition', 'none'\]"):
        ScaleAccumulator(baseline="compositon")


def test_fit_passes_its_settings_on():
    batch = ([system(1)], {"energy": structure_target([2.0])})
    scaler = ScaleAccumulator().fit([batch], {"energy": 0.5}, unseen_types="pooled")
    assert scale(scaler, "energy") == [[0.5]]
    assert scaler.settings.unseen_types == "pooled"


@FEW_DATA
def test_compute_can_be_called_in_between():
    options = {"baseline": FITTED, "intensive_targets": ["alpha"]}
    accumulator = accumulated([molecules([0, 1, 2])], **options)
    with pytest.warns(UserWarning, match=r"have no data for a property.*property \(energy=1\)"):
        first = numbers(accumulator.compute())
    with pytest.warns(UserWarning, match="have no data for a property"):
        again = numbers(accumulator.compute())
    assert all(np.array_equal(first[name], again[name], equal_nan=True) for name in first)
    accumulator.update(*molecules([3, 4, 5, 6, 7]))
    assert_same(accumulator.compute(), fit(*molecules(range(8)), **options))


@pytest.mark.parametrize(
    "other",
    [
        ScaleAccumulator(baseline=FITTED),
        ScaleAccumulator(intensive_targets=["energy"]),
        ScaleAccumulator(targets=["energy"]),
    ],
)
def test_merge_of_other_settings(other):
    with pytest.raises(ValueError, match="expected an accumulator with the same settings"):
        ScaleAccumulator().merge(other)


def test_merge_of_additive_modules_with_other_weights():
    first, other = (ScaleAccumulator(additive=Springs(k)) for k in (0.5, 0.75))
    with pytest.raises(ValueError, match=r"Springs with weights \w+'.*Springs with weights"):
        first.merge(other)
    first.merge(ScaleAccumulator(additive=Springs(0.5)))


def test_the_order_of_requested_targets_does_not_matter_in_a_merge():
    ScaleAccumulator(targets=["a", "b"]).merge(ScaleAccumulator(targets=["b", "a"]))


@pytest.mark.parametrize("labels_are", [None, "id"])
def test_an_additive_module_does_not_exchange_isomers(labels_are):
    """Two H2 with Σ r² of 1 and 9: as ids, labels 1 and 0 are the systems in this order.

    The module gives 0.5 Σ r², which leaves 1 and -1; exchanged, it would leave -3 and 3.
    """
    systems = [
        system(1, 1, positions=[[0.0, 0.0, 0.0], [length, 0.0, 0.0]]) for length in (1.0, 3.0)
    ]
    energy = {"energy": structure_target([1.5, 3.5], [1, 0])}
    settings = {} if labels_are is None else {"system_labels": labels_are}
    accumulator = ScaleAccumulator(
        intensive_targets=["energy"], additive=Springs(0.5, ("energy",)), **settings
    )
    if labels_are is None:
        with pytest.raises(ValueError, match="set system_labels='position' or 'id'"):
            accumulator.update(systems, energy)
        return
    accumulator.update(systems, energy)
    scaler = accumulator.compute()
    assert scale(scaler, "energy") == [[1.0]]
    scaler.settings = replace(scaler.settings, system_labels="auto")
    with pytest.raises(ValueError, match="set system_labels='position' or 'id'"):
        scaler.convert(systems, energy)


def test_an_accumulator_that_was_merged_into_an_empty_one_stays_as_it_is():
    """A batch that is added to the other one afterwards counts there alone."""
    batch = (
        [system(8, 1)],
        {"energy": structure_target([1.0], gradient={"positions": [[[1, 0, 0], [0, 2, 0]]]})},
    )
    merged, total = ScaleAccumulator(), ScaleAccumulator()
    merged.update(*batch)
    total.merge(merged)
    total.update(*batch)
    for accumulator, n_batches in ((merged, 1.0), (total, 2.0)):
        statistics = accumulator.state()["statistics"]["energy"]
        # The sum of squares, 1 + 4, and the number of values.
        assert statistics["gradients"]["positions"]["sums"][:2, 0].tolist() == [
            5.0 * n_batches,
            6.0 * n_batches,
        ]


def test_merge_of_another_layout_changes_nothing():
    first = accumulated(
        [([system(8)], {"a": structure_target([2.0]), "b": structure_target([1.0])})]
    )
    other = accumulated(
        [([system(8)], {"a": structure_target([5.0]), "b": structure_target([[1.0, 2.0]])})]
    )
    with pytest.raises(ValueError, match="target 'b'"):
        first.merge(other)
    assert scale(first.compute(), "a") == [[2.0]]


def test_merge_of_other_readings():
    systems = [system(8), system(1, 8, 1)]
    by_id = accumulated([(systems, {"e": structure_target([1.0, 2.0], [7, 3])})])
    assert by_id.system_labels == "id"
    by_position = accumulated([(systems, {"e": structure_target([1.0], [1])})])
    assert by_position.system_labels == "position"
    with pytest.raises(
        ValueError, match=r"system_labels='id'.*system_labels='position'|same settings"
    ):
        by_id.merge(by_position)
    unsettled = accumulated([(systems, {"e": structure_target([1.0, 2.0])})])
    unsettled.merge(by_id)
    assert unsettled.system_labels == "id"


def test_merged_states_carry_the_reading_of_the_labels():
    systems = [system(8), system(1, 8, 1)]
    by_id = accumulated([(systems, {"e": structure_target([NAN, NAN], [7, 3])})])
    merged = by_id.fresh()
    merged.merge_state(by_id.state())
    # As ids, O has 4 and H2O has 27 / 3.
    merged.update(systems, {"e": structure_target([4.0, 27.0], [1, 0])})
    assert scale(merged.compute(), "e")[0] == pytest.approx([math.sqrt((16 + 81) / 2)])
    by_position = accumulated([(systems, {"e": structure_target([1.0], [1])})])
    with pytest.raises(ValueError, match=r"same settings.*labels='id'.*labels='position'"):
        merged.merge_state(by_position.state())


def test_reading_is_settled_once():
    systems = [system(8), system(1, 8, 1)]
    swapped = {"e": structure_target([4.0, 27.0], [1, 0])}
    with pytest.raises(ValueError, match="set system_labels='position' or 'id'"):
        accumulated([(systems, swapped)])
    # Ids 7 and 3 can only be ids; afterwards (1, 0) are ids too: O has 4, H2O has 27 / 3.
    accumulator = accumulated([(systems, {"e": structure_target([NAN, NAN], [7, 3])})])
    accumulator.update(systems, swapped)
    assert scale(accumulator.compute(), "e")[0] == pytest.approx([math.sqrt((16 + 81) / 2)])
    # A subset can only be positions; afterwards H2O has 4 / 3 and O has 27.
    accumulator = accumulated([(systems, {"e": structure_target([NAN], [1])})])
    accumulator.update(systems, swapped)
    assert scale(accumulator.compute(), "e")[0] == pytest.approx([math.sqrt((16 / 9 + 729) / 2)])


@pytest.mark.slow
@FEW_DATA
def test_ids_of_a_shuffled_loader():
    rng = np.random.default_rng(0)
    accumulator = ScaleAccumulator(baseline=FITTED, system_labels="id")
    for rows in ([5, 2], [0], [7, 1, 3], [6, 4]):
        systems, targets = molecules(rows)
        renamed = {
            "energy": structure_target(targets["energy"].block().values, [40 + i for i in rows])
        }
        where = [[40 + i, atom] for i in rows for atom in range(len(COMPOSITIONS[i]))]
        # All atoms but one system's, in any order: only the energies say which system is which.
        order = [row for row in rng.permutation(len(where)) if where[row][0] != 40 + rows[0]]
        charges = targets["charges"].block().values.numpy()[order]
        renamed["charges"] = atom_target(charges, np.array(where)[order])
        accumulator.update(systems, renamed)
    others = [i for i in range(8) if i not in (5, 0, 7, 6)]
    parts = [
        (molecules(range(8))[0], {"energy": molecules(range(8))[1]["energy"]}),
        (molecules(others)[0], {"charges": molecules(others)[1]["charges"]}),
    ]
    expected = accumulated(parts, baseline=FITTED).compute()
    ours = accumulator.compute()
    for name in ("energy", "charges"):
        types = expected.scales[name].block().samples.values.flatten().tolist()
        every = ours.scales[name].block().samples.values.flatten().tolist()
        rows = [every.index(atomic_type) for atomic_type in types]
        np.testing.assert_allclose(
            np.array(scale(ours, name))[rows], np.array(scale(expected, name)), rtol=1e-11
        )


def test_shuffled_rows_and_some_atoms_only():
    systems = [system(8), system(1, 6), system(6, 8)]
    target = atom_target([30.0, 5.0, 7.0], [[2, 1], [1, 0], [2, 0]])
    scaler = fit(systems, {"q": target})
    # H 5, C 7, O 30.
    assert scale(scaler, "q") == [[5.0], [7.0], [30.0]]


def test_rows_outside_the_batch():
    with pytest.raises(ValueError, match=r"system labels .*\[0, 3\].*system_labels"):
        fit([system(8), system(1), system(6)], {"q": atom_target([1.0, 2.0], [[0, 0], [3, 0]])})


def test_error_leaves_everything_as_it_was():
    accumulator = accumulated([([system(8)], {"a": structure_target([2.0])})])
    good, bad = structure_target([9.0]), structure_target([INF])
    with pytest.raises(ValueError, match=r"target 'b', block \(_=0\): .* 1 infinite"):
        accumulator.update([system(8)], {"a": good, "b": bad})
    with pytest.raises(ValueError, match=r"target 'a'[^\n]*as in earlier batches"):
        accumulator.update([system(8)], {"b": good, "a": structure_target([[1.0, 2.0]])})
    assert scale(accumulator.compute(), "a") == [[2.0]]
    assert list(accumulator.compute().targets) == ["a"]


def test_sum_over_batches_overflows():
    one = ([system(8)], {"e": structure_target([1.2e154])})
    accumulator = accumulated([one, one])
    for _ in range(2):
        with pytest.raises(ValueError, match="overflow"):
            accumulator.compute()


def test_nothing_at_all():
    with pytest.raises(ValueError, match="no target was seen in the data"):
        ScaleAccumulator().compute()
    with pytest.raises(ValueError, match="no target was seen in the data"):
        accumulated([([system(8)], {})]).compute()


@FEW_DATA
@pytest.mark.filterwarnings("ignore:the targets .* have no value at all")
@pytest.mark.parametrize("baseline", [None, FITTED], ids=["none", "composition"])
def test_empty_batch_of_every_kind(baseline):
    empty = {
        "energy": structure_target(np.zeros((0, 1)), []),
        "dipole": structure_target(np.zeros((0, 3, 1)), [], components=cartesian()),
        "charges": atom_target(np.zeros((0, 1)), atom_samples()),
        "forces": forces(np.zeros((0, 3, 1))),
    }
    energy = {"energy": structure_target([3.0, 24.0])}
    systems = [system(8), system(1, 8, 1)]
    for batches in ([([], empty), (systems, energy)], [(systems, energy), ([], empty)]):
        scaler = accumulated(batches, baseline=baseline).compute()
        if baseline is None:
            assert scale(scaler, "energy")[0] == pytest.approx([math.sqrt((9 + 64) / 2)])
        assert scale(scaler, "dipole") == [[1.0]]
        again = scaler.convert([], empty)
        assert {name: t.block().values.shape for name, t in again.items()} == {
            name: t.block().values.shape for name, t in empty.items()
        }


@FEW_DATA
@pytest.mark.filterwarnings("ignore:the targets .* have no value at all")
@pytest.mark.parametrize("baseline", [None, FITTED], ids=["none", "composition"])
def test_systems_without_atoms(baseline):
    systems = [system(), system(8), system(1, 8, 1), system(8, 8)]
    targets = {
        "energy": structure_target([5.0, 3.0, 24.0, 7.0]),
        "gap": structure_target([5.0, 3.0, 24.0, 7.0]),
        "charges": atom_target([1.0, 2.0, 3.0, 4.0, 6.0, 5.0], atom_samples(0, 1, 3, 2)),
    }
    options = {"baseline": baseline, "intensive_targets": ["gap"]}
    scaler = fit(systems, targets, **options)
    without = fit(
        systems[1:],
        {"energy": structure_target([3.0, 24.0, 7.0])},
        **options | {"intensive_targets": ()},
    )
    assert scale(scaler, "energy")[0] == pytest.approx(scale(without, "energy")[0], rel=1e-12)
    converted = scaler.convert(systems, targets)
    assert all(tensor.block().values.isfinite().all() for tensor in converted.values())
    if baseline is None:
        assert scale(scaler, "gap")[0] == pytest.approx([math.sqrt((25 + 9 + 576 + 49) / 4)])
    alone = fit([system()], {"energy": structure_target([5.0])}, baseline=baseline)
    assert scale(alone, "energy") == [[1.0]]


def test_target_without_blocks():
    nothing = TensorMap(labels(["o3_lambda", "o3_sigma"], []), [])
    something = spherical({0: [[[3.0]]]}, atom_samples(1))
    for order in ([nothing, something], [something, nothing]):
        scaler = accumulated([([system(8)], {"t": tensor}) for tensor in order]).compute()
        assert scale(scaler, "t") == [[3.0]]
    with pytest.raises(ValueError, match="no "):
        accumulated([([system(8)], {"t": nothing})]).compute()


def test_everything_missing():
    data = [system(8), system(1)], {"e": structure_target([NAN, NAN])}
    with pytest.warns(UserWarning, match=r"the targets \['e'\] have no value at all in the data"):
        scaler = fit(*data, baseline=FITTED)
    assert scale(scaler, "e") == [[1.0]]


def test_targets_that_are_absent_from_some_batches():
    first = ([system(8)], {"e": structure_target([3.0]), "q": atom_target([2.0], [[0, 0]])})
    second = ([system(1, 8, 1)], {"e": structure_target([24.0])})
    scaler = accumulated([first, second]).compute()
    assert scale(scaler, "e")[0] == pytest.approx([math.sqrt((9 + 64) / 2)])
    # H occurs in a batch that does not hold the charges: not seen for them.
    assert scaler.scales["q"].block().samples == labels("atomic_type", [8])


def test_named_targets():
    accumulator = ScaleAccumulator(targets=["energy"])
    other = structure_target([INF])
    accumulator.update([system(8)], {"energy": structure_target([3.0]), "junk": other})
    assert list(accumulator.compute().targets) == ["energy"]


def test_named_target_that_never_comes():
    accumulator = ScaleAccumulator(targets=["energy", "force"])
    targets = {"energy": structure_target([3.0]), "forces": forces([[1, 2, 3]], 1)}
    accumulator.update([system(8)], targets)
    wanted = r"'force' was requested .*not occur in the data; .*mean 'forces'\?.*\['energy', 'forc"
    with pytest.raises(ValueError, match=wanted):
        accumulator.compute()


@pytest.mark.parametrize("setting", ["targets", "intensive_targets"])
def test_names_must_be_a_list(setting):
    with pytest.raises(TypeError, match=f"{setting}: expected a list of names"):
        ScaleAccumulator(**{setting: "energy"})


def test_settings_of_unknown_names():
    batch = ([system(8)], {"energy": structure_target([3.0])})
    with pytest.raises(ValueError, match="intensive_targets names the target 'gap'"):
        accumulated([batch], intensive_targets=["gap"]).compute()
    with pytest.raises(ValueError, match="fixed_scales names the target 'gap'"):
        accumulated([batch]).compute(fixed_scales={"gap": 1.0})
    with pytest.raises(ValueError, match="system_labels: expected one of"):
        ScaleAccumulator(system_labels="ids")
    with pytest.raises(ValueError, match="unseen_types: expected one of"):
        accumulated([batch]).compute(unseen_types="skip")


def test_masks():
    energy, charges = structure_target([3.0, 24.0, 7.0]), atom_target([1.0, 5.0], [[0, 0], [2, 0]])
    systems = [system(8), system(1, 8, 1), system(1)]
    masks = {"e": mask_of(energy, [[True, False, True]])}
    scaler = fit(systems, {"e": energy, "q": charges}, masks)
    assert scale(scaler, "e")[0] == pytest.approx([math.sqrt((9 + 49) / 2)])
    assert scale(scaler, "q") == [[5.0], [1.0]]
    with pytest.raises(ValueError, match="a mask names the target 'x'"):
        fit(systems, {"e": energy}, {"x": masks["e"]})


def test_infinity_under_a_mask_is_missing():
    energy = structure_target([3.0, INF])
    masks = {"e": mask_of(energy, [[True, False]])}
    assert scale(fit([system(8), system(1)], {"e": energy}, masks), "e") == [[3.0]]


def test_targets_must_be_tensormaps():
    with pytest.raises(TypeError, match=r"target 'e': expected a TensorMap, got Tensor$"):
        fit([system(8)], {"e": torch.zeros(1)})


@FEW_DATA
def test_inputs_are_not_written_to():
    systems, targets = molecules(range(8))
    masks = {"charges": mask_of(targets["charges"], [targets["charges"].block().values < 0.5])}
    given = [*targets.values(), *masks.values()]
    before = [copy.deepcopy(tensor) for tensor in given]
    accumulator = ScaleAccumulator(baseline=FITTED)
    accumulator.update(systems, targets, masks)
    accumulator.compute().convert(systems, targets)
    for tensor, original in zip(given, before, strict=True):
        for ours, theirs in zip(tensor.blocks(), original.blocks(), strict=True):
            assert ours.values.numpy().tobytes() == theirs.values.numpy().tobytes()
            assert ours.samples == theirs.samples


def test_pairs_do_not_disturb_the_others():
    pairs = pair_target([5.0, NAN], [[0, 0, 1, 0, 0, 0], [0, 1, 0, 0, 0, 1]])
    scaler = fit([system(8, 1)], {"h": pairs, "e": structure_target([4.0])}, baseline=None)
    assert scale(scaler, "e") == [[2.0]]


def test_difference_between_batch_sizes_of_large_totals():
    # eps * RMS before / RMS after, as 1e5 and 1e-3 leave seven to eight digits to compare.
    rng = np.random.default_rng(11)
    compositions = rng.integers(1, 8, (50, 3))
    systems = [system(*[1] * h, *[6] * c, *[8] * o) for h, c, o in compositions.tolist()]
    counts = compositions.astype(float)
    totals = counts @ [-83.0, -5180.0, -10220.0] + 1e-3 * counts.sum(1) * rng.normal(size=50)
    results = []
    for size in (50, 1, 7):
        batches = [
            (systems[i : i + size], {"e": structure_target(totals[i : i + size])})
            for i in range(0, 50, size)
        ]
        results.append(scale(accumulated(batches, baseline=FITTED).compute(), "e")[0][0])
    before = math.sqrt(math.fsum((totals / counts.sum(1)) ** 2) / 50)
    tolerance = max(1e-12, 2.0**-52 * before / results[0])
    assert results[1:] == pytest.approx([results[0]] * 2, rel=tolerance)
