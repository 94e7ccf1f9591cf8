"""Batches of other forms, and batches of evaluation loaders, in runs of a real Trainer."""

import warnings

import pytest
import torch
from metatensor.torch import Labels, TensorBlock, TensorMap
from metatomic.torch import System
from small_training import SmallData, SmallNet, collate, quiet_trainer, scaler_callback, target_maps

TARGETS = ["energy", "dipole", "polarizability", "charges"]


class Graph:
    """A batch of plain tensors, as those of graph libraries."""

    def __init__(self, **tensors):
        self.tensors = tensors

    def to(self, device, **options):
        return Graph(**{name: tensor.to(device) for name, tensor in self.tensors.items()})

    def clone(self):
        return Graph(**{name: tensor.clone() for name, tensor in self.tensors.items()})


def as_graph(items):
    systems = [system for system, _ in items]
    numbers = {name: torch.cat([n[name] for _, n in items]) for name in items[0][1]}
    return Graph(
        positions=torch.cat([s.positions for s in systems]),
        types=torch.cat([s.types for s in systems]),
        n_atoms=torch.tensor([len(s) for s in systems]),
        **numbers,
    )


class GraphNet(SmallNet):
    """Makes systems and targets of graphs, in float64, whose positions it differentiates."""

    leave_out_masks = False

    def unpack_batch(self, batch):
        tensors = dict(batch.tensors)
        positions = tensors.pop("positions").requires_grad_()
        types, n_atoms = tensors.pop("types"), tensors.pop("n_atoms").tolist()
        pairs = zip(positions.split(n_atoms), types.split(n_atoms), strict=True)
        cell, pbc = torch.zeros(3, 3).double(), torch.zeros(3, dtype=torch.bool)
        systems = [System(of, r, cell, pbc) for r, of in pairs]
        targets = target_maps(n_atoms, tensors)
        return (systems, targets) if self.leave_out_masks else (systems, targets, {})


class TwoValues(GraphNet):
    leave_out_masks = True


@pytest.mark.slow
@pytest.mark.parametrize("net_class", [GraphNet, TwoValues])
def test_what_unpack_batch_makes_is_cast_and_gives_the_results_of_tensormaps(tmp_path, net_class):
    """Systems are made in float64, and the network is float32."""
    logged, losses = [], []
    for net, collate_fn in ((SmallNet(), collate), (net_class(), as_graph)):
        torch.manual_seed(0)
        trainer = quiet_trainer(tmp_path, callbacks=[scaler_callback()])
        data = SmallData(collate_fn=collate_fn)
        trainer.fit(net, data)
        found = trainer.test(net, data, verbose=False)[0]
        predictions = trainer.predict(net, data)
        assert set(predictions[0]) == set(TARGETS)
        assert net.forward_dtypes == {torch.float32}
        logged.append(found)
        losses.append(net.losses)
    assert logged[0] == logged[1]
    assert losses[0] == losses[1]


class Positions(SmallNet):
    """Needs the gradients of plain positions beside the systems, wherever they are in a batch."""

    def unpack_batch(self, batch):
        if "graph" in batch:
            tensors = [batch["graph"].tensors["positions"], batch["nested"]["tuple"][0]]
            for tensor in tensors:
                tensor.requires_grad_()
                with torch.enable_grad():
                    (gradient,) = torch.autograd.grad(tensor.square().sum(), tensor)
                assert torch.equal(gradient, 2 * tensor)
                self.n_differentiated += 1
        return super().unpack_batch(batch)

    def __init__(self, lr=0.05):
        super().__init__(lr=lr)
        self.n_differentiated = 0


def with_plain_tensors(items):
    positions = torch.cat([system.positions for system, _ in items])
    graph = Graph(positions=positions)
    return {**collate(items), "graph": graph, "nested": {"tuple": (positions + 1, "a")}}


def test_plain_tensors_of_evaluation_batches_can_be_differentiated(tmp_path):
    net, data = Positions(), SmallData(collate_fn=with_plain_tensors)
    trainer = quiet_trainer(tmp_path, callbacks=[scaler_callback()])
    trainer.fit(net, data)
    for run in (trainer.validate, trainer.test, trainer.predict):
        net.n_differentiated = 0
        run(net, data)
        assert net.n_differentiated == 2 * 3  # two tensors in each of three batches


class FromHook(Positions):
    """Makes its plain tensors, and a target, in a hook that follows the transfer."""

    def on_after_batch_transfer(self, batch, dataloader_idx):
        positions = torch.cat([system.positions for system in batch["system"]])
        charges = batch["charges"].block().copy()
        return {
            **batch,
            "graph": Graph(positions=positions + 0),
            "nested": {"tuple": (positions + 1,)},
            "charges": TensorMap(batch["charges"].keys, [charges]),
        }


@pytest.mark.filterwarnings("ignore:You have overridden `on_after_batch_transfer`")
def test_tensors_made_in_evaluation_hooks_can_be_differentiated(tmp_path):
    net, data = FromHook(), SmallData()
    trainer = quiet_trainer(tmp_path, callbacks=[scaler_callback()])
    trainer.fit(net, data)
    for run in (trainer.validate, trainer.test, trainer.predict):
        net.n_differentiated = 0
        run(net, data)
        assert net.n_differentiated == 2 * 3


def with_plain_gap(items):
    return {**collate(items), "gap": torch.ones(len(items))}


def test_a_plain_target_beside_tensormaps_is_an_error_unless_the_targets_are_named(tmp_path):
    trainer = quiet_trainer(tmp_path, callbacks=[scaler_callback()])
    with pytest.raises(TypeError, match=r"got 'gap' \(Tensor of shape .* TargetScaler\(targets=\["):
        trainer.fit(SmallNet(), SmallData(collate_fn=with_plain_gap))
    net = SmallNet()
    trainer = quiet_trainer(tmp_path, callbacks=[scaler_callback(targets=TARGETS)])
    trainer.fit(net, SmallData(collate_fn=with_plain_gap))
    assert list(net.scaler.targets) == TARGETS


class Converting(SmallNet):
    """Follows the error: makes a TensorMap of the plain target."""

    def unpack_batch(self, batch):
        systems, targets, masks = super().unpack_batch(batch)
        energy = targets["energy"].block()
        gap = TensorBlock(batch["gap"][:, None].double(), energy.samples, [], energy.properties)
        targets["gap"] = TensorMap(targets["energy"].keys, [gap])
        return systems, targets, masks

    def forward(self, systems):
        predictions = super().forward(systems)
        energy = predictions["energy"].block()
        gap = TensorBlock(energy.values, energy.samples, [], energy.properties)
        return {**predictions, "gap": TensorMap(predictions["energy"].keys, [gap])}


def test_a_plain_target_can_be_converted_in_unpack_batch(tmp_path):
    net, trainer = Converting(), quiet_trainer(tmp_path, callbacks=[scaler_callback()])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a gap of 1 throughout is below its noise
        trainer.fit(net, SmallData(collate_fn=with_plain_gap))
    assert set(net.scaler.targets) == {*TARGETS, "gap"}


class WrongValues(SmallNet):
    def unpack_batch(self, batch):
        return batch["system"]


def test_other_values_from_unpack_batch_are_an_error_before_training(tmp_path):
    trainer = quiet_trainer(tmp_path, callbacks=[scaler_callback()])
    with pytest.raises(TypeError, match=r"WrongValues.unpack_batch: expected to return \(systems"):
        trainer.fit(WrongValues(), SmallData())


class OtherGradientLabels(SmallNet):
    """Labels its gradients [sample, atom], unlike the data."""

    def forward(self, systems):
        predictions = super().forward(systems)
        old = predictions["energy"].block()
        gradient = old.gradient("positions")
        block = TensorBlock(old.values, old.samples, old.components, old.properties)
        rows = Labels(["sample", "atom"], gradient.samples.values[:, [0, 2]])
        block.add_gradient(
            "positions",
            TensorBlock(gradient.values, rows, gradient.components, gradient.properties),
        )
        return {**predictions, "energy": TensorMap(predictions["energy"].keys, [block])}


@pytest.mark.slow
def test_gradients_labelled_with_and_without_system_give_the_same_training(tmp_path):
    logged = []
    for net in (SmallNet(), OtherGradientLabels()):
        torch.manual_seed(0)
        trainer = quiet_trainer(tmp_path, callbacks=[scaler_callback()])
        trainer.fit(net, SmallData())
        logged.append({name: value.item() for name, value in trainer.callback_metrics.items()})
    assert logged[0] == pytest.approx(logged[1], rel=1e-6)


class WithForces(SmallNet):
    """Predicts forces as a target of their own, as they are in the data."""

    def forward(self, systems):
        predictions = super().forward(systems)
        return forces_beside_energy(predictions)


def forces_beside_energy(maps):
    old, charges = maps["energy"].block(), maps["charges"].block()
    energy = TensorBlock(old.values, old.samples, [], old.properties)
    gradient = old.gradient("positions")
    forces = TensorBlock(
        -gradient.values, charges.samples, gradient.components, gradient.properties
    )
    keys = maps["energy"].keys
    return {**maps, "energy": TensorMap(keys, [energy]), "forces": TensorMap(keys, [forces])}


def test_forces_beside_an_energy_without_gradients_are_warned_about_once_per_fit(tmp_path):
    trainer = quiet_trainer(tmp_path, callbacks=[scaler_callback()])
    data = SmallData(collate_fn=lambda items: forces_beside_energy(collate(items)))
    with pytest.warns(UserWarning, match="'forces' and the energy 'energy'.*non_cons") as caught:
        trainer.fit(WithForces(), data)
    assert len([w for w in caught if "'forces'" in str(w.message)]) == 1
