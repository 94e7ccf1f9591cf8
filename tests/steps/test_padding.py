"""Samples that a distributed sampler repeats as padding, against the sampler itself."""

import pytest
import torch
from builders import atom_samples, atom_target, structure_target
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, SequentialSampler

from lightning_scaler.steps.padding import drop_systems, padded_positions


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("batch_size", [1, 2, 5, None])
@pytest.mark.parametrize(("length", "world_size"), [(1, 3), (2, 1), (2, 5), (6, 3), (7, 2), (8, 3)])
def test_every_sample_is_counted_once_without_the_padding(
    length, world_size, batch_size, shuffle, drop_last
):
    drop_last = drop_last and length >= world_size
    data, counted, read = list(range(length)), [], []
    for rank in range(world_size):
        sampler = DistributedSampler(data, world_size, rank, shuffle, drop_last=drop_last)
        loader = DataLoader(data, batch_size, sampler=sampler)
        for number, batch in enumerate(loader):
            batch = torch.as_tensor(batch).reshape(-1).tolist()
            padded = padded_positions(loader, number, len(batch))
            read += batch
            counted += [i for position, i in enumerate(batch) if position not in padded]
    assert sorted(counted) == sorted(set(read))
    assert drop_last or sorted(counted) == data


def test_other_samplers_have_no_padding():
    data = list(range(3))
    sampler = DistributedSampler(data, 2, 1)

    class Own(BatchSampler):
        pass

    loaders = [
        data,
        DataLoader(data, 2),
        DataLoader(data, batch_sampler=Own(sampler, 2, False)),
        DataLoader(data, batch_sampler=BatchSampler(SequentialSampler(data), 2, False)),
    ]
    assert [padded_positions(loader, 0, 2) for loader in loaders] == 4 * [[]]
    given = DataLoader(data, batch_sampler=BatchSampler(sampler, 2, False))
    assert padded_positions(given, 0, 2) == [1]
    # If samples have several systems, the systems of a sample are not known.
    assert padded_positions(given, 0, 3) == []


def test_samples_and_gradients_of_dropped_systems_are_removed():
    gradient = {"positions": [[[1.0, 2, 3]], [[4.0, 5, 6], [7, 8, 9]], [[1.5, 2, 3]]]}
    targets = {
        "energy": structure_target([1.0, 2.0, 3.0], gradient=gradient),
        "charges": atom_target([1.0, 2.0, 3.0, 4.0], atom_samples(1, 2, 1)),
        "other": structure_target([1.0, 2.0, 3.0]),
    }
    predictions = {name: targets[name] for name in ("energy", "charges")}
    ours, theirs = drop_systems(predictions, targets, [1], 3)
    for tensors in (ours, theirs):
        energy = tensors["energy"].block()
        assert energy.values.reshape(-1).tolist() == [1.0, 3.0]
        rows = energy.gradient("positions").samples.values
        assert rows[:, 0].tolist() == [0, 1]
        assert energy.gradient("positions").values[:, 0, 0].tolist() == [1.0, 1.5]
        assert tensors["charges"].block().values.reshape(-1).tolist() == [1.0, 4.0]
        assert tensors["charges"].block().samples.values.tolist() == [[0, 0], [2, 0]]
    assert theirs["other"] is targets["other"]
    nothing = drop_systems(predictions, targets, [0, 1, 2], 3)[0]
    assert nothing["energy"].block().values.shape == (0, 1)
