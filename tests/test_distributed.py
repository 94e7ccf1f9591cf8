"""Shards of loaders, and the pass in several real processes."""

import itertools
import os
import socket
import warnings
from pathlib import Path

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
from training import SmallData, SmallNet, collate, quiet_trainer, scaler_callback

from lightning_scaler.distributed import randomness_kept, shards


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


class BrokenData(SmallData):
    """Rank 1 meets an infinite dipole: structure 7 is in the second batch of four."""

    def __init__(self):
        super().__init__()
        self.train.items[7][1]["dipole"][0, 1] = torch.inf


class OneStructure(SmallData):
    """More processes than batches: some ranks have nothing to read."""

    def __init__(self):
        super().__init__(size=22, batch_size=22)


def without_charges_in_large_systems(items):
    """Batches of one; those of three and more atoms lack a target, or have another order."""
    batch = collate(items)
    charges = batch.pop("charges")
    return batch if len(items[0][0]) > 2 else {"charges": charges, **batch}


class MultiTask(SmallData):
    """Rank 0 and rank 1 meet targets in another order, or not at all."""

    def __init__(self):
        super().__init__(batch_size=1, collate_fn=without_charges_in_large_systems)
        # With two ranks, rank 0 has all systems of one and two atoms.
        sizes = sorted(self.held_out.items, key=lambda item: len(item[0]) > 2)
        half = sum(len(item[0]) <= 2 for item in sizes)
        small, large = sizes[:half], sizes[half : 2 * half]
        self.held_out.items = [item for pair in zip(small, large, strict=True) for item in pair]


def validated(folder, trainer):
    """Errors of a fitted network over data whose targets differ from batch to batch."""
    net = SmallNet.load_from_checkpoint(f"{folder}/net.ckpt", weights_only=True)
    errors = trainer.validate(net, MultiTask(), verbose=False)[0]
    return {name: float(value) for name, value in errors.items()}


@pytest.mark.distributed
def test_two_processes_have_the_scales_of_one(tmp_path):
    """A real process group with Lightning's DDP; and a rank that fails stops both."""
    data, alone = SmallData(), SmallNet()
    trainer = quiet_trainer(tmp_path, callbacks=[scaler_callback()])
    trainer.fit(alone, data)
    trainer.save_checkpoint(tmp_path / "net.ckpt")
    torch.multiprocessing.spawn(spawned, (str(tmp_path), 2), nprocs=2)
    states = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for name, rank in itertools.product(("small", "one batch"), range(2)):
        for target, scales in alone.scaler.get_extra_state()["targets"].items():
            ours = states[rank][name]["targets"][target]
            torch.testing.assert_close(
                ours["per_target"], scales["per_target"], rtol=1e-11, atol=0.0
            )
            first = states[0][name]["targets"][target]["per_target"]
            assert torch.equal(ours["per_target"], first)
    errors = validated(tmp_path, quiet_trainer(tmp_path))
    for rank in range(2):
        assert states[rank]["errors"] == pytest.approx(errors, rel=1e-6)
        message = states[rank]["error"]
        assert "failed on rank 1" in message
        assert "target 'dipole'" in message
        assert "1 infinite entries" in message
    counts = [states[rank]["reads"] for rank in range(2)]
    assert sorted(counts[0] + counts[1]) == list(range(22))


def spawned(rank, folder, world_size):
    os.environ.update(
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=port(folder),
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world_size),
    )
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    answers = {}
    for name, data in (("small", SmallData()), ("one batch", OneStructure())):
        reads = []

        class Spy(SmallNet):
            def on_fit_start(self, data=data, reads=reads):
                super().on_fit_start()
                reads.extend(data.train.reads)

        net = Spy()
        distributed_trainer(folder).fit(net, data)
        answers[name] = net.scaler.get_extra_state()
        if name == "small":
            answers["reads"] = reads
    try:
        distributed_trainer(folder).fit(SmallNet(), BrokenData())
    except RuntimeError as error:
        answers["error"] = str(error)
    trainer = quiet_trainer(folder, devices=2, strategy="ddp")
    answers["errors"] = validated(folder, trainer)
    torch.save(answers, f"{folder}/{rank}.pt")


def distributed_trainer(folder):
    return quiet_trainer(folder, callbacks=[scaler_callback()], devices=2, strategy="ddp")


def port(folder):
    """A free port that both processes agree on."""
    file = Path(folder) / "port"
    try:
        with file.open("x") as new, socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            new.write(str(free.getsockname()[1]))
    except FileExistsError:
        pass
    while not file.read_text():
        pass
    return file.read_text()
