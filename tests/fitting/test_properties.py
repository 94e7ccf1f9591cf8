"""What holds whatever the data: over the same drawn data as ``test_reference.py``."""

import copy
import io
import itertools
import math
import pickle
import tempfile
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import metatensor.torch as mts
import numpy as np
import pytest
import torch
from builders import atom_samples, block, cartesian, fit, labels, single, spherical, system
from cases import EXAMPLES, RANK_TWO, cases, over
from hypothesis import given, strategies as st
from metatensor.torch import TensorMap

from lightning_scaler import CompositionBaseline, Scaler

DIRECTIONS = list(itertools.permutations(("physical", "loss", "model"), 2))
FEW = EXAMPLES // 20
BY_POSITION = ("position", "auto")
# Without a baseline; numbers and scales may be tiny, their products are still normal numbers.
SCALED = cases(baselines=("none",), exponents=(-60, 60), readings=BY_POSITION, every_block=True)
# With one; a column that is missing throughout has none, so nothing is missing.
OFFSET = cases(baselines=("composition", "fixed"), readings=BY_POSITION, complete=True)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:these data are zero"),
    pytest.mark.filterwarnings("ignore:some atomic types have no data for a property"),
    pytest.mark.filterwarnings("ignore:predictions are NaN in some properties"),
    pytest.mark.filterwarnings("ignore:the targets .* have no value at all"),
    pytest.mark.filterwarnings("ignore:subtracting the baseline makes"),
]


def computed(case, unseen_types="error"):
    fixed = {} if case.fixed is None else {"t": case.fixed}
    return case.accumulated().compute(fixed, unseen_types)


def everything(case):
    """All structures as one batch in float64, with the blocks that the fit has seen."""
    systems, targets, _ = case.tensors(range(len(case.compositions)), case.blocks)
    return systems, {"t": targets["t"].to(dtype=torch.float64)}


def flat(tensor):
    return torch.cat([b.values.flatten() for b in tensor.blocks()]).numpy()


def scales_of(scaler):
    """All three kinds of scales, one after the other."""
    kinds = (scaler.per_target_scales, scaler.per_property_scales, scaler.scales)
    return np.concatenate([flat(kind["t"]) for kind in kinds])


# Round trips.


@over(FEW)
@given(SCALED)
def test_conversions_and_their_inverses(case):
    scaler = computed(case)
    systems, targets = everything(case)
    for source, space in DIRECTIONS:
        there = scaler.convert(systems, targets, source, space)
        back = scaler.convert(systems, there, space, source)["t"]
        np.testing.assert_allclose(flat(back), flat(targets["t"]), rtol=1e-14)


@over(FEW)
@given(OFFSET)
def test_conversions_and_their_inverses_with_a_baseline(case):
    scaler = computed(case)
    systems, targets = everything(case)
    largest = max([1e-300, *np.abs(flat(targets["t"]))])
    for source, space in DIRECTIONS:
        there = scaler.convert(systems, targets, source, space)
        back = scaler.convert(systems, there, space, source)["t"]
        # What adding the baseline rounds away comes back, times the slope of the way back.
        ones = {"t": mts.ones_like(targets["t"])}
        slope = flat(scaler.convert(systems, ones, space, source, baseline=False)["t"])
        lost = slope * max([0.0, *np.abs(flat(there["t"]))]) if space == "physical" else 0.0
        error = np.abs(flat(back) - flat(targets["t"]))
        assert (error <= 1e-13 * (largest + lost)).all()


@over(FEW)
@given(SCALED)
def test_one_step_equals_two(case):
    scaler = computed(case)
    systems, targets = everything(case)
    for source, space in (("physical", "model"), ("model", "physical")):
        halfway = scaler.convert(systems, targets, source, "loss")
        in_two = scaler.convert(systems, halfway, "loss", space)["t"]
        in_one = scaler.convert(systems, targets, source, space)["t"]
        np.testing.assert_allclose(flat(in_one), flat(in_two), rtol=1e-14)


# Batches, orders, merging.


@over(FEW)
@given(cases(complete=True, readings=BY_POSITION), st.randoms(use_true_random=False))
def test_neither_batches_nor_orders_nor_merging_matter(case, random):
    options = case.accumulator()
    whole = options.fresh()
    whole.update(*case.tensors(range(len(case.compositions))))
    parts = []
    for k in range(len(case.batches)):
        parts.append(options.fresh())
        parts[-1].update(*case.batch(k))
    random.shuffle(parts)
    while len(parts) > 1:  # a tree of merges
        first, second, *parts = parts
        first.merge(second)
        parts.append(first)
    one, many = whole.compute(), parts[0].compute()
    rtol, scales = 1e-12, one.targets["t"]
    if case.baseline is not None and scales.rms_after > 0:
        rtol = max(rtol, 2.0**-52 * scales.rms_before / scales.rms_after)
    np.testing.assert_allclose(scales_of(one), scales_of(many), rtol=rtol)


# What is shown.


@over(FEW)
@given(cases(), st.sampled_from(["error", "pooled", "identity"]))
def test_scales_are_finite_and_positive(case, unseen_types):
    if not case.blocks:
        return
    scales = scales_of(computed(case, unseen_types))
    assert (scales > 0).all()
    assert np.isfinite(scales).all()


@over(FEW)
@given(cases(baselines=("none",), exponents=(-60, 60)))
def test_squares_of_full_scales_add_up_to_those_of_the_per_target_scale(case):
    """A sum of squares over a type is that over its blocks and properties: N σ² = Σ N_αp σ_αp²."""
    if not case.blocks:
        return
    case = replace(case, fixed=None)
    scaler = computed(case)
    numbers = defaultdict(list)
    for entry in case.entries():
        # Without atoms, a value per atom is missing.
        if case.compositions[entry.system] or not case.extensive:
            numbers[entry.type, entry.block, entry.property].append(entry.value)
    keys = {b: dict(zip(case.key_names, case.keys[b], strict=True)) for b in case.blocks}
    full, per_target = (
        {b: kind["t"].block(key).values.numpy() for b, key in keys.items()}
        for kind in (scaler.scales, scaler.per_target_scales)
    )
    for row, atomic_type in enumerate(case.types):
        of_type = {group: found for group, found in numbers.items() if group[0] == atomic_type}
        # Properties that are 0 throughout have a stand-in for their scale.
        parts = [
            len(found) * full[b][row, p] ** 2
            for (_, b, p), found in of_type.items()
            if np.any(found)
        ]
        if parts:
            whole = sum(map(len, of_type.values())) * per_target[case.blocks[0]][row, 0] ** 2
            assert math.fsum(parts) == pytest.approx(whole, rel=1e-12)


@over(FEW)
@given(SCALED)
def test_displayed_scales_are_those_that_convert(case):
    scaler = computed(case)
    systems, targets = everything(case)
    ones = {"t": mts.ones_like(targets["t"])}
    for source, space, kind in (
        ("loss", "physical", scaler.per_target_scales),
        ("model", "loss", scaler.per_property_scales),
        ("model", "physical", scaler.scales),
    ):
        converted = scaler.convert(systems, ones, source, space)["t"]
        for row, b in enumerate(converted.blocks()):
            of_block = kind["t"].block_by_id(row).values.numpy()
            rows = np.zeros(len(b.samples), dtype=int)
            if case.per_atom:
                types = [case.compositions[i][a] for i, a in b.samples.values.tolist()]
                rows = np.searchsorted(case.types, types)
            n_properties = of_block.shape[1]
            expected = of_block[rows].reshape(len(rows), *[1] * len(b.components), n_properties)
            expected = np.broadcast_to(expected, b.values.shape)
            np.testing.assert_allclose(b.values.numpy(), expected, rtol=1e-15)


# Nothing is written to; copies are the same.


def bits(tensors):
    """All numbers of some TensorMaps as they lie in memory."""
    return [b.values.numpy().tobytes() for t in tensors.values() for b in t.blocks()]


@over(FEW)
@given(st.one_of(SCALED, OFFSET))
def test_inputs_stay_as_they_are(case):
    batches = [case.batch(k) for k in range(len(case.batches))]
    before = [bits(targets) + bits(masks) for _, targets, masks in batches]
    accumulator = case.accumulator()
    for batch in batches:
        accumulator.update(*batch)
    scaler = accumulator.compute()
    for systems, targets, _ in batches:
        for source, space in DIRECTIONS:
            scaler.convert(systems, targets, source, space)
    assert before == [bits(targets) + bits(masks) for _, targets, masks in batches]


def through_pickle(scaler):
    return pickle.loads(pickle.dumps(scaler))


def through_state_dict(scaler):
    buffer = io.BytesIO()
    torch.save(torch.nn.ModuleDict({"scaler": scaler}).state_dict(), buffer)
    buffer.seek(0)
    holder = torch.nn.ModuleDict({"scaler": Scaler()})
    holder.load_state_dict(torch.load(buffer, weights_only=True))
    return holder["scaler"]


def through_file(scaler):
    with tempfile.TemporaryDirectory() as folder:
        scaler.save(Path(folder) / "scaler.pt")
        return Scaler.load(Path(folder) / "scaler.pt")


@pytest.mark.parametrize("way", [through_pickle, copy.deepcopy, through_state_dict, through_file])
@over(FEW // 4)
@given(case=st.one_of(SCALED, OFFSET))
def test_copies_give_the_same_conversions(way, case):
    scaler = computed(case, "pooled")
    other = way(scaler)
    systems, targets = everything(case)
    for source, space in DIRECTIONS:
        ours, theirs = (each.convert(systems, targets, source, space) for each in (scaler, other))
        assert bits(ours) == bits(theirs)
    assert all(
        torch.equal(weights.nan_to_num(), other.targets["t"].weights[key].nan_to_num())
        for key, weights in scaler.targets["t"].weights.items()
    )


# Rotations, improper ones too.


def symmetric_traceless():
    """An orthonormal basis of the symmetric traceless matrices, m = -2 ... 2, ``(5, 3, 3)``."""
    basis = np.zeros((5, 3, 3))
    for m, (i, j) in {0: (0, 1), 1: (1, 2), 3: (0, 2)}.items():  # xy, yz, xz
        basis[m, i, j] = basis[m, j, i] = math.sqrt(1 / 2)
    basis[2] = np.diag([-1, -1, 2]) / math.sqrt(6)  # 3z² - r²
    basis[4] = np.diag([1, -1, 0]) / math.sqrt(2)  # x² - y²
    return basis


def of_vectors_and_matrices(vectors, matrices, samples):
    """A target of each kind: vectors, matrices, and both by their spherical parts.

    Args:
        vectors: ``(n, 3, n_properties)``.
        matrices: ``(n, 3, 3, n_properties)``, symmetric.
        samples: of all of them.
    """
    trace = np.einsum("niip->np", matrices)[:, None] / math.sqrt(3)
    deviator = np.einsum("mij,nijp->nmp", symmetric_traceless(), matrices)
    parts = {0: trace, 1: vectors[:, [1, 2, 0]], 2: deviator}  # λ=1 runs y, z, x
    axes = [labels(f"o3_mu_{axis}", [-1, 0, 1]) for axis in (1, 2)]
    tensor = matrices[:, [1, 2, 0]][:, :, [1, 2, 0]]
    return {
        "vector": single(block(vectors, samples, cartesian(1))),
        "matrix": single(block(matrices, samples, cartesian(2))),
        "spherical": spherical(parts, samples),
        "rank two": TensorMap(labels(RANK_TWO, [[1, 1, 1, 1]]), [block(tensor, samples, axes)]),
    }


@over(FEW)
@given(st.integers(0, 2**32 - 1), st.booleans(), st.sampled_from([None, CompositionBaseline()]))
def test_rotated_data_have_the_same_scales(seed, per_atom, baseline):
    rng = np.random.default_rng(seed)
    compositions = [rng.choice([1, 6, 8], rng.integers(1, 5)).tolist() for _ in range(12)]
    counts = [len(types) for types in compositions]
    samples = atom_samples(*counts) if per_atom else labels("system", range(12))
    n_properties = int(rng.integers(1, 4))
    vectors = rng.normal([[2.0], [0.0], [-1.0]], 1.0, (len(samples), 3, n_properties))
    matrices = rng.normal(size=(len(samples), 3, 3, n_properties)) + 1
    matrices = matrices + matrices.swapaxes(1, 2)
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    turned = (
        np.einsum("ij,njp->nip", turn, vectors),
        np.einsum("ij,kl,njlp->nikp", turn, turn, matrices),
    )
    systems = [system(*types) for types in compositions]
    first, second = (
        fit(systems, of_vectors_and_matrices(*data, samples), baseline=baseline)
        for data in ((vectors, matrices), turned)
    )
    for name in first.targets:
        for kind in ("per_target_scales", "per_property_scales", "scales"):
            ours, theirs = (flat(getattr(each, kind)[name]) for each in (first, second))
            np.testing.assert_allclose(ours, theirs, rtol=1e-11, err_msg=f"{kind} of {name}")
