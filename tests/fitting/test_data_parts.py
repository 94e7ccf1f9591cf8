"""Which parts of some data statistics hold, and what may be merged."""

import re

import pytest
from builders import single_value_statistics

from lightning_scaler import ScaleAccumulator
from lightning_scaler.fitting import DataPart, missing_shards

DATA, OTHER = {"samples": "40"}, {"samples": "41"}


def with_part(*part, value=1.0, **options):
    """Statistics of one energy that say which data they hold."""
    accumulator = single_value_statistics(value)
    accumulator.parts = (DataPart(*part, **options),)
    return accumulator


def merge(first, *others):
    for other in others:
        first.merge(other)
    return first


def test_all_shards_together_are_all_data_in_any_order():
    shards = [with_part(DATA, i, 3) for i in (2, 0, 1)]
    assert [missing_shards(s.parts) for s in shards][:2] == ["shards 0, 1 of 3", "shards 1, 2 of 3"]
    assert missing_shards(merge(*shards[:2]).parts) == "shard 1 of 3"
    assert merge(*shards[::2]).parts == (DataPart(DATA),)
    assert missing_shards(shards[0].parts) == ""


def test_data_sets_are_merged_and_remembered():
    merged = merge(with_part(DATA), with_part(OTHER))
    assert merged.parts == (DataPart(DATA), DataPart(OTHER))
    with pytest.raises(ValueError, match="expected each part of the data once"):
        merged.merge(with_part(OTHER))


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ((DATA, 1, 4), (DATA, 1, 4), "each part of the data once, got shard 1 of 4 (samples: 40)"),
        ((DATA, 1, 4), (DATA, 1, 2), "got shard 1 of 4 (samples: 40), and shard 1 of 2 (samples"),
        ((DATA,), (DATA, 0, 2), "got all data (samples: 40), and shard 0 of 2 (samples: 40), of"),
        ((DATA, 1, 4), (OTHER, 2, 4), "(40 and 41); merge all shards of each"),
        ((DATA, 0, 1, "0.1.0"), (OTHER, 0, 1, "0.0.9"), "got version 0.1.0, and version 0.0.9"),
    ],
)
def test_data_that_would_count_twice_or_do_not_belong_together_are_refused(first, second, message):
    one, two = with_part(*first), with_part(*second)
    before = one.state()["statistics"].keys(), one.parts
    with pytest.raises(ValueError, match=re.escape(message)):
        one.merge(two)
    assert (one.state()["statistics"].keys(), one.parts) == before


def test_long_values_are_named_in_a_message_and_not_printed():
    one, two = DataPart({"values": "a" * 64}), DataPart({"values": "b" * 64})
    assert one.differences(two) == ["values"]
    assert str(one) == "all data"


def test_statistics_without_parts_merge_with_each_other_alone():
    merged = merge(single_value_statistics(1.0), single_value_statistics(2.0))
    assert merged.parts == ()
    with pytest.raises(ValueError, match=r"got one with parts=.*shard 0 of 2.* and one without"):
        merged.merge(with_part(DATA, 0, 2))
    # An empty one takes the parts of the other.
    assert merge(ScaleAccumulator(), with_part(DATA)).parts == (DataPart(DATA),)


def test_parts_are_saved_and_cleared_by_the_next_batch(tmp_path):
    with_part(DATA, 1, 4, "0.0.9").save(tmp_path / "statistics")
    loaded = ScaleAccumulator.load(tmp_path / "statistics")
    assert loaded.parts == (DataPart(DATA, 1, 4, "0.0.9"),)
    single_value_statistics(2.0, loaded)
    assert loaded.parts == ()


@pytest.mark.parametrize("shard", [(4, 4), (-1, 4), (0, 0)])
def test_a_shard_that_does_not_exist_is_an_error(shard):
    with pytest.raises(ValueError, match="expected a number from 0 to shards - 1, got shard="):
        DataPart(DATA, *shard)


def test_the_version_is_that_of_the_package():
    import lightning_scaler

    assert DataPart(DATA).version == lightning_scaler.__version__
