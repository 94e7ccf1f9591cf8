"""What each process reads in the data pass, for every kind of loader and sampler."""

import multiprocessing

import pytest
import torch
from lightning.pytorch.trainer.connectors.data_connector import _get_distributed_sampler
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from lightning.pytorch.utilities.data import _update_dataloader
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    WeightedRandomSampler,
    get_worker_info,
)

from lightning_scaler.data_pass.pass_loaders import Limits, pass_loaders, training_batches
from lightning_scaler.data_pass.processes import FitProcesses
from lightning_scaler.data_pass.samplers import loses_subset

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


def read(loaders, processes=ONE_PROCESS, injected=False, **limits):
    """The batches of one process, as lists."""
    combined = loaders if isinstance(loaders, CombinedLoader) else CombinedLoader(loaders)
    passed = pass_loaders(combined, processes, Limits(**limits), injected)
    return [torch.as_tensor(batch).tolist() for batch in training_batches(passed)]


def distributed(loader, rank, world_size):
    """The loader with the sampler that Lightning puts in for several processes."""
    options = {"num_replicas": world_size, "rank": rank}
    sampler = _get_distributed_sampler(loader, True, overfit_batches=0, **options)
    return _update_dataloader(loader, sampler)


def processes_of(world_size):
    """Ranks 0, 1, … in this order; what rank 0 draws reaches the others."""
    drawn = []

    def broadcast(local):
        if local is not None:
            drawn.append(local)
        return drawn[0]

    return [FitProcesses(rank, world_size, broadcast=broadcast) for rank in range(world_size)]


@pytest.mark.parametrize("kind", EXPECTED)
def test_one_process_reads_every_sample_of_an_epoch_once(kind):
    batches = torch.tensor([i for b in read(loader_of(kind)) for i in torch.tensor(b).reshape(-1)])
    assert sorted(batches.tolist()) == EXPECTED[kind]


# Lightning puts a DistributedSampler over the whole dataset in the place of every RandomSampler. It
# cannot make these loaders with batch samplers again.
DRAWS = ("with replacement", "unbatched draws")
DISTRIBUTED = {**EXPECTED, **{kind: list(range(11)) for kind in DRAWS}}
del DISTRIBUTED["batches"], DISTRIBUTED["batches of draws"]


@pytest.mark.parametrize("kind", DISTRIBUTED)
@pytest.mark.parametrize("world_size", [3, 13])
def test_processes_together_read_every_sample_once_without_padding(kind, world_size):
    """11 samples on 3 or 13 processes: a DistributedSampler would repeat one or two."""
    batches = []
    for process in processes_of(world_size):
        loader = loader_of(kind)
        if kind != "distributed":
            loader = distributed(loader, process.rank, world_size)
        batches += read(loader, process, injected=True)
    indices = torch.cat([torch.tensor(batch).reshape(-1) for batch in batches])
    assert sorted(indices.tolist()) == DISTRIBUTED[kind]


@pytest.mark.parametrize("kind", ["sequential", "random", "subset", "batches", "unbatched"])
def test_without_a_distributed_sampler_each_process_reads_its_own_loader(kind):
    """Each rank may have a dataset of its own, already split."""
    for process in processes_of(3):
        indices = torch.cat(
            [torch.tensor(b).reshape(-1) for b in read(loader_of(kind), process)]
        ).tolist()
        assert sorted(indices) == EXPECTED[kind]


def test_iterable_datasets_are_read_as_they_are():
    batches = read(DataLoader(Stream(), batch_size=16), FitProcesses(1, 2))
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
    numbers = [len(read(loader, process, spread=limit)) for process in processes_of(world_size)]
    assert numbers == expected


def test_limited_batches_are_evenly_spaced_and_counted_over_all_ranks():
    batches = [
        read(distributed(loader_of("sequential"), process.rank, 2), process, spread=3)
        for process in processes_of(2)
    ]
    # Batches [0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10]: the middles of three thirds.
    assert batches == [[[0, 1, 2], [9, 10]], [[6, 7, 8]]]


def test_first_batches_are_those_of_all_processes_together():
    assert read(loader_of("random"), first=2) == [[0, 1, 2], [3, 4, 5]]
    batches = [
        read(distributed(loader_of("random"), process.rank, 2), process, first=1)
        for process in processes_of(2)
    ]
    assert batches == [[[0, 1, 2]], [[3, 4, 5]]]


LONGER = list(range(100, 111))


class Reversed(SequentialSampler):
    """A subclass that leaves out the first three samples."""

    def __iter__(self):
        return reversed(range(3, len(self.data_source)))


class Heavy(RandomSampler):
    def __iter__(self):
        return iter([5, 5, 5])


class Odd(DistributedSampler):
    def __iter__(self):
        return iter([1, 3])


FIRST_EIGHT = list(range(100, 108))
# Samplers over a dataset of 11, and the samples that training reads on one process.
SAMPLERS = {
    "distributed over a range": (
        lambda: DistributedSampler(range(8), num_replicas=2, rank=0),
        FIRST_EIGHT,
    ),
    "distributed over a subset": (
        lambda: DistributedSampler(Subset(LONGER, range(8)), num_replicas=2, rank=0),
        FIRST_EIGHT,
    ),
    "sequential over a range": (lambda: SequentialSampler(range(8)), FIRST_EIGHT),
    "random over a range": (lambda: RandomSampler(range(8)), FIRST_EIGHT),
    "subclass of SequentialSampler": (lambda: Reversed(LONGER), LONGER[3:]),
    "subclass of RandomSampler": (lambda: Heavy(LONGER), [105] * 3),
    "subclass of DistributedSampler": (lambda: Odd(LONGER, num_replicas=2, rank=0), [101, 103]),
}


@pytest.mark.parametrize("kind", SAMPLERS)
@pytest.mark.parametrize("batching", ["batched", "unbatched", "batch sampler"])
def test_samplers_stand_for_what_they_yield_and_not_for_the_dataset_of_the_loader(kind, batching):
    make, expected = SAMPLERS[kind]
    loader = {
        "batched": lambda: DataLoader(LONGER, 3, sampler=make()),
        "unbatched": lambda: DataLoader(LONGER, batch_size=None, sampler=make()),
        "batch sampler": lambda: DataLoader(LONGER, batch_sampler=BatchSampler(make(), 3, False)),
    }[batching]()
    read_samples = torch.cat([torch.tensor(b).reshape(-1) for b in read(loader)])
    assert sorted(read_samples.tolist()) == expected


def test_a_subset_inside_a_batch_sampler_is_kept_on_one_process_and_lost_on_several():
    """As in training: there, Lightning replaces the sampler inside a batch sampler."""
    samplers = BatchSampler(SubsetRandomSampler([3, 8, 9]), 2, drop_last=False)
    loader = DataLoader(range(11), batch_sampler=samplers)
    assert sorted(i for batch in read(loader) for i in batch) == [3, 8, 9]
    assert loses_subset(loader)
    assert not loses_subset(DataLoader(range(11), sampler=SubsetRandomSampler([3, 8, 9])))
    assert not loses_subset(
        DataLoader(range(11), batch_sampler=BatchSampler(RandomSampler(range(11)), 2, False))
    )


def test_drawing_an_epoch_does_not_advance_the_sampler():
    class Counting(SubsetRandomSampler):
        epochs = 0

        def __iter__(self):
            self.epochs += 1
            return super().__iter__()

    sampler = Counting([1, 2, 3])
    assert len(read(DataLoader(range(9), sampler=sampler))) == 3
    assert sampler.epochs == 0


class Doubling(DataLoader):
    """A loader that changes units in its own ``__iter__``, and whose argument is no attribute."""

    def __init__(self, dataset, factor, **options):
        super().__init__(dataset, **options)
        self.scale = factor

    def __iter__(self):
        for batch in super().__iter__():
            yield self.scale * batch


def test_loaders_keep_their_class_and_their_own_iteration():
    loader = Doubling(range(5), 10, batch_size=2, shuffle=True)
    assert read(loader) == [[0, 10], [20, 30], [40]]
    assert (
        type(pass_loaders(CombinedLoader(loader), ONE_PROCESS, Limits()).flattened[0]) is Doubling
    )
    assert loader.batch_sampler.sampler is loader.sampler


def passed(loaders, mode="max_size_cycle"):
    combined = CombinedLoader(loaders, mode)
    return list(training_batches(pass_loaders(combined, ONE_PROCESS, Limits())))


@pytest.mark.parametrize("mode", ["max_size_cycle", "min_size", "max_size"])
def test_several_loaders_are_each_read_once_in_the_form_of_training(mode):
    """Four batches of a, one of b: the samples of b come in three batches of one."""
    batches = passed({"a": loader_of("sequential"), "b": loader_of("subset")}, mode)
    assert [sorted(batch) for batch in batches] == [["a", "b"]] * 3 + [["a"]]
    read_samples = {
        name: sorted(int(i) for batch in batches for i in batch.get(name, ()))
        for name in ("a", "b")
    }
    assert read_samples == {"a": list(range(11)), "b": [3, 8, 9]}


def test_a_loader_that_has_ended_gives_none_in_a_list_of_loaders():
    batches = passed([DataLoader(Stream(), 16), DataLoader(Stream(), 40)])
    assert batches[1][0].tolist() == list(range(16, 32))
    assert batches[1][1] is None


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
    loader = DataLoader(data, **batching, **settings)
    (one,) = pass_loaders(CombinedLoader(loader), ONE_PROCESS, Limits()).flattened
    assert {name: getattr(one, name) for name in settings} == settings
    assert one.dataset is data
    assert list(one) == batches
    pinned = CombinedLoader(DataLoader(data, pin_memory=True, **batching))
    assert pass_loaders(pinned, ONE_PROCESS, Limits()).flattened[0].pin_memory
