"""TensorMaps of declared targets."""

import pytest
import torch
from by_hand import double, near, rms

from lightning_scaler import PerStructure, ScaleAccumulator


@pytest.mark.parametrize(
    ("components", "parameter", "axes"),
    [
        ("xyz", "positions", (3, 3)),
        ("xyz", "strain", (3, 3, 3)),
        ("matrix", "positions", (3, 3, 3)),
        ("matrix", "strain", (3, 3, 3, 3)),
    ],
)
def test_vectors_and_matrices_have_gradients(components, parameter, axes):
    target = PerStructure(components=components, gradients={parameter: "slope"}, intensive=True)
    rows = 2 if parameter == "positions" else 1
    batch = {"z": torch.tensor([8, 1]), "n_atoms": torch.tensor([2])}
    shape = {"xyz": (3,), "matrix": (3, 3)}[components]
    numbers = [0.5 * n - 1.3 for n in range(torch.Size(shape).numel())]
    slopes = [0.25 * n - 7.0 for n in range(rows * torch.Size(axes).numel())]
    batch |= {"t": double(numbers).reshape(1, *shape), "slope": double(slopes).reshape(rows, *axes)}
    accumulator = ScaleAccumulator(targets={"t": target})
    accumulator.update(batch)
    scaler = accumulator.compute()
    scale = rms(*numbers)
    assert [scaler.targets["t"].mean_squares[parameter]] == near((rms(*slopes) / scale) ** 2)
    converted = scaler.convert(batch, batch)
    assert converted["slope"].flatten().tolist() == near(*(slope / scale for slope in slopes))
