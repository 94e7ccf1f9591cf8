import torch
from builders import atom_samples, atom_target, structure_target

from lightning_scaler.commands.predictions import joined


def test_systems_are_numbered_through():
    """Two batches, of two systems and of one; the last has positions gradients too."""
    first = {
        "energy": structure_target([1.0, 2.0], gradient={"positions": [[[1, 0, 0]], [[2, 0, 0]]]}),
        "charges": atom_target([0.1, 0.2], atom_samples(1, 1)),
    }
    second = {
        "energy": structure_target([3.0], gradient={"positions": [[[3, 0, 0], [4, 0, 0]]]}),
        "charges": atom_target([0.3, 0.4], atom_samples(2)),
    }
    together = joined([first, second])
    energy = together["energy"].block()
    assert energy.samples.values.reshape(-1).tolist() == [0, 1, 2]
    assert energy.values.reshape(-1).tolist() == [1.0, 2.0, 3.0]
    gradient = energy.gradient("positions")
    assert gradient.samples.column("sample").tolist() == [0, 1, 2, 2]
    assert torch.equal(gradient.values[:, 0, 0], torch.tensor([1.0, 2, 3, 4]).double())
    charges = together["charges"].block()
    assert charges.samples.values.tolist() == [[0, 0], [1, 0], [2, 0], [2, 1]]
