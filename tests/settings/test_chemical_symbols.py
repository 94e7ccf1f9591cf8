"""Atomic types are given as integers or as chemical symbols, wherever a user gives them."""

import numpy as np
import pytest
from builders import atom_samples, atom_target, structure_target, system

from lightning_scaler import CompositionBaseline, ScaleAccumulator, TargetScaler

# An O atom with the charge 4, and H2O with the charges 1, 7 and -4.
SYSTEMS = [system(8), system(1, 1, 8)]
CHARGES = atom_target([4.0, 1.0, 7.0, -4.0], atom_samples(1, 3))
ENERGY = structure_target([-2000.0, -2030.0])


def test_fixed_scales_of_an_accumulator():
    accumulator = ScaleAccumulator()
    accumulator.update(SYSTEMS, {"charges": CHARGES})
    # The RMS of O would be 4, that of H sqrt((1 + 49) / 2) = 5.
    fixed = {"charges": {"O": np.float32(0.5), 1: 2}}
    block = accumulator.compute(fixed_scales=fixed).per_target_scales["charges"].block()
    assert dict(
        zip(block.samples.column("atomic_type").tolist(), block.values[:, 0].tolist(), strict=True)
    ) == {1: 2.0, 8: 0.5}


def test_fixed_weights_of_a_composition():
    accumulator = ScaleAccumulator(
        baseline=CompositionBaseline(fixed={"energy": {"H": -10, 8: -1990}})
    )
    accumulator.update(SYSTEMS, {"energy": ENERGY})
    # -10 is left of O and -20 of H2O, per atom -10 and -20 / 3.
    expected = np.sqrt((100 + 400 / 9) / 2)
    scale = accumulator.compute().per_target_scales["energy"].block().values.item()
    assert scale == pytest.approx(expected, rel=1e-12)


def test_settings_of_the_callback():
    callback = TargetScaler(
        fixed_scales={"charges": {"H": 2, "O": 0.5}}, fixed_baseline={"energy": {"H": -10.0}}
    )
    assert callback.fixed_scales == {"charges": {1: 2.0, 8: 0.5}}
    assert callback.baseline.fixed == {"energy": {1: -10.0}}
    with pytest.raises(ValueError, match="type 8 is given twice, as 8 and 'O'; keep one of them"):
        TargetScaler(fixed_scales={"charges": {8: 0.5, "O": 0.5}})
    with pytest.raises(ValueError, match=r"got 'Hy'; did you mean 'H'\?"):
        TargetScaler(fixed_baseline={"energy": {"Hy": -10.0}})
