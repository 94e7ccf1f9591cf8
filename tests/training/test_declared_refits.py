"""Parts of a fit again, with declared targets, for modules with and without steps of their own."""

import copy

import pytest
import torch
from lightning.pytorch import LightningModule
from plain_module import DECLARED, batches, loader_of
from small_training import quiet_trainer

from lightning_scaler import PerStructure, TargetScaler, TargetScalingMixin
from lightning_scaler.steps import scaler_of

# Added to the energy for each atom, times its type.
SHIFT = 10.0


class Layered(LightningModule):
    """Energies with forces by autograd and populations, each from a layer of its own."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.embedding = torch.nn.Embedding(9, 3)
        self.energy, self.populations = torch.nn.Linear(3, 1), torch.nn.Linear(3, 2)

    def forward(self, batch):
        with torch.enable_grad():
            positions = batch["positions"].detach().requires_grad_()
            squares = positions.square().sum(1, keepdim=True)
            features = (self.embedding(batch["z"]) * (1.0 + squares)).tanh()
            atomic = self.energy(features)[:, 0]
            owner = torch.repeat_interleave(batch["n_atoms"])
            energy = atomic.new_zeros(len(batch["n_atoms"])).index_add(0, owner, atomic)
            (slope,) = torch.autograd.grad(energy.sum(), positions, create_graph=self.training)
        return {"energy": energy, "forces": -slope, "populations": self.populations(features)}

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


class WithSteps(Layered):
    def training_step(self, batch, batch_idx):
        output = self(batch)
        return sum((output[n] - batch[n]).square().mean() for n in ("energy", "forces"))

    def validation_step(self, batch, batch_idx):
        self(batch)


class Mixed(TargetScalingMixin, Layered):
    pass


class Moved(dict):
    """A batch that knows whether it has been moved to a device."""

    def to(self, device, **options):
        return Moved({**self, "moved": True})


def fit(folder, net, data, **settings):
    options = {"max_epochs": 0, "limit_val_batches": 0, **settings.pop("options", {})}
    callback = TargetScaler(**{"targets": DECLARED, **settings})
    trainer = quiet_trainer(folder, callbacks=[callback], **options)
    trainer.fit(net, loader_of(data), loader_of(data))


def shifted():
    found = batches()
    for batch in found:
        owner = torch.repeat_interleave(batch["n_atoms"])
        batch["energy"] = batch["energy"].index_add(0, owner, SHIFT * batch["z"].double())
    return found


def energies_of(scaler):
    """The scale, and the weights by type."""
    scales = scaler.targets["energy"]
    return float(scales.per_target[0]), scales.weights[(0,)][:, 0].clone()


def predictions(net, batch):
    if isinstance(net, TargetScalingMixin):
        return net.predict_step(batch)
    return {name: tensor.detach() for name, tensor in net(batch).items()}


@pytest.fixture(params=[WithSteps, Mixed])
def net(request, tmp_path):
    found = request.param().double()
    fit(tmp_path, found, batches(), options={"max_epochs": 1})
    return found


def test_a_new_baseline_follows_the_totals(tmp_path, net):
    scale, before = energies_of(scaler_of(net))
    fit(tmp_path, net, shifted(), refit="baseline")
    new_scale, after = energies_of(scaler_of(net))
    assert new_scale == scale
    # The data have all types from 1 to 8.
    expected = SHIFT * torch.arange(1, 9, dtype=torch.float64)
    torch.testing.assert_close(after - before, expected, rtol=0, atol=1e-9)


def test_a_correction_is_the_least_squares_fit_to_what_predictions_leave(tmp_path, net):
    data = shifted()
    _, before = energies_of(scaler_of(net))
    counts, errors = [], []
    for batch in data:
        owner = torch.repeat_interleave(batch["n_atoms"])
        of_batch = torch.zeros(len(batch["n_atoms"]), 8, dtype=torch.float64)
        ones = torch.ones(len(owner), dtype=torch.float64)
        counts.append(of_batch.index_put((owner, batch["z"] - 1), ones, accumulate=True))
        errors.append(batch["energy"] - predictions(net, batch)["energy"])
    solution = torch.linalg.lstsq(torch.cat(counts), torch.cat(errors)[:, None]).solution[:, 0]
    fit(tmp_path, net, data, refit="baseline", against="predictions")
    _, after = energies_of(scaler_of(net))
    torch.testing.assert_close(after - before, solution, rtol=0, atol=1e-9)


def test_new_scales_keep_predictions(tmp_path, net):
    (batch, *_) = batches()
    before, (scale, _) = predictions(net, batch), energies_of(scaler_of(net))
    fit(tmp_path, net, shifted(), refit="scales", output_layers={"energy": "energy"})
    assert energies_of(scaler_of(net))[0] > 5.0 * scale
    after = predictions(net, batch)
    for name in ("energy", "forces", "populations"):
        torch.testing.assert_close(after[name], before[name], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("refit", ["baseline", "types"])
def test_scales_that_are_kept_need_the_units_that_they_have(tmp_path, net, refit):
    gradients = {"positions": "-forces"}
    in_ev, in_mev = (
        {**DECLARED, "energy": PerStructure(gradients=gradients, unit=unit)}
        for unit in ("eV", "meV")
    )
    fit(tmp_path, net, batches(), targets=in_ev)
    with pytest.raises(ValueError, match="unit='eV', and it is declared with unit='meV'"):
        fit(tmp_path, net, batches(), targets=in_mev, refit=refit)


def test_targets_that_are_not_declared_any_more_are_warned_of(tmp_path, net):
    (batch, *_) = batches()
    before = predictions(net, batch)["populations"]
    with pytest.warns(UserWarning, match=r"scales of the targets \['populations'\].*model space"):
        fit(tmp_path, net, batches(), targets={"energy": DECLARED["energy"]})
    assert not torch.allclose(predictions(net, batch)["populations"], before)
    fit(tmp_path, net, batches())
    torch.testing.assert_close(predictions(net, batch)["populations"], before, rtol=0, atol=0)


def test_settings_of_targets_that_are_not_declared_any_more_are_not_compared(tmp_path):
    net, energy = Mixed().double(), {"energy": DECLARED["energy"]}
    gaps = [{**batch, "gap": batch["energy"] + 1.0} for batch in batches()]
    gap = PerStructure(intensive=True)
    fit(tmp_path, net, gaps, targets={**energy, "gap": gap}, fixed_scales={"gap": 2.0})
    with pytest.warns(UserWarning, match=r"scales of the targets \['gap'\]"):
        fit(tmp_path, net, gaps, targets=energy)
    with pytest.raises(ValueError, match=r"fixed_scales: gap was 2\.0 and is 3\.0"):
        fit(tmp_path, net, gaps, targets=energy, fixed_scales={"gap": 3.0})


def test_batches_are_moved_to_the_device_before_the_module_predicts(tmp_path, net):
    seen = []
    net.register_forward_pre_hook(lambda _, args: seen.append(args[0].get("moved")))
    data = [Moved(batch) for batch in shifted()]
    fit(tmp_path, net, data, refit="baseline", against="predictions")
    fit(tmp_path, net, data, refit="scales", output_layers={"energy": "energy"})
    # Each batch once, and one before and after the parameters are multiplied.
    assert seen == [True] * 6


def test_a_dev_run_that_fails_leaves_the_scales_as_they_were(tmp_path, net):
    before = scaler_of(net).get_extra_state()
    callback = TargetScaler(targets=DECLARED, refit="baseline")

    def fail(*_):
        raise KeyError("training")

    failing = copy.deepcopy(net)
    failing.on_train_epoch_start = fail
    trainer = quiet_trainer(tmp_path, callbacks=[callback], fast_dev_run=1, limit_val_batches=0)
    with pytest.raises(KeyError, match="training"):
        trainer.fit(failing, loader_of(shifted()), loader_of(shifted()))
    assert torch.equal(scaler_of(failing).get_extra_state(), before)
    # The same callback has nothing to undo after the next fit.
    trainer = quiet_trainer(tmp_path, callbacks=[callback], max_epochs=0)
    trainer.fit(net, loader_of(shifted()), loader_of(shifted()))
    assert not torch.equal(scaler_of(net).get_extra_state(), before)
