"""Shards of the samples of a loader."""

import pytest

from lightning_scaler.data_pass.samplers import take_shard


@pytest.mark.parametrize("n_shards", [1, 2, 3, 7, 13])
def test_shards_have_every_index_once_and_nearly_equal_sizes(n_shards):
    batches = [[4, 1, 9], [0, 2, 7], [3, 3, 8], [5]]
    shards = [take_shard(batches, i, n_shards) for i in range(n_shards)]
    indices = [[i for batch in shard for i in batch] for shard in shards]
    assert sorted(i for own in indices for i in own) == [0, 1, 2, 3, 3, 4, 5, 7, 8, 9]
    assert max(map(len, indices)) - min(map(len, indices)) <= 1
    assert all(len(batch) <= 3 for shard in shards for batch in shard)


def test_a_shard_is_the_same_for_any_order_and_size_of_the_batches():
    expected = [3, 4, 5]
    for batches in (
        [[0, 1], [2, 3], [4, 5]],
        [[5, 4, 3, 2, 1, 0]],
        [[i] for i in (3, 1, 5, 0, 2, 4)],
    ):
        assert [i for batch in take_shard(batches, 1, 2) for i in batch] == expected


def test_single_indices_are_divided_without_batches():
    assert take_shard([5, 3, 4, 0], 0, 2) == [0, 3]


def test_indices_that_cannot_be_compared_are_divided_as_they_come():
    assert take_shard([["a", 1], [None, "b"]], 1, 2) == [[None, "b"]]
