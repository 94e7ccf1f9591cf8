"""Shards of loaders, and the pass in several real processes."""

import pytest
import torch
import torch.multiprocessing
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from lightning_scaler.training.samplers import randomness_kept, shards


class Stream(IterableDataset):
    def __iter__(self):
        return iter(range(7))


def loader_of(kind):
    numbers = list(range(11))
    samplers = {
        "random": RandomSampler(numbers),
        "distributed": DistributedSampler(numbers, num_replicas=4, rank=1, shuffle=True),
        "subset": SubsetRandomSampler([3, 8, 9]),
        "weighted": WeightedRandomSampler([0.0] * 10 + [1.0], num_samples=5),
    }
    if kind == "sequential":
        return DataLoader(numbers, batch_size=3, drop_last=True)
    if kind == "batches":
        return DataLoader(numbers, batch_sampler=[[0, 1], [1, 2, 5]])
    if kind == "unbatched":
        return DataLoader(numbers, batch_size=None)
    if kind == "workers":
        return DataLoader(numbers, batch_size=3, num_workers=1)
    return DataLoader(numbers, batch_size=3, sampler=samplers[kind])


EXPECTED = {
    "sequential": list(range(11)),
    "random": list(range(11)),
    "distributed": list(range(11)),
    "subset": [3, 8, 9],
    "weighted": [10] * 5,
    "batches": [0, 1, 1, 2, 5],
    "unbatched": list(range(11)),
    "workers": list(range(11)),
}


@pytest.mark.parametrize("kind", EXPECTED)
@pytest.mark.parametrize("world_size", [1, 2, 3, 13])
def test_every_sample_once_over_all_ranks(kind, world_size):
    if kind == "workers" and world_size > 2:
        world_size = 2
    drawn = []

    def from_first(make):
        # What rank 0 drew goes to all.
        drawn.append(make())
        return drawn[0]

    read = []
    for rank in range(world_size):
        for loader in shards(loader_of(kind), rank, world_size, from_first):
            read += [int(i) for batch in loader for i in torch.as_tensor(batch).reshape(-1)]
    assert sorted(read) == EXPECTED[kind]


def test_iterable_data_are_read_as_they_come():
    (loader,) = shards(DataLoader(Stream(), batch_size=2), 1, 2, lambda make: make())
    assert [batch.tolist() for batch in loader] == [[0, 1], [2, 3], [4, 5], [6]]
    (loader,) = shards(DataLoader(Stream(), batch_size=2), 1, 2, lambda make: make(), 3)
    assert len(list(loader)) == 1  # of three batches, two are rank 0's


def test_several_loaders_are_each_read_once_whatever_their_mode():
    loaders = CombinedLoader({"a": loader_of("sequential"), "b": loader_of("subset")}, "min_size")
    read = [
        [int(i) for batch in loader for i in batch]
        for loader in shards(loaders, 0, 1, lambda make: make())
    ]
    assert [sorted(one) for one in read] == [list(range(11)), [3, 8, 9]]


def test_limits_count_over_all_ranks_and_spread_over_the_data():
    read = [
        [batch.tolist() for batch in loader]
        for rank in range(2)
        for loader in shards(loader_of("sequential"), rank, 2, lambda make: make(), 3)
    ]
    # Batches [0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10]: the middles of three thirds.
    assert read == [[[0, 1, 2], [9, 10]], [[6, 7, 8]]]
    (loader,) = shards(loader_of("random"), 0, 1, lambda make: make(), 2, first_batches=True)
    assert [batch.tolist() for batch in loader] == [[0, 1, 2], [3, 4, 5]]


def test_collation_and_worker_settings_are_kept():
    loader = DataLoader(
        list(range(4)), batch_size=2, collate_fn=tuple, num_workers=1, prefetch_factor=3, timeout=60
    )
    (shard,) = shards(loader, 0, 1, lambda make: make())
    assert (shard.collate_fn, shard.num_workers) == (tuple, 1)
    assert (shard.prefetch_factor, shard.timeout) == (3, 60)
    assert list(shard) == [(0, 1), (2, 3)]


def test_generators_are_restored_after_an_error_too():
    generator = torch.Generator().manual_seed(1)
    loader = DataLoader(list(range(5)), sampler=RandomSampler(list(range(5)), generator=generator))
    state, before = generator.get_state(), torch.get_rng_state()
    with pytest.raises(KeyError), randomness_kept(loader):
        raise_after_drawing(loader)
    assert torch.equal(generator.get_state(), state)
    assert torch.equal(torch.get_rng_state(), before)
    assert isinstance(BatchSampler(loader.sampler, 2, drop_last=False).sampler, RandomSampler)


def raise_after_drawing(loader):
    list(loader)
    torch.rand(3)
    raise KeyError
