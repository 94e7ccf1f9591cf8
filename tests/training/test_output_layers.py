"""New scales that output layers absorb: predictions stay, or the fit is refused."""

import math

import pytest
import torch
from fine_tuning import LayeredNet
from lightning.pytorch.callbacks import WeightAveraging
from small_training import SmallData, baseline_weights, per_target_scales, quiet_trainer
from torch import nn
from torch.utils.data import DataLoader, Subset

from lightning_scaler import TargetScaler
from lightning_scaler.molecules.datamodule import MoleculesDataModule
from lightning_scaler.molecules.model import MoleculesModel

ENERGY = {"energy": "readouts.energy"}


def fit(folder, net, data, more=(), checkpoint=None, options=None, **settings):
    callback = TargetScaler(**{"targets": ["energy", "charges"], **settings})
    defaults = {"max_epochs": 0, "limit_val_batches": 0, "callbacks": [callback, *more]}
    trainer = quiet_trainer(folder, **{**defaults, **(options or {})})
    trainer.fit(net, data, ckpt_path=checkpoint)
    return trainer


def absorb(folder, net, data, **options):
    """Fit new scales of the energy alone."""
    return fit(folder, net, data, **{"refit": "scales", "output_layers": ENERGY, **options})


def physical(net, data):
    """Values and gradients of all predictions without the baseline, which hides their digits."""
    batch = data.train.items
    systems = [system.to(dtype=next(net.parameters()).dtype) for system, _ in batch]
    net.eval()
    found = net.scaler.convert(systems, net(systems), "model", "physical", baseline=False)
    net.train()
    energy, charges = found["energy"].block(), found["charges"].block()
    parts = [energy.values, energy.gradient("positions").values, charges.values]
    return [part.detach().flatten() for part in parts]


def parameters(net):
    return {name: parameter.detach().clone() for name, parameter in net.named_parameters()}


def unchanged(net, before):
    return all(torch.equal(parameter, before[name]) for name, parameter in net.named_parameters())


NEW = {"factors": {"energy": 3.0}}


@pytest.fixture(params=[torch.float64, torch.float32], ids=["float64", "float32"])
def net(request, tmp_path):
    net = LayeredNet().to(request.param)
    fit(tmp_path, net, SmallData())
    return net


def test_new_scales_keep_predictions_and_the_baseline(tmp_path, net, capsys):
    data = SmallData(**NEW)
    before, weights = physical(net, data), parameters(net)
    (old,), charges = (per_target_scales(net.scaler, name) for name in ("energy", "charges"))
    contributions = net.scaler.targets["energy"].weights[(0,)]
    absorb(tmp_path, net, data)
    (new,) = per_target_scales(net.scaler, "energy")
    assert new > 100 * old
    assert torch.equal(net.scaler.targets["energy"].weights[(0,)], contributions)
    assert per_target_scales(net.scaler, "charges") == charges
    for name, parameter in net.named_parameters():
        factor = old / new if name.startswith("readouts.energy") else 1.0
        torch.testing.assert_close(parameter.detach(), weights[name] * factor)
    double = before[0].dtype == torch.float64
    for ours, theirs in zip(physical(net, data), before, strict=True):
        allowed = 1e-12 if double else 1e-5
        torch.testing.assert_close(ours, theirs, rtol=0.0, atol=allowed * theirs.abs().max().item())
    line = f"refit='scales' replaced the scales of energy (multiplied by {new / old:.3g}; the "
    output = capsys.readouterr().out
    assert line in output
    assert "fitted to the training data: energy; kept from before: charges" in output


def test_the_new_scale_is_the_rms_after_the_old_baseline(tmp_path, net):
    (weights,) = baseline_weights(net.scaler, "energy")
    data = SmallData(**NEW)
    absorb(tmp_path, net, data)
    left = [
        (numbers["energy"].item() - math.fsum(weights[z] for z in system.types.tolist()))
        / len(system)
        for system, numbers in data.train.items
    ]
    expected = math.sqrt(math.fsum(x * x for x in left) / len(left))
    assert per_target_scales(net.scaler, "energy") == [pytest.approx(expected, rel=1e-9)]
    assert net.scaler.mean_squares["energy"] == pytest.approx(1.0)


def test_fixed_scales_can_be_absorbed_too(tmp_path, net):
    before = physical(net, SmallData())
    absorb(tmp_path, net, SmallData(), fixed_scales={"energy": 0.5})
    assert per_target_scales(net.scaler, "energy") == [0.5]
    for ours, theirs in zip(physical(net, SmallData()), before, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_training_goes_on_with_the_multiplied_parameters(tmp_path, net):
    absorb(tmp_path, net, SmallData(**NEW), options={"max_epochs": 1})
    assert net.steps == 6


def refused(folder, net, data, message, **options):
    before, scales = parameters(net), net.scaler.get_extra_state()
    with pytest.raises(ValueError, match=message):
        absorb(folder, net, data, **options)
    assert unchanged(net, before)
    assert torch.equal(net.scaler.get_extra_state(), scales)


class OffsetNet(LayeredNet):
    """Energies with a small offset that is not a parameter of the layer."""

    def energies(self, features):
        return super().energies(features) + 1e-9


class DirectNet(LayeredNet):
    """Gradients that are not those of the energies."""

    def slope(self, atomic, r):
        return self.hidden(torch.cat([r, r[:, :1]], 1))[:, :3]


class CoupledNet(LayeredNet):
    """The layer of the energy takes part in the charges."""

    def charges(self, features):
        return super().charges(features) + self.readouts["energy"].bias


DEEP = nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 1))


@pytest.mark.parametrize(
    ("make", "target"),
    [
        (lambda: LayeredNet(DEEP), "energy"),
        (OffsetNet, "energy"),
        (DirectNet, "energy"),
        (CoupledNet, "charges"),
    ],
    ids=["several layers", "an offset outside", "gradients of its own", "two targets"],
)
def test_a_layer_that_does_not_keep_predictions_is_refused(tmp_path, make, target):
    net = make().double()
    fit(tmp_path, net, SmallData())
    message = rf"output_layers=.*predicts something else: '{target}' by up to .* as before. Name"
    refused(tmp_path, net, SmallData(**NEW), message)


def test_shared_parameters_and_unknown_layers_are_refused(tmp_path):
    net = LayeredNet()
    net.readouts["energy"].bias = net.readouts["charges"].bias
    fit(tmp_path, net, SmallData())
    refused(tmp_path, net, SmallData(**NEW), r"shares parameters with \['readouts.charges.bias'\]")
    net = LayeredNet()
    fit(tmp_path, net, SmallData())
    options = {"output_layers": {"energy": "readout.energy"}}
    refused(tmp_path, net, SmallData(), r"no submodule .*mean 'readouts.energy'\?", **options)
    options = {"output_layers": {"enrgy": "readouts.energy"}}
    refused(tmp_path, net, SmallData(), r"names the target 'enrgy'.*'energy'\?", **options)
    layers = {"energy": "readouts.energy", "charges": "readouts.energy"}
    refused(tmp_path, net, SmallData(), "shares parameters with that of", output_layers=layers)


def test_scales_that_change_by_several_factors_are_refused(tmp_path, net):
    data = SmallData()
    for system, numbers in data.train.items:
        numbers["charges"] = numbers["charges"] * system.types
    layers = {"charges": "readouts.charges"}
    refused(tmp_path, net, data, "'charges': expected one ratio", output_layers=layers)


def test_a_change_of_units_is_one_ratio_for_all_types(tmp_path):
    net, data = LayeredNet().double(), SmallData(factors={"charges": 8.0})
    fit(tmp_path, net, SmallData(), baseline="none", targets=["energy", "charges"])
    before = physical(net, data)
    options = {"baseline": "none", "output_layers": {"charges": "readouts.charges"}}
    old = per_target_scales(net.scaler, "charges")
    absorb(tmp_path, net, data, **options)
    assert per_target_scales(net.scaler, "charges") == [8.0 * scale for scale in old]
    for ours, theirs in zip(physical(net, data), before, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


def test_a_resumed_run_finds_its_scales_and_another_one_is_refused(tmp_path):
    net, path = LayeredNet(), tmp_path / "net.ckpt"
    fit(tmp_path, net, SmallData())
    absorb(tmp_path, net, SmallData(**NEW), options={"max_epochs": 1}).save_checkpoint(path)
    resumed = LayeredNet()
    absorb(tmp_path, resumed, SmallData(**NEW), checkpoint=path, options={"max_epochs": 2})
    assert torch.equal(resumed.scaler.get_extra_state(), net.scaler.get_extra_state())
    assert resumed.steps == 6
    with pytest.raises(ValueError, match=r"state of the optimizer in the checkpoint.*leave out ck"):
        absorb(tmp_path, LayeredNet(), SmallData(), checkpoint=path, options={"max_epochs": 2})


def test_averaged_weights_are_refused(tmp_path, net):
    message = "refit='scales' multiplies parameters, of which WeightAveraging already has a copy"
    refused(tmp_path, net, SmallData(**NEW), message, more=[WeightAveraging()])


class StillNet(LayeredNet):
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.0)


def test_a_dev_run_keeps_predictions_and_leaves_final_scales(tmp_path):
    net = StillNet().double()
    fit(tmp_path, net, SmallData())
    before = physical(net, SmallData())
    absorb(tmp_path, net, SmallData(**NEW), options={"fast_dev_run": 1})
    assert net.steps == 1
    assert not net.scaler.settings.provisional
    assert net.scaler.settings.unseen_types == "error"
    for ours, theirs in zip(physical(net, SmallData()), before, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-10)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"refit": "scales"}, "refit='scales' and output_layers, such as"),
        ({"output_layers": ENERGY}, "need each other, got refit=False and output_layers="),
        ({"refit": "scales", "output_layers": ["energy"]}, "the name of a submodule for each"),
        ({"refit": "scales", "output_layers": {"energy": 1}}, "the name of a submodule for each"),
    ],
)
def test_settings_of_output_layers_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        TargetScaler(**settings)


class FewMolecules(MoleculesDataModule):
    def train_dataloader(self):
        few = Subset(self.dataset("train"), range(40))
        return DataLoader(few, 20, collate_fn=super().train_dataloader().collate_fn)


@pytest.mark.slow
def test_the_readout_of_the_embedded_network_absorbs_a_new_scale(tmp_path):
    data, model = MoleculesDataModule(), MoleculesModel().double()
    fit(tmp_path, model, data, targets=None, intensive_targets=["dipole"])
    options = {"targets": None, "intensive_targets": ["dipole"]}
    (old,) = per_target_scales(model.scaler, "energy")
    before = parameters(model)
    layers = {"energy": "network.readouts.energy"}
    absorb(tmp_path, model, FewMolecules(), output_layers=layers, **options)
    (new,) = per_target_scales(model.scaler, "energy")
    weights = dict(model.named_parameters())
    changed = [name for name in before if not torch.equal(before[name], weights[name])]
    assert changed == ["network.readouts.energy.weight"]
    torch.testing.assert_close(weights[changed[0]], before[changed[0]] * (old / new))
