"""Forces, virials and second derivatives of physical energies contain the additive module."""

import copy
import warnings

import pytest
import torch
from builders import Springs, fit, labels, structure_target, system
from metatensor.torch import TensorBlock, TensorMap
from metatomic.torch import System

from lightning_scaler import ZBL, CompositionBaseline, Scaler

STEP = 1e-5
OPEN = torch.tensor([False] * 3)


def hydrogen(positions, cell=None, pbc=None):
    cell = torch.zeros(3, 3).double() if cell is None else cell
    return System(torch.tensor([1, 1]), positions, cell, OPEN if pbc is None else pbc)


def at(distance):
    return torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, distance]], dtype=torch.float64)


def energies(values):
    samples = labels("system", range(len(values)))
    return TensorMap(labels("_", [0]), [TensorBlock(values, samples, [], labels("energy", [0]))])


def scaler_with(module):
    """A scaler of two structures; the network's part does not matter here."""
    pairs = [system(1, 1, positions=at(d)) for d in (0.7, 0.8)]
    return fit(pairs, {"energy": structure_target([5.0, 1.0])}, additive=module)


def physical_energy(scaler, systems, of_network=None):
    """The total energy of the systems, of a network that predicts 0 unless given."""
    zeros = torch.zeros(len(systems), 1, dtype=torch.float64)
    model = {"energy": energies(zeros if of_network is None else of_network)}
    return scaler.convert(systems, model, "model", "physical")["energy"].block().values


def test_two_hydrogen_atoms_at_45_pm_repel_each_other_with_44_ev_per_angstrom():
    scaler = scaler_with(ZBL())
    positions = at(0.45).requires_grad_()
    total = physical_energy(scaler, [hydrogen(positions)])
    (slope,) = torch.autograd.grad(total.sum(), positions)
    either = [physical_energy(scaler, [hydrogen(at(0.45 + d))]).item() for d in (STEP, -STEP)]
    by_differences = (either[0] - either[1]) / (2 * STEP)
    # The repulsion alone: 43.89 eV/Å.
    assert by_differences == pytest.approx(-43.8936, abs=1e-4)
    expected = torch.tensor([[0, 0, -by_differences], [0, 0, by_differences]]).double()
    torch.testing.assert_close(slope, expected, rtol=1e-7, atol=1e-7)


def test_the_part_of_the_network_is_differentiated_with_its_scale_beside_the_module():
    scaler = scaler_with(ZBL())
    sigma = scaler.per_target_scales["energy"].block().values.item()
    positions = at(0.45).requires_grad_()
    of_network = positions.square().sum().reshape(1, 1)
    total = physical_energy(scaler, [hydrogen(positions)], of_network)
    (slope,) = torch.autograd.grad(total.sum(), positions)
    # d(σ r²)/dr of the second atom is 2 σ 0.45; the repulsion is that of the test above.
    assert slope[1, 2].item() == pytest.approx(2 * sigma * 0.45 - 43.8936, abs=1e-4)


@pytest.mark.parametrize("source", ["loss", "physical"])
def test_every_direction_is_differentiated(source):
    scaler = scaler_with(ZBL())
    sigma = scaler.per_target_scales["energy"].block().values.item()
    positions = at(0.45).requires_grad_()
    zeros = {"energy": energies(torch.zeros(1, 1).double())}
    target = "physical" if source == "loss" else "model"
    values = scaler.convert([hydrogen(positions)], zeros, source, target)["energy"].block().values
    (slope,) = torch.autograd.grad(values.sum(), positions)
    expected = -43.8936 if source == "loss" else 43.8936 / sigma
    assert slope[1, 2].item() == pytest.approx(expected, rel=1e-5)


def test_second_derivatives_contain_the_module():
    scaler = scaler_with(ZBL())

    def slope(distance):
        positions = at(distance).requires_grad_()
        total = physical_energy(scaler, [hydrogen(positions)]).sum()
        return positions, torch.autograd.grad(total, positions, create_graph=True)[0]

    positions, gradient = slope(0.45)
    (curvature,) = torch.autograd.grad(gradient[1, 2], positions)
    either = [slope(0.45 + d)[1][1, 2].item() for d in (STEP, -STEP)]
    assert curvature[1, 2].item() == pytest.approx((either[0] - either[1]) / (2 * STEP), rel=1e-6)


CELL = torch.tensor([[1.3, 0.1, 0.0], [0.0, 1.5, 0.2], [0.3, 0.0, 1.4]]).double()
PERIODIC = torch.tensor([True] * 3)


class WithoutGraph(torch.nn.Module):
    """ZBL as a program without autograd would compute it: values and gradients are numbers."""

    def __init__(self, keep=("positions", "strain")):
        super().__init__()
        self.zbl, self.keep = ZBL(), keep

    def forward(self, systems, names):
        with torch.no_grad():
            block = self.zbl(systems, names)["energy"].block()
        numbers = TensorBlock(block.values, block.samples, [], block.properties)
        for parameter in self.keep:
            gradient = block.gradient(parameter)
            of_parameter = TensorBlock(
                gradient.values, gradient.samples, gradient.components, block.properties
            )
            numbers.add_gradient(parameter, of_parameter)
        return {"energy": TensorMap(labels("_", [0]), [numbers])}


class OwnLeaf(torch.nn.Module):
    """ZBL at detached positions, as networks do that compute their forces in forward."""

    def __init__(self):
        super().__init__()
        self.zbl = ZBL()

    def forward(self, systems, names):
        detached = [
            System(s.types, s.positions.detach().requires_grad_(), s.cell.detach(), s.pbc)
            for s in systems
        ]
        with torch.enable_grad():
            return self.zbl(detached, names)


MODULES = [ZBL(), WithoutGraph(), OwnLeaf()]


@pytest.mark.parametrize("module", MODULES, ids=lambda m: type(m).__name__)
def test_virials_by_strain_equal_finite_differences_for_any_kind_of_module(module):
    scaler = scaler_with(module)

    def total(strain):
        other = hydrogen(at(0.45))
        strained = hydrogen(at(0.9) @ strain + 0.1, CELL @ strain, PERIODIC)
        return physical_energy(scaler, [other, strained])[1, 0]

    strain = torch.eye(3, dtype=torch.float64, requires_grad=True)
    (virial,) = torch.autograd.grad(total(strain), strain)
    assert virial.abs().max() > 1.0
    for row in range(3):
        for column in range(3):
            moved = torch.zeros(3, 3, dtype=torch.float64)
            moved[row, column] = STEP
            either = [total(torch.eye(3).double() + sign * moved).item() for sign in (1, -1)]
            expected = (either[0] - either[1]) / (2 * STEP)
            assert virial[row, column].item() == pytest.approx(expected, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("module", MODULES, ids=lambda m: type(m).__name__)
def test_only_systems_whose_positions_require_a_gradient_get_one(module):
    scaler = scaler_with(module)
    positions = at(0.45).requires_grad_()
    total = physical_energy(scaler, [hydrogen(at(0.5)), hydrogen(positions)])
    (slope,) = torch.autograd.grad(total.sum(), positions)
    assert slope[1, 2].item() == pytest.approx(-43.8936, abs=1e-4)


def test_float32_positions_of_a_float64_module():
    scaler = scaler_with(ZBL())
    positions = at(0.45).float().requires_grad_()
    single = System(torch.tensor([1, 1]), positions, torch.zeros(3, 3), OPEN)
    (slope,) = torch.autograd.grad(physical_energy(scaler, [single]).sum(), positions)
    assert slope.dtype == torch.float32
    assert slope[1, 2].item() == pytest.approx(-43.8936, rel=1e-5)


@pytest.mark.parametrize("module", [WithoutGraph(()), WithoutGraph(("positions",))])
def test_a_module_that_cannot_be_differentiated_is_named_once(module):
    scaler = scaler_with(module)
    cell = CELL.clone().requires_grad_()
    periodic = hydrogen(at(0.45).requires_grad_(), cell, PERIODIC)
    with pytest.warns(UserWarning, match=r"WithoutGraph: autograd cannot follow.*'energy'"):
        physical_energy(scaler, [periodic])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        physical_energy(scaler, [periodic])


def test_no_graph_where_no_position_requires_a_gradient():
    scaler = scaler_with(ZBL())
    assert not physical_energy(scaler, [hydrogen(at(0.45))]).requires_grad
    with torch.no_grad():
        positions = at(0.45).requires_grad_()
        assert not physical_energy(scaler, [hydrogen(positions)]).requires_grad


def test_the_parameters_of_the_module_stay_frozen():
    scaler = scaler_with(Springs(k=0.5))
    positions = at(0.45).requires_grad_()
    total = physical_energy(scaler, [hydrogen(positions)])
    total.sum().backward()
    # 2 k r
    assert positions.grad[1, 2].item() == pytest.approx(0.45)
    parameters = list(scaler.additive.module.parameters())
    assert [(p.requires_grad, p.grad) for p in parameters] == [(False, None)]


def test_explicit_gradients_of_predictions_and_autograd_agree():
    pairs = [system(1, 1, positions=at(d)) for d in (0.7, 0.8)]
    steep = {"positions": [[[0.0] * 3] * 2] * 2}
    target = {"energy": structure_target([5.0, 1.0], gradient=steep)}
    scaler = fit(pairs, target, additive=ZBL(), baseline=CompositionBaseline())
    positions = at(0.45).requires_grad_()
    one = [hydrogen(positions)]
    zero = structure_target([0.0], gradient={"positions": [[[0.0] * 3] * 2]})
    block = scaler.convert(one, {"energy": zero}, "model", "physical")["energy"].block()
    (slope,) = torch.autograd.grad(block.values.sum(), positions)
    torch.testing.assert_close(block.gradient("positions").values[..., 0], slope)


def test_targets_in_loss_space_have_no_graph():
    from lightning_scaler.scaling import targets_to_loss

    scaler = scaler_with(ZBL())
    one = [hydrogen(at(0.45).requires_grad_())]
    in_loss = targets_to_loss(scaler, one, {"energy": structure_target([1.0])})
    assert not in_loss["energy"].block().values.requires_grad


def test_the_fit_takes_systems_whose_positions_require_a_gradient():
    pairs = [hydrogen(at(d).requires_grad_()) for d in (0.7, 0.8)]
    scaler = fit(pairs, {"energy": structure_target([5.0, 1.0])}, additive=ZBL())
    expected = scaler_with(ZBL()).per_target_scales["energy"].block().values
    sigma = scaler.per_target_scales["energy"].block().values
    assert torch.equal(sigma, expected)
    assert not sigma.requires_grad


def test_restored_and_copied_modules_are_differentiated(tmp_path):
    scaler = scaler_with(ZBL())
    scaler.save(tmp_path / "scaler")
    for other in (copy.deepcopy(scaler), Scaler.load(tmp_path / "scaler", additive=ZBL())):
        positions = at(0.45).requires_grad_()
        total = physical_energy(other, [hydrogen(positions)])
        (slope,) = torch.autograd.grad(total.sum(), positions)
        assert slope[1, 2].item() == pytest.approx(-43.8936, abs=1e-4)
