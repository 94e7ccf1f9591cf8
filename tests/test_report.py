import io

import torch
from builders import atom_samples, atom_target, structure_target, system
from rich.console import Console

from lightning_scaler import CompositionBaseline, ScaleAccumulator
from lightning_scaler.report import errors_table, scales_table


def text_of(table):
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(table)
    return console.export_text()


def test_scales_are_told_per_type_with_the_rms_before_and_after():
    # Energies per atom 3 and 5, of O and H2O: RMS sqrt(17) = 4.123; charges 3 for both O, and
    # -1, 2 for H: RMS of O 3, of H sqrt(5/2) = 1.581.
    accumulator = ScaleAccumulator()
    systems = [system(8), system(1, 1, 8)]
    charges = atom_target([3.0, -1.0, 2.0, 3.0], atom_samples(1, 3))
    accumulator.update(systems, {"energy": structure_target([3.0, 15.0]), "charges": charges})
    lines = [line.split() for line in text_of(scales_table(accumulator.compute())).splitlines()]
    words = [[word for word in line if word != "│"] for line in lines]
    assert ["energy", "system/atom", "4.123", "–", "all", "4.123", "1"] in words
    assert ["charges", "atom", "2.398", "–", "1", "1.581", "1"] in words
    assert ["8", "3", "1"] in words


def test_many_types_are_cut_short():
    types = list(range(1, 31))
    accumulator = ScaleAccumulator(baseline=CompositionBaseline())
    values = torch.tensor([float(i) for i in range(60)]).double()
    samples = atom_samples(30, 30)
    accumulator.update([system(*types), system(*types)], {"q": atom_target(values, samples)})
    text = text_of(scales_table(accumulator.compute()))
    assert "… 18 more types" in text
    assert len(text.splitlines()) < 25


def test_errors_are_told_in_units_and_relative_to_the_spread():
    metrics = {
        "test/loss/dataloader_idx_1": 0.3,
        "test/energy/mae_per_atom/dataloader_idx_1": 0.0123,
        "test/energy/rmse_per_atom/dataloader_idx_1": 0.0456,
        "test/energy/relative_rmse_per_atom/dataloader_idx_1": 0.25,
        "test/energy/positions/rmse/dataloader_idx_1": 1.5,
    }
    text = text_of(errors_table("Errors", metrics, {"energy": "eV", "energy/positions": "eV/Å"}))
    lines = [line.split() for line in text.splitlines()]
    words = [[word for word in line if word != "│"] for line in lines]
    assert ["energy", "eV", "/", "atom", "0.0123", "0.0456", "25.0", "%"] in words
    assert ["energy/positions", "eV/Å", "1.5"] in words
    assert "loss" not in text
