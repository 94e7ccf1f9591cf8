"""Statistics files read and merged."""

import re
from itertools import permutations

import numpy as np
import pytest
from builders import (
    fit,
    single_value_statistics,
    structure_target,
    system,
)
from damaged_files import damaged

from lightning_scaler import CompositionBaseline, ScaleAccumulator, Scaler
from lightning_scaler.fitting import DataPart, load_saved, merge_files
from lightning_scaler.tensors import InvalidStateError, digest

DATA = {"samples": "3"}
ENERGIES = [3.0, -4.0, 0.7]


def save_shards(folder, values=ENERGIES, data=DATA, **options):
    paths = [folder / f"{i}.st" for i in range(len(values))]
    for i, (path, value) in enumerate(zip(paths, values, strict=True)):
        accumulator = single_value_statistics(value, **options)
        accumulator.parts = (DataPart(data, i, len(values)),)
        accumulator.save(path)
    return paths


def test_merged_shards_give_the_rms_of_all_values_to_the_bit_for_any_order(tmp_path):
    paths = save_shards(tmp_path)
    merged = merge_files(paths)
    # sqrt((9 + 16 + 0.49) / 3)
    scale = merged.compute().per_target_scales["energy"].block().values.item()
    assert scale == pytest.approx((25.49 / 3) ** 0.5, rel=1e-15)
    assert merged.parts == (DataPart(DATA),)
    states = {digest(merge_files(order).state()) for order in permutations(paths)}
    assert states == {digest(merged.state())}


def test_statistics_of_a_single_atomic_type_are_saved(tmp_path):
    accumulator = ScaleAccumulator(baseline="composition")
    systems = [system(14), system(14, 14), system(14, 14, 14)]
    accumulator.update(systems, {"energy": structure_target([1.0, 3.0, 4.0])})
    accumulator.save(tmp_path / "file")
    scaler = ScaleAccumulator.load(tmp_path / "file").compute()
    # (1 + 2 * 3 + 3 * 4) / (1 + 4 + 9)
    weight = scaler.targets["energy"].weights[(0,)].item()
    assert weight == pytest.approx(19 / 14, rel=1e-14)


@pytest.mark.parametrize("seed", range(8))
def test_statistics_from_a_file_give_the_same_scales_to_the_bit(tmp_path, seed):
    rng = np.random.default_rng(seed)
    accumulator = ScaleAccumulator(baseline="composition")
    for _ in range(3):
        systems = [system(*rng.integers(1, 8, rng.integers(1, 6))) for _ in range(9)]
        values = [1e4 * len(s) + rng.normal() for s in systems]
        accumulator.update(systems, {"energy": structure_target(values)})
    accumulator.save(tmp_path / "file")
    loaded = ScaleAccumulator.load(tmp_path / "file").compute()
    assert digest(loaded.state_dict()) == digest(accumulator.compute().state_dict())


def test_a_missing_shard_is_named(tmp_path):
    paths = save_shards(tmp_path, [1.0] * 5)
    with pytest.raises(ValueError, match="got them without shards 0, 3 of 5"):
        merge_files([paths[i] for i in (1, 2, 4)])


def test_shards_of_two_data_sets_are_merged_set_by_set(tmp_path):
    sets = {"1": ENERGIES, "2": [5.0, 6.0]}
    for samples, values in sets.items():
        (tmp_path / samples).mkdir()
        paths = save_shards(tmp_path / samples, values, {"samples": samples})
        merge_files(paths).save(tmp_path / f"{samples}.st")
    shards = sorted(tmp_path.glob("*/*.st"))
    with pytest.raises(ValueError, match="merge all shards of each data set first, then the res"):
        merge_files(shards)
    merged = merge_files([tmp_path / "1.st", tmp_path / "2.st"])
    # sqrt((9 + 16 + 0.49 + 25 + 36) / 5)
    scale = merged.compute().per_target_scales["energy"].block().values.item()
    assert scale == pytest.approx((86.49 / 5) ** 0.5, rel=1e-15)


def test_the_same_shard_twice_names_both_files(tmp_path):
    paths = save_shards(tmp_path)
    again = tmp_path / "again.st"
    again.write_bytes(paths[0].read_bytes())
    message = f"got {paths[0]}: shard 0 of 3 (samples: 3), and {again}: shard 0 of 3 (samples: 3)"
    with pytest.raises(ValueError, match=re.escape(message)):
        merge_files([*paths, again])


def test_the_same_statistics_twice_are_refused_where_the_data_are_unknown(tmp_path):
    for name in ("a", "b"):
        single_value_statistics(1.0).save(tmp_path / name)
    single_value_statistics(2.0).save(tmp_path / "c")
    with pytest.raises(ValueError, match=r"got the same statistics in .*a and .*b; leave out"):
        merge_files([tmp_path / "c", tmp_path / "a", tmp_path / "b"])
    assert merge_files([tmp_path / "c", tmp_path / "a"]).parts == ()


def test_other_settings_are_refused_with_both_values_and_files(tmp_path):
    single_value_statistics(1.0, baseline=CompositionBaseline()).save(tmp_path / "a")
    single_value_statistics(2.0, intensive_targets=["energy"]).save(tmp_path / "b")
    message = (
        r"got .*a and .*b, which differ in intensive_targets \(\[\] and \['energy'\]\); "
        r"baseline \(CompositionBaseline\(fixed={}\) and None\); collect"
    )
    with pytest.raises(ValueError, match=message):
        merge_files([tmp_path / "a", tmp_path / "b"])


def test_both_baselines_are_shown_where_only_their_kind_differs(tmp_path):
    counts = {"intensive_targets": ["energy"], "baseline": CompositionBaseline(counted=["energy"])}
    single_value_statistics(1.0, **counts).save(tmp_path / "a")
    fractions = {**counts, "baseline": CompositionBaseline()}
    single_value_statistics(2.0, **fractions).save(tmp_path / "b")
    message = r"\(CompositionBaseline\(fixed={}, counted=\('energy',\)\) and CompositionBaseline\(f"
    with pytest.raises(ValueError, match=message):
        merge_files([tmp_path / "a", tmp_path / "b"])


def test_another_layout_is_refused_with_the_target_and_both_files(tmp_path):
    single_value_statistics(1.0).save(tmp_path / "a")
    other = ScaleAccumulator()
    other.update([system(8)], {"energy": structure_target([[1.0, 2.0]])})
    other.save(tmp_path / "b")
    with pytest.raises(ValueError, match=r"b, merged into .*a: target 'energy'.*properties"):
        merge_files([tmp_path / "a", tmp_path / "b"])


def test_a_damaged_file_among_several_is_named(tmp_path):
    paths = save_shards(tmp_path)
    damaged(paths[1])
    with pytest.raises(InvalidStateError, match=r"1.st': damaged: its checksum"):
        merge_files(paths)


def test_a_file_of_either_kind_is_read(tmp_path):
    single_value_statistics(1.0).save(tmp_path / "statistics")
    fit([system(8)], {"energy": structure_target([2.0])}).save(tmp_path / "scaler")
    assert isinstance(load_saved(tmp_path / "statistics"), ScaleAccumulator)
    assert isinstance(load_saved(tmp_path / "scaler"), Scaler)
    (tmp_path / "other").write_text("scales")
    with pytest.raises(InvalidStateError, match="a file that lightning_scaler has written"):
        load_saved(tmp_path / "other")


def test_statistics_saved_without_parts_load(tmp_path):
    """Files that were written before statistics said which data they hold."""
    from lightning_scaler.tensors import load_state, save_state

    single_value_statistics(1.0).save(tmp_path / "statistics")
    content = load_state(tmp_path / "statistics", "ScaleAccumulator")
    del content["parts"]
    save_state(tmp_path / "statistics", "ScaleAccumulator", content)
    assert ScaleAccumulator.load(tmp_path / "statistics").parts == ()
