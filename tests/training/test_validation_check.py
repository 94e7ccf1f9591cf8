"""Validation data in other units than the training data, or of another size."""

import re
import warnings

import pytest
import torch
from lightning.pytorch import LightningModule
from small_training import (
    SmallData,
    SmallDataset,
    SmallNet,
    collate,
    quiet_trainer,
    scaler_callback,
)
from torch.utils.data import DataLoader

from lightning_scaler import PerStructure, ScaleAccumulator, TargetScaler
from lightning_scaler.training.validation_check import UNITS, ValidationCheck

OPENING = "validation data are much larger or smaller than the scales"
KCAL = 23.0605


class OtherData(SmallData):
    """The training data, and as many validation data as are asked for, from the same source."""

    def __init__(self, n_validation=120, batch_size=24, factors=None, per_atom=False):
        super().__init__(120, batch_size)
        self.held_out = SmallDataset(n_validation, 0, factors)
        if per_atom:
            for system, numbers in self.held_out.items:
                numbers["energy"] = numbers["energy"] / len(system)


def messages(run):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run()
    return [str(w.message) for w in caught if str(w.message).startswith(OPENING)]


def fit(folder, data, net=None, callback=None, **options):
    callbacks = [scaler_callback() if callback is None else callback]
    trainer = quiet_trainer(folder, callbacks=callbacks, **{"max_epochs": 1, **options})
    return messages(lambda: trainer.fit(SmallNet() if net is None else net, data))


@pytest.mark.slow
def test_the_same_units_give_no_warning(tmp_path):
    assert fit(tmp_path, OtherData()) == []


def test_energies_in_another_unit_are_named_with_the_ratio_of_units(tmp_path):
    data = OtherData(factors={"energy": KCAL})
    (message,) = fit(tmp_path, data, max_epochs=2, num_sanity_val_steps=0)
    # The baseline, which is that of totals, is subtracted first, so the RMS itself says nothing.
    assert re.search(
        r"[\d.e+]+ for 'energy' \(23.1 times the data of the fit: near 23.06, kcal/mol per eV\)",
        message,
    )
    # The gradient is larger by the same factor than its own RMS in the training data.
    gradient = (
        r"([\d.]+) for 'energy/positions', where the training data have ([\d.]+) \(23.1 times"
    )
    found, expected = map(float, re.search(gradient, message).groups())
    assert found / expected == pytest.approx(KCAL, rel=0.02)
    assert "'dipole'" not in message


@pytest.mark.parametrize("factor", [1 / 27.2114, 627.509, 1 / 51.4221, 96.4853], ids=str)
def test_smaller_and_larger_units_of_a_target_without_a_baseline(tmp_path, factor):
    options = {"limit_train_batches": 0, "num_sanity_val_steps": -1}
    (message,) = fit(tmp_path, OtherData(factors={"dipole": factor}), **options)
    times = f"1/{1 / factor:.3g}" if factor < 1 else f"{factor:.3g}"
    unit = UNITS[next(known for known in UNITS if abs(known - max(factor, 1 / factor)) < 1e-3)]
    assert f"for 'dipole' ({times} times the data of the fit: near " in message
    assert f"{unit})" in message


@pytest.mark.slow
@pytest.mark.parametrize(("n_structures", "warned"), [(120, True), (96, False)])
def test_small_ratios_of_units_are_seen_in_many_structures(tmp_path, n_structures, warned):
    """Dipoles in e·bohr; 1.5 times as large are a matter of the data."""
    for factor, expected in ((1.88973, warned), (1.4, False)):
        data = OtherData(n_structures, factors={"dipole": factor})
        found = fit(tmp_path, data, num_sanity_val_steps=0)
        assert bool(found) == expected
        assert not found or "near 1.89, bohr per Å; 0.529 Å per bohr" in found[0]


def test_totals_and_energies_per_atom_are_told_apart(tmp_path):
    (message,) = fit(tmp_path, OtherData(per_atom=True), num_sanity_val_steps=0)
    assert "'energy'" in message
    # One to five atoms, in turn.
    assert "the ratio of values per atom to totals, 3 atoms on average)" in message


@pytest.mark.slow
def test_the_few_structures_of_the_sanity_check_must_be_very_different(tmp_path):
    none = {"limit_train_batches": 0, "max_epochs": 1}
    for batch_size, factor, warned in ((6, 5.0, False), (6, KCAL, True), (4, KCAL, False)):
        data = OtherData(batch_size=batch_size, factors={"dipole": factor})
        assert bool(fit(tmp_path, data, **none)) == warned


@pytest.mark.slow
def test_a_target_is_named_once_in_a_run(tmp_path):
    data = OtherData(factors={"dipole": KCAL, "charges": 2.2})
    sanity_check, validation = fit(tmp_path, data, max_epochs=3)
    assert "'dipole'" in sanity_check
    assert "'charges'" not in sanity_check
    assert "'charges'" in validation
    assert "'dipole'" not in validation


@pytest.mark.slow
def test_batches_without_targets_do_not_count(tmp_path):
    def without_half_of_the_targets(items):
        batch = collate(items)
        return batch if len(items) == 24 else {"system": batch["system"]}

    data = OtherData(24 + 20, factors={"dipole": KCAL})
    data.collate_fn = without_half_of_the_targets
    (message,) = fit(tmp_path, data)
    assert "'dipole'" in message
    trainer = quiet_trainer(tmp_path, callbacks=[scaler_callback()])
    net = SmallNet()
    trainer.fit(net, OtherData())
    data.batch_size = 20
    assert not messages(lambda: trainer.validate(net, data, verbose=False))


@pytest.mark.parametrize("sanity_steps", [0, 2])
def test_validation_data_without_any_target_are_warned_of_once(tmp_path, sanity_steps):
    class WithoutTargets(SmallData):
        def val_dataloader(self):
            return DataLoader(
                self.held_out, 4, collate_fn=lambda items: {"system": collate(items)["system"]}
            )

    trainer = quiet_trainer(
        tmp_path, callbacks=[scaler_callback()], max_epochs=3, num_sanity_val_steps=sanity_steps
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(SmallNet(), WithoutTargets())
    found = [str(w.message) for w in caught if "have none of the targets" in str(w.message)]
    assert len(found) == 1
    assert found[0].startswith("the validation data have none of the targets ['energy', 'dipole'")


@pytest.mark.parametrize(("several", "data"), [(False, "data"), (True, "data of rank 0")])
def test_the_data_of_rank_0_are_not_taken_for_those_of_all_processes(several, data):
    """The check sees the batches of rank 0 alone."""
    batch = collate(SmallData().train.items[:8])
    check, scaler = ValidationCheck(), ScaleAccumulator()
    scaler.update(batch["system"], {"dipole": batch["dipole"]})
    scaler = scaler.compute()
    check.add(scaler, batch["system"], {}, None)
    with pytest.warns(UserWarning, match=f"^the validation {data} have none of the targets"):
        check.finish(scaler, False, several)


@pytest.mark.slow
def test_validation_alone_is_compared_too(tmp_path):
    net = SmallNet()
    assert fit(tmp_path, OtherData(), net) == []
    trainer = quiet_trainer(tmp_path, callbacks=[scaler_callback()])
    data = OtherData(factors={"dipole": 1 / KCAL})
    (message,) = messages(lambda: trainer.validate(net, data, verbose=False))
    assert "'dipole'" in message


@pytest.mark.slow
def test_scales_that_were_kept_are_compared_with_the_first_training_batch_alone(tmp_path):
    net = SmallNet()
    fit(tmp_path, OtherData(), net)
    data = OtherData(factors={"dipole": KCAL})
    data.train = data.held_out
    trainer = quiet_trainer(tmp_path, callbacks=[scaler_callback()])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(net, data)
    (message,) = (str(w.message) for w in caught if "dipole" in str(w.message))
    assert message.startswith("the target scales that were kept may not suit these data: the RMS")
    assert "23.06, kcal/mol per eV" in message
    (line,) = re.findall(r"To hide this: (.*)$", message)
    assert line.startswith("warnings.filterwarnings('ignore', 'the target scales that were kept")


@pytest.mark.parametrize("settings", [{"enabled": False}, {"targets": ["charges"]}], ids=str)
def test_scales_of_1_and_targets_without_scales_are_not_compared(tmp_path, settings):
    class Charges(SmallNet):
        def forward(self, systems):
            found = super().forward(systems)
            return found if "enabled" in settings else {"charges": found["charges"]}

    callback = scaler_callback(
        **({"intensive_targets": []} if "targets" in settings else {}), **settings
    )
    data = OtherData(factors={"dipole": KCAL})
    assert fit(tmp_path, data, Charges(), callback) == []


def test_a_dev_run_is_not_compared(tmp_path):
    data = OtherData(factors={"dipole": KCAL})
    assert fit(tmp_path, data, fast_dev_run=2) == []


def test_fixed_scales_in_another_unit_are_seen(tmp_path):
    """Fixed in kcal/mol per atom, while the data are in eV."""
    callback = scaler_callback(fixed_scales={"charges": KCAL * 0.25})
    (message,) = fit(tmp_path, OtherData(), callback=callback, num_sanity_val_steps=0)
    assert "for 'charges', whose scale is fixed" in message


def test_a_validation_step_of_ones_own_and_hooks_see_each_batch_once(tmp_path):
    class Own(SmallNet):
        n_unpacked = 0

        def unpack_batch(self, batch):
            self.n_unpacked += 1
            return super().unpack_batch(batch)

        def validation_step(self, batch, batch_idx):
            systems, targets, masks = self.unpack_batch(batch)
            self.targets_to_loss(systems, targets, masks)

    net, data = Own(), OtherData(factors={"dipole": KCAL})
    (message,) = fit(tmp_path, data, net, num_sanity_val_steps=0)
    assert "'dipole'" in message
    assert net.n_unpacked == 5 + 5 + 5  # batches of the pass, of training, and of validation
    assert net._scaling_observer is None


class Theirs(LightningModule):
    """Energies of one number per atom, with steps of its own."""

    def __init__(self):
        super().__init__()
        self.one = torch.nn.Parameter(torch.ones(()))

    def forward(self, batch):
        return {"energy": self.one * batch["n_atoms"]}

    def training_step(self, batch, batch_idx):
        return (self(batch)["energy"] - batch["energy"]).square().mean()

    validation_step = training_step

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-3)


def batches(factor=1.0, n_batches=8):
    generator = torch.Generator().manual_seed(0)
    for _ in range(n_batches):
        n_atoms = torch.randint(8, 13, (16,), generator=generator)
        yield {
            "z": torch.ones(int(n_atoms.sum()), dtype=torch.int64),
            "n_atoms": n_atoms,
            "energy": factor * (n_atoms + torch.randn(16, generator=generator)).double(),
        }


def run_theirs(folder, *loaders):
    callback = TargetScaler(targets={"energy": PerStructure()}, baseline="none")
    trainer = quiet_trainer(folder, callbacks=[callback])
    return messages(lambda: trainer.fit(Theirs(), *loaders))


@pytest.mark.parametrize("factor", [1.0, KCAL])
def test_modules_with_steps_of_their_own(tmp_path, factor):
    loaders = [DataLoader(list(batches(f)), batch_size=None) for f in (1.0, factor)]
    found = run_theirs(tmp_path, *loaders)
    assert bool(found) == (factor != 1.0)
    assert not found or "23.06, kcal/mol per eV" in found[0]


def test_totals_in_the_place_of_energies_per_atom(tmp_path):
    per_atom = [{**batch, "energy": batch["energy"] / batch["n_atoms"]} for batch in batches()]
    loaders = [DataLoader(data, batch_size=None) for data in (per_atom, list(batches()))]
    (message,) = run_theirs(tmp_path, *loaders)
    assert re.search(r"near the ratio of totals to values per atom, (9.\d+|10.*) atoms on", message)


def test_batches_without_what_is_declared_are_not_compared(tmp_path):
    class Blind(Theirs):
        def validation_step(self, batch, batch_idx):
            """Needs nothing."""

    without = DataLoader([{"other": torch.ones(3)}] * 3, batch_size=None)
    callback = TargetScaler(targets={"energy": PerStructure()}, baseline="none")
    trainer = quiet_trainer(tmp_path, callbacks=[callback], num_sanity_val_steps=0)
    data = DataLoader(list(batches()), batch_size=None)
    with pytest.raises(RuntimeError, match="no prediction of 'energy' was found"):
        trainer.fit(Blind(), data, without)


@pytest.mark.slow
def test_the_line_in_the_message_hides_the_warning(tmp_path):
    data = OtherData(factors={"dipole": KCAL})
    (message,) = fit(tmp_path, data)
    (line,) = re.findall(r"To hide this: (warnings\.filterwarnings\(.*\))$", message)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        exec(line)
        quiet_trainer(tmp_path, callbacks=[scaler_callback()]).fit(SmallNet(), data)
    assert not [w for w in caught if str(w.message).startswith(OPENING)]
