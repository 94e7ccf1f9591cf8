"""Units of the data: given once, kept with the scales, and shown in every table."""

from dataclasses import replace

import pytest
import torch
from builders import structure_target, system
from plain_module import DECLARED, OtherModule, collate_structures, structures
from small_training import SmallData, SmallNet, quiet_trainer, scaler_callback
from torch.utils.data import DataLoader

from lightning_scaler import PerStructure, ScaleAccumulator, Scaler, TargetScaler
from lightning_scaler.training.restored_settings import check_same_units

UNITS = {"energy": "eV", "energy/positions": "eV/Å", "dipole": "e Å"}


def fitted(folder, net=None, **settings):
    net = SmallNet() if net is None else net
    trainer = quiet_trainer(folder, callbacks=[scaler_callback(**settings)], max_epochs=0)
    trainer.fit(net, SmallData())
    return trainer, net


def test_tables_after_a_fit_have_the_units(tmp_path, capsys):
    fitted(tmp_path, units=UNITS)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["energy", "structure", "eV/atom"] in [line[:3] for line in lines]
    assert ["dipole", "structure", "e", "Å"] in [line[:4] for line in lines]
    assert ["energy", "eV"] in [line[:2] for line in lines]  # contributions of the baseline


def test_units_are_kept_in_checkpoints_and_files(tmp_path):
    trainer, net = fitted(tmp_path, units=UNITS)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    assert SmallNet.load_from_checkpoint(tmp_path / "last.ckpt").scaler.units == UNITS
    net.scaler.save(tmp_path / "scaler")
    assert Scaler.load(tmp_path / "scaler").units == UNITS


def test_a_state_without_units_loads(tmp_path):
    _, net = fitted(tmp_path)
    assert "units" not in net.scaler.state()
    scaler = Scaler()
    scaler.set_extra_state(net.scaler.state())
    assert scaler.units == {}


def test_units_may_be_added_to_restored_scales_and_not_changed(tmp_path):
    _, net = fitted(tmp_path)
    _, net = fitted(tmp_path, net, units=UNITS)
    assert net.scaler.units == UNITS
    words = "'energy': .* are for unit='eV', and it is declared with unit='meV'.*refit=True"
    with pytest.raises(ValueError, match=words):
        fitted(tmp_path, net, units={"energy": "meV"})
    fitted(tmp_path, net, units={"energy": "meV"}, refit=True)
    assert net.scaler.units["energy"] == "meV"


def test_other_units_of_other_targets_do_not_matter():
    check_same_units({"energy": "eV", "gap": "eV"}, {"energy": "eV", "charges": "e"})


def test_a_misspelled_target_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"units names the target 'enrgy'.*did you mean 'energy'"):
        fitted(tmp_path, units={"enrgy": "eV"})


def test_a_misspelled_gradient_is_named():
    accumulator = ScaleAccumulator(units={"energy/position": "eV/Å"})
    gradient = {"positions": [[[1.0, 0, 0]]]}
    accumulator.update([system(8)], {"energy": structure_target([1.0], gradient=gradient)})
    words = r"units names 'energy/position', a gradient that .* did you mean 'energy/positions'\?"
    with pytest.raises(ValueError, match=words):
        accumulator.compute()


def test_units_of_gradients_need_gradients():
    accumulator = ScaleAccumulator(units={"energy/positions": "eV/Å"})
    accumulator.update([system(8)], {"energy": structure_target([1.0])})
    words = r"units names 'energy/positions', a gradient .* do not have; known: \[\]"
    with pytest.raises(ValueError, match=words):
        accumulator.compute()


def test_units_of_gradients_that_kept_scales_have_need_no_new_gradients():
    """Energies alone, of another level of theory."""
    units, gradient = {"energy/positions": "eV/Å"}, {"positions": [[[1.0, 0, 0]]] * 3}
    before, now = (ScaleAccumulator(units=units, baseline="composition") for _ in ("before", "now"))
    systems, values = [system(8), system(1), system(1)], [1.0, 2.0, 3.0]
    before.update(systems, {"energy": structure_target(values, gradient=gradient)})
    now.update(systems, {"energy": structure_target(values)})
    assert now.refit(before.compute(), "baseline").units == units
    with pytest.raises(ValueError, match="units names 'energy/positions', a gradient"):
        now.compute()


def test_units_of_gradients_may_belong_to_batches_that_were_not_read():
    accumulator = ScaleAccumulator(units={"energy/positions": "eV/Å"})
    accumulator.update([system(8)], {"energy": structure_target([1.0])})
    assert accumulator.compute(complete=False).fitted


def test_a_unit_may_be_written_in_several_ways():
    targets = {"energy": PerStructure(unit="kJ mol⁻¹")}
    assert TargetScaler(targets=targets, units={"energy": "kJ*mol^-1"}).units
    check_same_units({"energy/positions": "eV/Å"}, {"energy/positions": "eV / A"})


def test_units_of_targets_that_are_not_fitted_are_allowed():
    accumulator = ScaleAccumulator(targets=["energy"], units={"energy": "eV", "gap": "eV"})
    target = structure_target([1.0])
    accumulator.update([system(8)], {"energy": target, "gap": target})
    assert set(accumulator.compute().targets) == {"energy"}


@pytest.mark.parametrize(
    ("units", "words"),
    [
        ("eV", "units: expected a mapping by target name, such as .* got 'eV'"),
        ({"energy": None}, "units of 'energy': expected a string such as 'eV', got None; leave"),
        ({"energy": ""}, "expected a string such as 'eV', got ''"),
    ],
)
def test_units_are_strings_by_target(units, words):
    with pytest.raises(TypeError, match=words):
        TargetScaler(units=units)


def test_units_of_a_declaration_count_too():
    targets = {"energy": PerStructure(unit="eV"), "gap": PerStructure(intensive=True)}
    callback = TargetScaler(targets=targets, units={"gap": "eV"})
    assert callback.units == {"energy": "eV", "gap": "eV"}
    with pytest.raises(ValueError, match="'energy': expected one unit, got 'eV' and 'Hartree'"):
        TargetScaler(targets=targets, units={"energy": "Hartree"})


BATCH = {"z": torch.tensor([8, 1]), "n_atoms": torch.tensor([1, 1])}


def statistics(path, unit, **parts):
    accumulator = ScaleAccumulator(targets={"energy": PerStructure(unit=unit)})
    accumulator.update({**BATCH, "energy": torch.tensor([-3.0, 6.0])})
    accumulator.save(path)


def test_statistics_files_have_the_units(tmp_path):
    statistics(tmp_path / "a", "eV")
    loaded = ScaleAccumulator.load(tmp_path / "a")
    assert loaded.units == loaded.fresh().units == loaded.compute().units == {"energy": "eV"}


def test_statistics_in_different_units_are_not_merged():
    one, two = (ScaleAccumulator(units={"energy": unit}) for unit in ("eV", "kcal/mol"))
    with pytest.raises(ValueError, match="'energy': expected one unit, got 'eV' and 'kcal/mol'"):
        one.merge(two)
    one.merge(ScaleAccumulator(units={"gap": "eV"}))
    assert one.units == {"energy": "eV", "gap": "eV"}


def test_statistics_with_and_without_declared_units_are_merged():
    one, two, other = (
        ScaleAccumulator({"energy": PerStructure(unit=unit)}) for unit in (None, "eV", "kcal/mol")
    )
    for accumulator in (one, two, other):
        accumulator.update({**BATCH, "energy": torch.tensor([-3.0, 6.0])})
    assert one.settings_differences(two) == []
    one.merge(two)
    assert one.compute().units == {"energy": "eV"}
    with pytest.raises(ValueError, match="'energy': expected one unit, got 'eV' and 'kcal/mol'"):
        one.merge(other)


def test_a_unit_that_is_declared_later_does_not_make_a_cache_useless(tmp_path, capsys):
    data = DataLoader(structures(40), batch_size=10, collate_fn=collate_structures)
    for unit in (None, "eV"):
        targets = {**DECLARED, "energy": replace(DECLARED["energy"], unit=unit)}
        callback = TargetScaler(targets=targets, cache=tmp_path / "statistics")
        net = OtherModule().double()
        options = {"callbacks": [callback], "max_epochs": 0, "limit_val_batches": 0}
        quiet_trainer(tmp_path, **options).fit(net, data, data)
    assert "is used, without a data pass" in capsys.readouterr().out
    assert net.target_scaler.units == {"energy": "eV"}
