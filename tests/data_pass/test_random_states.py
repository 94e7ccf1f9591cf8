"""The data pass restores every generator that is part of a loader."""

import functools
import random

import numpy as np
import pytest
import torch
from lightning.fabric.utilities.distributed import DistributedSamplerWrapper
from small_training import ShuffledBatches
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, Subset

from lightning_scaler.data_pass.random_states import preserve_rng

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
    if owner == "sampler of a distributed sampler":
        wrapper = DistributedSamplerWrapper(random, num_replicas=2, rank=0)
        return DataLoader(NUMBERS, 2, sampler=wrapper)
    batches = ShuffledBatches(RandomSampler(NUMBERS), 2, generator)
    return DataLoader(NUMBERS, batch_sampler=batches)


@pytest.mark.parametrize(
    "owner",
    [
        "loader",
        "sampler",
        "unbatched sampler",
        "sampler of a batch sampler",
        "sampler of a distributed sampler",
        "batch sampler",
    ],
)
def test_random_states_of_all_parts_of_a_loader_are_restored_even_after_an_error(owner):
    generator = torch.Generator().manual_seed(1)
    loader = loader_with(generator, owner)
    state, before = generator.get_state(), torch.get_rng_state()
    with pytest.raises(KeyError), preserve_rng([loader]):
        draw_and_fail(loader, generator, state)
    assert torch.equal(generator.get_state(), state)
    assert torch.equal(torch.get_rng_state(), before)


def draw_and_fail(loader, generator, state):
    list(loader)
    torch.rand(3)
    assert not torch.equal(generator.get_state(), state)
    raise KeyError


class Augmented(Dataset):
    def __init__(self, generator):
        self.noise = generator

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return index

    def collate(self, items):
        return draw(self.noise)


def draw(generator, items=()):
    return float(generator.random())


class OwnGenerator(np.random.Generator):
    pass


GENERATORS = {
    "Generator": lambda: np.random.default_rng(3),
    "own Generator": lambda: OwnGenerator(np.random.PCG64(3)),
    "RandomState": lambda: np.random.RandomState(3),
    "Random": lambda: random.Random(3),
}


@pytest.mark.parametrize("kind", GENERATORS)
@pytest.mark.parametrize(
    "owner",
    [
        "dataset",
        "subset",
        "transform",
        "transforms",
        "sampler",
        "batch sampler",
        "bound method",
        "partial",
        "loader",
    ],
)
def test_generators_of_numpy_and_python_are_restored(kind, owner):
    """The next draw is the first one again."""
    generator = GENERATORS[kind]()
    expected = draw(GENERATORS[kind]())
    data, sampler = Augmented(None), RandomSampler(range(4))
    loader = DataLoader(data, sampler=sampler)
    if owner == "dataset":
        data.noise = generator
    elif owner == "subset":
        loader = DataLoader(Subset(Augmented(generator), [0, 1]))
    elif owner == "transform":
        data.transform = Augmented(generator)
    elif owner == "transforms":
        data.transform = Augmented(None)
        data.transform.transforms = [Augmented(None), Augmented(generator)]
    elif owner == "sampler":
        sampler.rng = generator
    elif owner == "batch sampler":
        loader.batch_sampler.rng = generator
    elif owner == "bound method":
        loader = DataLoader(data, collate_fn=Augmented(generator).collate)
    elif owner == "partial":
        loader = DataLoader(data, collate_fn=functools.partial(draw, generator))
    else:
        loader.rng = generator
    with preserve_rng([loader]):
        draw(generator)
    assert draw(generator) == expected


def test_a_seed_sequence_and_a_bit_generator_are_no_obstacle():
    bits, data = np.random.PCG64(3), Augmented(np.random.SeedSequence(3))
    data.bits, data.module = bits, np.random
    first = np.random.PCG64(3).random_raw()
    with preserve_rng([DataLoader(data)]):
        bits.random_raw(2)
    assert bits.random_raw() == first
