"""Predicted gradients that are not the derivatives of predicted values: what can be seen, and said.

Energies are -100 Z for every atom and the squares of all positions, as in ``plain_module``.
"""

import math

import pytest
import torch
from lightning.pytorch import LightningModule
from plain_module import batches, loader_of
from small_training import quiet_trainer

from lightning_scaler import PerStructure, TargetScaler, TargetScalingMixin

FORCES = {"positions": "-forces"}
ENERGY = {"energy": PerStructure(gradients=FORCES)}


class Network(LightningModule):
    """Energies, with forces by autograd of the total; in a test, something is wrong with them."""

    begin_with_zeros = False

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.weights = torch.nn.Embedding(9, 2, dtype=torch.float64)
        if self.begin_with_zeros:
            torch.nn.init.zeros_(self.weights.weight)

    def energies(self, batch, positions):
        weights = self.weights(batch["z"])
        atomic = weights[:, 0] + weights[:, 1] * positions.square().sum(1)
        owner = torch.repeat_interleave(batch["n_atoms"])
        return atomic.new_zeros(len(batch["n_atoms"])).index_add(0, owner, atomic)

    def forward(self, batch):
        with torch.enable_grad():
            positions = batch["positions"].detach().requires_grad_()
            energy = self.energies(batch, positions)
            (gradient,) = torch.autograd.grad(energy.sum(), positions, create_graph=True)
        return self.output(batch, energy, -gradient)

    def output(self, batch, energy, forces):
        return {"energy": energy, "forces": forces}

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


def with_mixin(network):
    """The network with the steps of the mixin."""
    return type("WithMixin", (TargetScalingMixin, network), {})()


def with_steps(network):
    """The network with steps of its own, which the callback scales."""

    def training_step(self, batch, batch_idx):
        found = self(batch)
        return sum((found[name] - batch[name]).square().mean() for name in found)

    return type("WithSteps", (network,), {"training_step": training_step})()


BOTH = pytest.mark.parametrize("make", [with_mixin, with_steps])


def fit(folder, net, targets=ENERGY, data=None):
    trainer = quiet_trainer(folder, callbacks=[TargetScaler(targets=targets)])
    loader = loader_of(batches() if data is None else data)
    trainer.fit(net, *[loader] * (2 if isinstance(net, TargetScalingMixin) else 1))
    return trainer


def batches_per_atom():
    return [{**batch, "energy": batch["energy"] / batch["n_atoms"]} for batch in batches()]


class OfEnergiesPerAtom(Network):
    def output(self, batch, energy, forces):
        return {"energy": energy / batch["n_atoms"], "forces": forces}


class WithoutNumberOfAtoms(OfEnergiesPerAtom):
    """F = -de/dx instead of -N de/dx."""

    def output(self, batch, energy, forces):
        n_atoms = batch["n_atoms"].repeat_interleave(batch["n_atoms"])
        return super().output(batch, energy, forces / n_atoms[:, None])


class OfOppositeSign(Network):
    def output(self, batch, energy, forces):
        return {"energy": energy, "forces": -forces}


class OfOtherUnits(Network):
    """As with energies in kcal/mol and forces in eV/Å, which share a scale all the same."""

    def output(self, batch, energy, forces):
        return {"energy": energy, "forces": forces / 23.06}


class OfPhysicalForces(Network):
    def output(self, batch, energy, forces):
        scaler = self.scaler if hasattr(self, "scaler") else self.target_scaler
        scale = scaler.per_target_scales["energy"].block().values.item()
        return {"energy": energy, "forces": scale * forces}


class OfZeros(OfOppositeSign):
    begin_with_zeros = True


@BOTH
def test_derivatives_are_right_without_a_word(make, tmp_path):
    fit(tmp_path, make(Network))
    fit(tmp_path, make(OfOtherUnits))


@BOTH
def test_the_other_sign_is_warned_of(make, tmp_path):
    undeclared = {"energy": PerStructure(gradients={"positions": "forces"})}
    with pytest.warns(UserWarning, match="minus the derivative.*'positions': '-forces'"):
        fit(tmp_path, make(Network), undeclared)
    with pytest.warns(UserWarning, match="at 'forces', forward returns the gradient itself"):
        fit(tmp_path, make(OfOppositeSign))
    declared = PerStructure(gradients={"positions": {"tensor": "-forces", "prediction": "+forces"}})
    fit(tmp_path, make(OfOppositeSign), {"energy": declared})


@BOTH
def test_the_other_sign_is_no_conversion_where_the_scale_is_1(make, tmp_path):
    targets, fixed = {"energy": PerStructure(gradients=FORCES)}, {"energy": 1.0}
    trainer = quiet_trainer(tmp_path, callbacks=[TargetScaler(targets=targets, fixed_scales=fixed)])
    net, loader = make(OfOppositeSign), loader_of(batches())
    with pytest.warns(UserWarning, match="minus the derivative"):
        trainer.fit(net, *[loader] * (2 if isinstance(net, TargetScalingMixin) else 1))


@BOTH
def test_derivatives_that_begin_with_zero_are_compared_in_a_later_step(make, tmp_path):
    with pytest.warns(UserWarning, match="minus the derivative"):
        fit(tmp_path, make(OfZeros))


@BOTH
def test_energies_per_atom_without_their_flag_are_warned_of(make, tmp_path):
    with pytest.warns(UserWarning, match="times the number of atoms.*per_atom=True.*in forward"):
        fit(tmp_path, make(OfEnergiesPerAtom), data=batches_per_atom())


@BOTH
def test_following_the_warning_gives_forces_that_are_minus_n_times_the_derivative(make, tmp_path):
    net, data = make(OfEnergiesPerAtom), batches_per_atom()
    trainer = fit(tmp_path, net, {"energy": PerStructure(gradients=FORCES, per_atom=True)}, data)
    batch, step = data[0], 1e-4
    moved = []
    for sign in (1, -1):
        positions = batch["positions"].clone()
        positions[-1, 2] += sign * step
        moved.append({**batch, "positions": positions})
    plus, minus, here = trainer.predict(net, loader_of([*moved, batch]))
    n_atoms = batch["n_atoms"][-1].item()
    difference = (plus["energy"][-1] - minus["energy"][-1]).item() / (2 * step)
    assert n_atoms > 1
    assert here["forces"][-1, 2].item() == pytest.approx(-n_atoms * difference, rel=1e-6)
    assert (here["energy"] - batch["energy"]).abs().max() < 30.0


@BOTH
def test_totals_declared_as_energies_per_atom_are_warned_of(make, tmp_path):
    declared = {"energy": PerStructure(gradients=FORCES, per_atom=True)}
    with pytest.warns(UserWarning, match="without the number of atoms.*totals.*per_atom=True"):
        fit(tmp_path, make(Network), declared)
    with pytest.warns(UserWarning, match="so multiply them by the number of atoms in forward"):
        fit(tmp_path, make(WithoutNumberOfAtoms), declared, batches_per_atom())


@BOTH
def test_forces_of_a_physical_energy_are_refused(make, tmp_path):
    with pytest.raises(RuntimeError, match="multiplied by the scale again; differentiate what"):
        fit(tmp_path, make(OfPhysicalForces))


class Differentiating(Network):
    """Its steps, not forward, differentiate the energy."""

    def forward(self, batch):
        return {"energy": self.energies(batch, batch["positions"])}

    def energy_and_forces(self, batch):
        with torch.enable_grad():
            batch = {**batch, "positions": batch["positions"].detach().requires_grad_()}
            energy = self(batch)["energy"]
            gradient = torch.autograd.grad(energy.sum(), batch["positions"], create_graph=True)
        return energy, -gradient[0]

    def training_step(self, batch, batch_idx):
        energy, forces = self.energy_and_forces(batch)
        return (energy - batch["energy"]).square().mean() + (
            forces - batch["forces"]
        ).square().mean()

    def validation_step(self, batch, batch_idx):
        self.validated = batch, *self.energy_and_forces(batch)


def test_steps_may_differentiate_values_in_loss_space_and_physical_ones(tmp_path):
    """In loss space, as if forward did it; in physical units, by finite differences."""
    forces = {"positions": {"tensor": "-forces", "prediction": False}}
    callback = TargetScaler(targets={"energy": PerStructure(gradients=forces)})
    trainer = quiet_trainer(tmp_path, callbacks=[callback])
    net, in_forward = Differentiating(), with_steps(Network)
    trainer.fit(net, loader_of(batches()), loader_of(batches()))
    fit(tmp_path, in_forward)
    torch.testing.assert_close(net.weights.weight, in_forward.weights.weight, rtol=1e-12, atol=0)
    batch, energy, forces = net.validated
    assert (energy - batch["energy"]).abs().max() < 60.0
    moved = []
    for step in (1e-4, -1e-4):
        positions = batch["positions"].clone()
        positions[0, 1] += step
        moved.append(net({**batch, "positions": positions})["energy"][0].item())
    assert forces[0, 1].item() == pytest.approx((moved[1] - moved[0]) / 2e-4, rel=1e-6)


def test_a_gradient_that_forward_does_not_return_must_be_declared_as_such(tmp_path):
    trainer = quiet_trainer(tmp_path, callbacks=[TargetScaler(targets=ENERGY)])
    with pytest.raises(
        ValueError, match=r"at 'forces', got a dict with energy; .*prediction=False"
    ):
        trainer.fit(Differentiating(), loader_of(batches()), loader_of(batches()))


def test_the_steps_of_the_mixin_need_the_gradient(tmp_path):
    forces = {"positions": {"tensor": "-forces", "prediction": False}}
    with pytest.raises(ValueError, match="'positions': prediction=False is for modules with steps"):
        fit(tmp_path, with_mixin(Network), {"energy": PerStructure(gradients=forces)})


class OfStress(Network):
    """Stresses are derivatives with respect to a strain, divided by the volume."""

    def forward(self, batch):
        with torch.enable_grad():
            strain = torch.zeros(len(batch["n_atoms"]), 3, 3, dtype=torch.float64)
            strain.requires_grad_()
            owner = torch.repeat_interleave(batch["n_atoms"])
            moved = (batch["positions"][:, None] @ strain[owner])[:, 0] + batch["positions"]
            energy = self.energies(batch, moved)
            (virial,) = torch.autograd.grad(energy.sum(), strain, create_graph=True)
        return {"energy": energy, "tau": virial / batch["cell"].det()[:, None, None]}


def periodic_batches():
    """Cells of several volumes; dE/dstrain of the sum of squares is 2 x x^T."""
    found = []
    for batch in batches():
        size = len(batch["n_atoms"])
        lengths = torch.linspace(4.0, 6.0, size, dtype=torch.float64)
        cell = lengths[:, None, None] * torch.eye(3, dtype=torch.float64)
        outer = 2 * batch["positions"][:, :, None] * batch["positions"][:, None]
        owner = torch.repeat_interleave(batch["n_atoms"])
        virial = outer.new_zeros(size, 3, 3).index_add(0, owner, outer)
        found.append({**batch, "cell": cell, "tau": virial / cell.det()[:, None, None]})
    return found


@BOTH
def test_a_stress_without_its_volume_is_warned_of(make, tmp_path):
    data = periodic_batches()
    smallest, largest = 4.0**3, 6.0**3
    words = rf"a number for each structure, from {smallest:.0f} to {largest:.0f}, as a stress is"
    with pytest.warns(UserWarning, match=words):
        fit(tmp_path, make(OfStress), {"energy": PerStructure(gradients={"strain": "tau"})}, data)
    strain = {"tensor": "tau", "volume": "cell"}
    net = make(OfStress)
    fit(tmp_path, net, {"energy": PerStructure(gradients={"strain": strain})}, data)
    scaler = net.scaler if hasattr(net, "scaler") else net.target_scaler
    scale = scaler.per_target_scales["energy"].block().values.item()
    squares = [((b["tau"] * b["cell"].det()[:, None, None]) / scale) ** 2 for b in data]
    per_atom = [s / b["n_atoms"][:, None, None] ** 2 for s, b in zip(squares, data, strict=True)]
    mean = math.fsum(torch.cat(per_atom).flatten().tolist()) / torch.cat(per_atom).numel()
    assert scaler.mean_squares["energy/strain"] == pytest.approx(mean, rel=1e-10)


def test_a_strain_gradient_named_like_a_stress_is_warned_of_at_the_first_batch(tmp_path):
    data = [{**batch, "stress": batch.pop("tau")} for batch in periodic_batches()]

    class OfThisName(OfStress):
        def forward(self, batch):
            found = super().forward(batch)
            return {"energy": found["energy"], "stress": found["tau"]}

    words = "'strain' at 'stress' is declared without a volume.*'volume': 'cell'.*'volume': False"
    declared = {"energy": PerStructure(gradients={"strain": "stress"})}
    with pytest.warns(UserWarning, match=words), pytest.warns(UserWarning, match="as a stress is"):
        fit(tmp_path, with_steps(OfThisName), declared, data)
    for volume in ("cell", False):
        strain = {"tensor": "stress", "volume": volume}
        declared = {"energy": PerStructure(gradients={"strain": strain})}
        fit(tmp_path, with_steps(OfThisName), declared, data)
