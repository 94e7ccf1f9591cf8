from itertools import pairwise

import torch
from builders import atom_samples, atom_target, mask_of, structure_target, system

from lightning_scaler import ScaleAccumulator
from lightning_scaler.batches import Batch, read_atoms
from lightning_scaler.data_pass.data_sample import DataSample

SYSTEMS = [system(8), system(1, 1, 8)]


def batch(number):
    energy = structure_target([float(number), -float(number)])
    return Batch(SYSTEMS, {"energy": energy}, {})


def test_batches_are_kept_at_even_distances():
    sample = DataSample(max_systems=10)  # five batches of two
    for number in range(23):
        sample.update(batch(number))
        kept = [*sample.kept]
        assert kept[0] == 0
        assert len(kept) <= 5
        assert len({b - a for a, b in pairwise(kept)}) <= 1
    assert kept == [0, 8, 16]


def test_the_number_of_values_is_bounded_but_one_batch_is_always_kept():
    sample = DataSample(max_values=3)  # a batch has two energies and four atoms
    for number in range(5):
        sample.update(batch(number))
    assert [*sample.kept] == [0]


def missing_values(targets, masks, n_batches=1):
    accumulator, sample = ScaleAccumulator(baseline=None), DataSample()
    for _ in range(n_batches):
        accumulator.update(SYSTEMS, targets, masks)
    assert sample.missing_values(accumulator.compute()) == {}
    sample.statistics = accumulator.statistics
    return sample.missing_values(accumulator.compute())


def test_missing_and_masked_values_are_counted_for_each_property():
    values = torch.tensor([[1.0, 2.0], [torch.nan, 3.0], [4.0, torch.nan], [torch.nan, 5.0]])
    charges = atom_target(values, atom_samples(1, 3))
    energy = structure_target([1.0, 2.0])
    masks = {"energy": mask_of(energy, [[[True], [False]]])}
    found = missing_values({"charges": charges, "energy": energy}, masks, n_batches=2)
    assert found["charges"].share == 3 / 8
    assert found["charges"].by_property == [0.5, 0.25]
    assert found["energy"] == (0.5, [0.5])
    assert "energy/positions" not in found


def test_missing_values_of_gradients_are_counted_whatever_the_mask_of_the_values_is():
    forces = [[[0.1, 0.2, 0.3]], [[torch.nan] * 3] * 3]
    energy = structure_target([1.0, torch.nan], gradient={"positions": forces})
    found = missing_values({"energy": energy}, {"energy": mask_of(energy, [[[1], [0]]])})
    assert found == {"energy": (0.5, [0.5]), "energy/positions": (0.75, [0.75])}


def test_systems_are_kept_only_for_additive_modules():
    for keep, expected in ((False, ()), (True, SYSTEMS)):
        sample = DataSample(keep_systems=keep)
        sample.update(batch(1))
        (kept,) = sample.kept.values()
        assert read_atoms(kept.batch.systems).systems == expected
        assert read_atoms(kept.batch.systems).types.tolist() == [8, 1, 1, 8]
