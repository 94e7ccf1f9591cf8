"""The part of the training data that each process reads, for every kind of loader."""

import multiprocessing

import pytest
import torch
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
    get_worker_info,
)

from lightning_scaler.training.processes import FitProcesses
from lightning_scaler.training.samplers import preserve_rng, shard_loaders

ONE_PROCESS = FitProcesses()


class Stream(IterableDataset):
    def __iter__(self):
        return iter(range(40))


class Endless:
    """Not a DataLoader, and without an end."""

    def __iter__(self):
        while True:
            yield torch.zeros(4)


def draws():
    """Twice as many indices as there are samples, with repetitions."""
    generator = torch.Generator().manual_seed(5)
    return RandomSampler(range(11), replacement=True, num_samples=22, generator=generator)


def loader_of(kind):
    numbers = list(range(11))
    samplers = {
        "random": RandomSampler(numbers),
        "distributed": DistributedSampler(numbers, num_replicas=4, rank=1, shuffle=True),
        "subset": SubsetRandomSampler([3, 8, 9]),
        "weighted": WeightedRandomSampler([0.0] * 10 + [1.0], num_samples=5),
        "with replacement": draws(),
    }
    if kind == "sequential":
        return DataLoader(numbers, batch_size=3, drop_last=True)
    if kind == "batches":
        return DataLoader(numbers, batch_sampler=[[0, 1], [1, 2, 5]])
    if kind == "unbatched":
        return DataLoader(numbers, batch_size=None)
    if kind == "unbatched draws":
        return DataLoader(numbers, batch_size=None, sampler=draws())
    if kind == "batches of draws":
        return DataLoader(numbers, batch_sampler=BatchSampler(draws(), 3, drop_last=False))
    return DataLoader(numbers, batch_size=3, sampler=samplers[kind])


EXPECTED = {
    "sequential": list(range(11)),
    "random": list(range(11)),
    "distributed": list(range(11)),
    "subset": [3, 8, 9],
    "weighted": [10] * 5,
    "with replacement": sorted(draws()),
    "batches": [0, 1, 1, 2, 5],
    "unbatched": list(range(11)),
    "unbatched draws": sorted(draws()),
    "batches of draws": sorted(draws()),
}


def processes_of(world_size):
    """Ranks 0, 1, … in this order; what rank 0 draws reaches the others."""
    drawn = []

    def broadcast(local):
        if local is not None:
            drawn.append(local)
        return drawn[0]

    return [FitProcesses(rank, world_size, broadcast=broadcast) for rank in range(world_size)]


@pytest.mark.parametrize("kind", EXPECTED)
@pytest.mark.parametrize("world_size", [1, 3, 13])
def test_every_sample_is_read_once_over_all_ranks(kind, world_size):
    read = []
    for process in processes_of(world_size):
        for loader in shard_loaders(loader_of(kind), process):
            read += [int(i) for batch in loader for i in torch.as_tensor(batch).reshape(-1)]
    assert sorted(read) == EXPECTED[kind]


def test_iterable_datasets_are_read_as_they_are():
    (loader,) = shard_loaders(DataLoader(Stream(), batch_size=16), FitProcesses(1, 2))
    batches = [batch.tolist() for batch in loader]
    assert batches == [list(range(16)), list(range(16, 32)), list(range(32, 40))]


@pytest.mark.parametrize(
    "loader",
    [DataLoader(Stream(), batch_size=4), Endless(), DataLoader(range(40), batch_size=4)],
    ids=["iterable dataset", "endless", "dataset"],
)
@pytest.mark.parametrize(
    ("world_size", "limit", "expected"), [(3, 2, [1, 1, 0]), (3, 7, [3, 2, 2]), (2, 4, [2, 2])]
)
def test_limits_count_the_batches_of_all_ranks(loader, world_size, limit, expected):
    """The remainder of a division by the number of ranks counts too."""
    shards = [shard_loaders(loader, process, limit)[0] for process in processes_of(world_size)]
    assert [sum(1 for _ in shard) for shard in shards] == expected


def test_several_loaders_are_each_read_once_in_any_mode():
    loaders = CombinedLoader({"a": loader_of("sequential"), "b": loader_of("subset")}, "min_size")
    read = [
        [int(i) for batch in loader for i in batch]
        for loader in shard_loaders(loaders, ONE_PROCESS)
    ]
    assert [sorted(one) for one in read] == [list(range(11)), [3, 8, 9]]


def test_limited_batches_are_evenly_spaced_and_counted_over_all_ranks():
    read = [
        [batch.tolist() for batch in loader]
        for process in processes_of(2)
        for loader in shard_loaders(loader_of("sequential"), process, limit_batches=3)
    ]
    # Batches [0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10]: the middles of three thirds.
    assert read == [[[0, 1, 2], [9, 10]], [[6, 7, 8]]]


def test_first_batches_are_those_up_to_the_limit():
    (loader,) = shard_loaders(loader_of("random"), ONE_PROCESS, 2, first_batches=True)
    assert [batch.tolist() for batch in loader] == [[0, 1, 2], [3, 4, 5]]


class OpenedByWorkers(torch.utils.data.Dataset):
    """Stands for a file that every worker opens for itself."""

    opened = False

    def __len__(self):
        return 5

    def __getitem__(self, index):
        assert self.opened
        return index


def open_dataset(worker_id):
    get_worker_info().dataset.opened = True


@pytest.mark.parametrize(
    ("batching", "batches"),
    [
        ({"batch_size": 3}, [(0, 1, 2), (3, 4)]),
        ({"batch_sampler": [[0, 1], [2]]}, [(0, 1), (2,)]),
        ({"batch_size": None}, [0, 1, 2, 3, 4]),
    ],
    ids=["batch size", "batch sampler", "unbatched"],
)
def test_collation_pinning_and_worker_settings_are_kept(batching, batches):
    settings = {
        "collate_fn": tuple if "batch_size" not in batching or batching["batch_size"] else int,
        "num_workers": 1,
        "prefetch_factor": 3,
        "timeout": 60,
        "worker_init_fn": open_dataset,
        "multiprocessing_context": multiprocessing.get_context("fork"),
    }
    data = OpenedByWorkers()
    (shard,) = shard_loaders(DataLoader(data, **batching, **settings), ONE_PROCESS)
    assert {name: getattr(shard, name) for name in settings} == settings
    assert shard.dataset is data
    assert list(shard) == batches
    (pinned,) = shard_loaders(DataLoader(data, pin_memory=True, **batching), ONE_PROCESS)
    assert pinned.pin_memory


class ShuffledBatches(BatchSampler):
    """A batch sampler that draws from a generator of its own."""

    def __init__(self, sampler, generator):
        super().__init__(sampler, 2, drop_last=False)
        self.generator = generator

    def __iter__(self):
        batches = list(super().__iter__())
        order = torch.randperm(len(batches), generator=self.generator).tolist()
        return iter([batches[i] for i in order])


NUMBERS = list(range(40))


def loader_with(generator, owner):
    """A loader, one part of which draws from the generator."""
    random = RandomSampler(NUMBERS, generator=generator)
    if owner == "loader":
        return DataLoader(NUMBERS, 2, shuffle=True, generator=generator)
    if owner == "sampler":
        return DataLoader(NUMBERS, 2, sampler=random)
    if owner == "unbatched sampler":
        return DataLoader(NUMBERS, batch_size=None, sampler=random)
    if owner == "sampler of a batch sampler":
        return DataLoader(NUMBERS, batch_sampler=BatchSampler(random, 2, drop_last=False))
    batches = ShuffledBatches(RandomSampler(NUMBERS), generator)
    return DataLoader(NUMBERS, batch_sampler=batches)


@pytest.mark.parametrize(
    "owner",
    ["loader", "sampler", "unbatched sampler", "sampler of a batch sampler", "batch sampler"],
)
def test_random_states_of_all_parts_of_a_loader_are_restored_even_after_an_error(owner):
    generator = torch.Generator().manual_seed(1)
    loader = loader_with(generator, owner)
    state, before = generator.get_state(), torch.get_rng_state()
    with pytest.raises(KeyError), preserve_rng([{"a": loader}]):
        draw_and_fail(loader, generator, state)
    assert torch.equal(generator.get_state(), state)
    assert torch.equal(torch.get_rng_state(), before)


def draw_and_fail(loader, generator, state):
    list(loader)
    torch.rand(3)
    assert not torch.equal(generator.get_state(), state)
    raise KeyError
