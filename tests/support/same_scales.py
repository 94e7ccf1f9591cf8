"""Comparison of two scalers in all that they show and convert."""

import copy
from dataclasses import replace

import torch
from builders import system
from metatomic.torch import System
from small_training import target_maps

from lightning_scaler import Scaler

SEEN = [system(1), system(6), system(8)]
UNSEEN = [system(9)]


def assert_same_scales(first: Scaler, second: Scaler, rtol: float = 0.0) -> None:
    """Compare scalers of the small data: scales, those of unseen types, and baselines."""
    assert first.scales.keys() == second.scales.keys()
    for name, scales in first.scales.items():
        assert scales.keys == second.scales[name].keys
        for ours, theirs in zip(scales.blocks(), second.scales[name].blocks(), strict=True):
            assert ours.samples == theirs.samples
            assert ours.properties == theirs.properties
            torch.testing.assert_close(ours.values, theirs.values, rtol=rtol, atol=0.0)
    both = [copy.deepcopy(scaler) for scaler in (first, second)]
    for scaler in both:
        scaler.settings = replace(scaler.settings, unseen_types="pooled")
    for source, value, systems, baseline, allowed in (
        ("loss", 1.0, SEEN + UNSEEN, False, rtol),
        ("model", 1.0, SEEN + UNSEEN, False, rtol),
        ("loss", 0.0, SEEN, True, max(rtol, 1e-10)),
    ):
        pairs = zip(
            *(_in_physical_units(scaler, source, value, systems, baseline) for scaler in both),
            strict=True,
        )
        for ours, theirs in pairs:
            torch.testing.assert_close(ours, theirs, rtol=allowed, atol=0.0)


def _in_physical_units(
    scaler: Scaler, source: str, value: float, systems: list[System], baseline: bool
) -> list[torch.Tensor]:
    """Systems of one atom whose targets are all the same number in loss or model space."""
    n = len(systems)
    shapes = {"energy": (n,), "gradient": (n, 3), "dipole": (n, 3), "polarizability": (n, 6)}
    numbers = {name: torch.full(shape, value).double() for name, shape in shapes.items()}
    maps = target_maps([1] * n, {**numbers, "charges": numbers["energy"].clone()})
    maps = {name: maps[name] for name in scaler.scales}
    converted = scaler.convert(systems, maps, source, "physical", baseline=baseline)
    return [block.values for tensor in converted.values() for block in tensor.blocks()]
