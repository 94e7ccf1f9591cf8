"""Additive modules that act differently in training: the fit freezes them in evaluation mode."""

import copy

import pytest
import torch
from builders import Springs, fit, scale, single, structure_target, system
from metatensor.torch import TensorBlock
from small_training import SmallData, ZeroNet, quiet_trainer, scaler_callback

from lightning_scaler import Scaler

# Energies of 1/2 Σ r² = 2, 8 and 18; the residuals of the totals below are 1, -2 and 3.
SYSTEMS = [system(8, positions=[[2.0 * n, 0.0, 0.0]]) for n in (1, 2, 3)]
TARGET = {"energy": structure_target([3.0, 6.0, 21.0])}
RMS = (14 / 3) ** 0.5


class Dropping(Springs):
    """In training, half of the energies are 0 and the others twice as large."""

    def __init__(self):
        super().__init__(names=("energy",))
        self.dropout = torch.nn.Dropout(0.5)

    def forward(self, systems, names):
        of = super().forward(systems, names)["energy"].block()
        dropped = TensorBlock(self.dropout(of.values), of.samples, of.components, of.properties)
        dropped.add_gradient("positions", of.gradient("positions").copy())
        return {"energy": single(dropped)}


class Nested(Dropping):
    """The part that drops lies deeper, and was put in training mode by itself."""

    def __init__(self):
        super().__init__()
        self.dropout = torch.nn.Sequential(torch.nn.Sequential(torch.nn.Dropout(0.5)))
        self.eval()
        self.dropout[0].train()


class Normalising(Dropping):
    """In training, energies are normalised over the batch, and running means change."""

    def __init__(self):
        super().__init__()
        self.dropout = torch.nn.BatchNorm1d(1, eps=0.0, dtype=torch.float64)


KINDS = [Dropping, Nested, Normalising]


def in_loss_space(scaler):
    return scaler.convert(SYSTEMS, TARGET)["energy"].block().values[:, 0].tolist()


def assert_in_evaluation_mode(scaler):
    expected = [1.0 / RMS, -2.0 / RMS, 3.0 / RMS]
    for _ in range(3):
        assert in_loss_space(scaler) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_a_module_given_in_training_mode_gives_its_evaluation_numbers(kind):
    module = kind()
    scaler = fit(SYSTEMS, TARGET, additive=module)
    assert scale(scaler, "energy")[0] == pytest.approx([RMS], rel=1e-12)
    assert_in_evaluation_mode(scaler)
    assert_in_evaluation_mode(copy.deepcopy(scaler))


@pytest.mark.parametrize("kind", KINDS)
def test_the_module_given_is_left_as_it_was(kind):
    module = kind()
    modes = [part.training for part in module.modules()]
    before = copy.deepcopy(module.state_dict())
    in_loss_space(fit(SYSTEMS, TARGET, additive=module))
    assert [part.training for part in module.modules()] == modes
    assert True in modes
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


@pytest.mark.parametrize("kind", KINDS)
def test_training_mode_of_the_scaler_does_not_reach_the_module(kind):
    holder = torch.nn.ModuleDict({"scaler": fit(SYSTEMS, TARGET, additive=kind())})
    holder.train()
    assert_in_evaluation_mode(holder["scaler"])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", ["load", "set_additive", "constructor"])
def test_code_that_is_given_again_in_training_mode_gives_its_evaluation_numbers(
    tmp_path, kind, way
):
    scaler = fit(SYSTEMS, TARGET, additive=kind())
    scaler.save(tmp_path / "scaler")
    if way == "load":
        again = Scaler.load(tmp_path / "scaler", additive=kind().train())
    elif way == "set_additive":
        again = Scaler.load(tmp_path / "scaler")
        again.set_additive(kind().train())
    else:
        again = Scaler(additive=kind().train())
        again.load_state_dict(scaler.state_dict())
    assert_in_evaluation_mode(again)


@pytest.mark.slow
def test_a_trainer_fits_and_predicts_with_the_module_in_evaluation_mode(tmp_path):
    """What is added to predictions of zero, and the scales, are those of the springs alone."""
    energies, scales = [], []
    for module in (Springs(names=("energy",)), Dropping()):
        net, data = ZeroNet(), SmallData()
        trainer = quiet_trainer(tmp_path, callbacks=[scaler_callback(baseline=module)])
        trainer.fit(net, data)
        predictions = trainer.predict(net, data)
        energies.append(torch.cat([batch["energy"].block().values for batch in predictions]))
        scales.append(net.scaler.scales["energy"].block().values)
    # The shuffled pass sums in another order.
    torch.testing.assert_close(scales[1], scales[0], rtol=1e-9, atol=0.0)
    torch.testing.assert_close(energies[1], energies[0], rtol=1e-9, atol=0.0)
