"""Runs with plain tensors: the same numbers as with TensorMaps, and the user's own batches."""

import math
import warnings
from itertools import islice

import ase
import numpy as np
import pytest
import torch
from ase.calculators.singlepoint import SinglePointCalculator
from builders import structure_target, system
from lightning.pytorch import LightningModule
from small_training import quiet_trainer
from torch.utils.data import DataLoader
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader as GraphLoader

from lightning_scaler import (
    CompositionBaseline,
    PerAtom,
    PerStructure,
    ScaleAccumulator,
    Scaler,
    TargetScaler,
    TargetScalingMixin,
)
from lightning_scaler.batches import sample_labels
from lightning_scaler.molecules.datamodule import MoleculesDataModule
from lightning_scaler.molecules.targets import TARGETS, add_positions_gradient, tensor_map

NAMES = ["energy", "dipole", "charges", "populations", "atomic_dipoles"]
DECLARED = {
    "energy": PerStructure(gradients={"positions": "-forces"}, unit="eV"),
    "dipole": PerStructure(components="xyz", intensive=True),
    "charges": PerAtom(),
    "populations": PerAtom(properties=2),
    "atomic_dipoles": PerAtom(components={"spherical": 1}),
}


class Network(LightningModule):
    """A few weights per type; energies with forces by autograd, and linear atomic properties."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.weights = torch.nn.Embedding(10, 10)
        self.losses, self.batches = [], []

    def numbers(self, types, positions, n_atoms):
        owner = torch.repeat_interleave(n_atoms)
        weights = self.weights(types)
        with torch.enable_grad():
            positions = positions.to(weights.dtype).detach().requires_grad_()
            atomic = weights[:, 0] + weights[:, 1] * positions.square().sum(1)
            (gradient,) = torch.autograd.grad(atomic.sum(), positions, create_graph=self.training)
        energy = atomic.new_zeros(len(n_atoms)).index_add(0, owner, atomic)
        dipole = atomic.new_zeros(len(n_atoms), 3).index_add(0, owner, weights[:, 2:3] * positions)
        return {
            "energy": energy,
            "forces": -gradient,
            "dipole": dipole,
            "charges": weights[:, 3] + weights[:, 4] * positions[:, 0],
            "populations": weights[:, 5:7],
            "atomic_dipoles": weights[:, 7:],
        }

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Recorded(TargetScalingMixin, Network):
    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.losses.append(loss.item())
        return loss


class WithTensorMaps(Recorded):
    def forward(self, systems):
        types, positions = (torch.cat([getattr(s, n) for s in systems]) for n in FIELDS)
        n_atoms = torch.tensor([len(s) for s in systems])
        return tensormaps(self.numbers(types, positions, n_atoms), n_atoms.tolist())


class WithTensors(Recorded):
    def forward(self, batch):
        self.batches.append(batch)
        return self.numbers(batch["z"], batch["positions"], batch["n_atoms"])


FIELDS = ("types", "positions")


def tensormaps(numbers, n_atoms):
    """The targets in the layouts of the embedded molecules, from plain tensors."""
    structures, atoms = sample_labels(n_atoms)
    maps = {}
    for name in NAMES:
        target, table = TARGETS[name], numbers[name].reshape(len(numbers[name]), -1)
        rows = atoms if target.per_atom else structures
        labels = target.keys, target.components, target.properties
        maps[name] = tensor_map(rows, table, *labels)
    maps["energy"] = add_positions_gradient(maps["energy"], atoms, -numbers["forces"])
    return maps


def to_plain(batch):
    """A batch of the embedded molecules as a dict of plain tensors."""
    systems, plain = batch["system"], {}
    plain["z"], plain["positions"] = (torch.cat([getattr(s, n) for s in systems]) for n in FIELDS)
    plain["n_atoms"] = torch.tensor([len(s) for s in systems])
    for name in NAMES:
        values = batch[name].block().values
        plain[name] = values if values.shape[-1] == 2 else values.squeeze(-1)
    plain["forces"] = -batch["energy"].block().gradient("positions").values.squeeze(-1)
    return plain


@pytest.fixture(scope="module")
def molecules():
    data = MoleculesDataModule(batch_size=16)
    data.setup("fit")
    torch.manual_seed(1)
    return [dict(batch) for batch in islice(data.train_dataloader(), 8)]


def run(folder, net, batches, callback, **options):
    trainer = quiet_trainer(folder, max_epochs=2, callbacks=[callback], **options)
    with warnings.catch_warnings():
        # Eight batches have types of which only some molecules have properties.
        warnings.filterwarnings("ignore", "these data are zero")
        loader = DataLoader(batches, batch_size=None)
        trainer.fit(net, loader, loader)
    metrics = dict(trainer.callback_metrics)
    return trainer, metrics, trainer.predict(net, loader)


@pytest.fixture(scope="module")
def runs(molecules, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    plain = [to_plain(batch) for batch in molecules]
    kept = [{name: tensor.clone() for name, tensor in batch.items()} for batch in plain]
    with_maps, with_tensors = WithTensorMaps(), WithTensors()
    callback = TargetScaler(targets=NAMES, intensive_targets=["dipole"])
    of_maps = run(folder, with_maps, molecules, callback)
    of_tensors = run(folder, with_tensors, plain, TargetScaler(targets=DECLARED))
    return (with_maps, *of_maps), (with_tensors, *of_tensors), plain, kept


@pytest.mark.slow
def test_scales_losses_and_metrics_are_those_of_tensormaps_bit_by_bit(runs):
    (with_maps, _, metrics, _), (with_tensors, _, others, _), _, _ = runs
    for kind in ("per_target_scales", "per_property_scales"):
        first, second = getattr(with_maps.scaler, kind), getattr(with_tensors.scaler, kind)
        for name in NAMES:
            assert torch.equal(first[name].block().values, second[name].block().values), name
    assert with_maps.scaler.mean_squares == with_tensors.scaler.mean_squares
    assert len(with_tensors.losses) == 16
    assert with_maps.losses == with_tensors.losses
    assert len(set(with_maps.losses)) == 16
    assert metrics.keys() == others.keys()
    assert {"val/energy/positions/rmse", "val/populations/mae"} <= metrics.keys()
    assert all(torch.equal(value, others[name]) for name, value in metrics.items())


def test_predictions_are_those_of_tensormaps_bit_by_bit(runs):
    (*_, of_maps), (*_, of_tensors), plain, _ = runs
    for maps, tensors, batch in zip(of_maps, of_tensors, plain, strict=True):
        assert set(tensors) == {*NAMES, "forces", "n_atoms"}
        assert torch.equal(tensors["n_atoms"], batch["n_atoms"])
        for name in NAMES:
            assert tensors[name].shape == batch[name].shape
            assert not tensors[name].requires_grad
            values = maps[name].block().values.reshape(tensors[name].shape)
            assert torch.equal(tensors[name], values), name
        forces = -maps["energy"].block().gradient("positions").values.squeeze(-1)
        assert torch.equal(tensors["forces"], forces)
    # Total energies: -1e3 to -1e4 eV.
    error = torch.cat([p["energy"] - b["energy"] for p, b in zip(of_tensors, plain, strict=True)])
    assert error.abs().max() < 30 < torch.cat([b["energy"] for b in plain]).abs().min()


def test_batches_that_the_loader_keeps_are_never_written_to(runs):
    _, (net, *_), plain, kept = runs
    for batch, before in zip(plain, kept, strict=True):
        assert batch.keys() == before.keys()
        assert all(torch.equal(batch[name], before[name]) for name in batch)
    # forward received these batches, not others made of them
    assert net.batches[-1].keys() == plain[-1].keys()
    assert all(torch.equal(net.batches[-1][name], plain[-1][name]) for name in plain[-1])


def test_a_checkpoint_predicts_without_a_callback(runs, tmp_path):
    _, (net, trainer, _, predictions), plain, _ = runs
    trainer.save_checkpoint(tmp_path / "net.ckpt")
    loaded = WithTensors.load_from_checkpoint(tmp_path / "net.ckpt")
    loader = DataLoader(plain, batch_size=None)
    again = quiet_trainer(tmp_path).predict(loaded, loader)
    for first, second in zip(predictions, again, strict=True):
        assert all(torch.equal(first[name], second[name]) for name in first)
    assert loaded.scaler.declaration == net.scaler.declaration
    without_labels = [{n: b[n] for n in ("z", "positions", "n_atoms")} for b in plain]
    loader = DataLoader(without_labels, batch_size=None)
    assert torch.equal(
        quiet_trainer(tmp_path).predict(loaded, loader)[0]["energy"], predictions[0]["energy"]
    )


def test_other_addresses_may_be_given_when_a_run_is_resumed(runs, tmp_path):
    _, (net, trainer, *_), plain, _ = runs
    trainer.save_checkpoint(tmp_path / "net.ckpt")
    renamed = [{("E" if n == "energy" else n): t for n, t in batch.items()} for batch in plain]
    energy = PerStructure("E", "energy", gradients={"positions": "-forces"})
    resumed = WithTensors()
    trainer = quiet_trainer(
        tmp_path, max_epochs=3, callbacks=[TargetScaler(targets={**DECLARED, "energy": energy})]
    )
    loader = DataLoader(renamed, batch_size=None)
    trainer.fit(resumed, loader, loader, ckpt_path=tmp_path / "net.ckpt")
    assert len(resumed.losses) == 8
    assert resumed.losses[0] < net.losses[0]
    scales = resumed.scaler.per_target_scales["energy"].block().values
    assert torch.equal(scales, net.scaler.per_target_scales["energy"].block().values)


def test_a_declaration_that_contradicts_restored_scales_is_refused(runs, tmp_path):
    _, (_, trainer, *_), plain, _ = runs
    trainer.save_checkpoint(tmp_path / "net.ckpt")
    loader = DataLoader(plain, batch_size=None)
    callback = TargetScaler(targets={**DECLARED, "dipole": PerStructure(components="xyz")})
    trainer = quiet_trainer(tmp_path, max_epochs=3, callbacks=[callback])
    with pytest.raises(ValueError, match="intensive_targets: dipole was True and is False"):
        trainer.fit(WithTensors(), loader, loader, ckpt_path=tmp_path / "net.ckpt")


def test_convert_works_inside_a_batch_and_an_output(runs):
    _, (net, *_), plain, _ = runs
    batch, scaler = plain[0], net.scaler
    in_loss = scaler.convert(batch, batch)
    sigma = scaler.per_target_scales["charges"].block().values[:, 0]
    types = scaler.targets["charges"].types
    weights = scaler.targets["charges"].weights[(0,)]
    rows = torch.searchsorted(types, batch["z"].long())
    expected = (batch["charges"] - weights[rows, 0]) / sigma[rows]
    torch.testing.assert_close(in_loss["charges"], expected, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(
        in_loss["forces"],
        batch["forces"] / scaler.per_target_scales["energy"].block().values,
        rtol=1e-12,
        atol=0,
    )
    assert in_loss["positions"] is batch["positions"]
    back = scaler.convert(batch, in_loss, source="loss", target="physical")
    for name in (*NAMES, "forces"):
        torch.testing.assert_close(back[name], batch[name], rtol=1e-12, atol=1e-12)


def test_the_scales_of_forces_and_energies_keep_the_derivative(runs):
    """In loss space, forces are minus the derivative of the energy for every structure."""
    _, (net, *_), plain, _ = runs
    batch = dict(plain[0])
    x = batch["positions"].double().clone().requires_grad_()
    energy = x.square().sum(1)
    total = energy.new_zeros(len(batch["n_atoms"])).index_add(
        0, torch.repeat_interleave(batch["n_atoms"]), energy
    )
    batch["energy"], batch["forces"] = total, -2 * x.detach()
    in_loss = net.scaler.convert(batch, batch, baseline=False)
    (gradient,) = torch.autograd.grad(in_loss["energy"].sum(), x)
    torch.testing.assert_close(in_loss["forces"], -gradient, rtol=1e-12, atol=0)


def test_an_accumulator_takes_batches_and_is_saved_with_its_declaration(molecules, tmp_path):
    batches = [to_plain(batch) for batch in molecules]
    baseline = CompositionBaseline()
    first, second = (ScaleAccumulator(DECLARED, baseline=baseline) for _ in range(2))
    for batch in batches[:5]:
        first.update(batch)
    for batch in batches[5:]:
        second.update(batch)
    first.save(tmp_path / "first")
    loaded = ScaleAccumulator.load(tmp_path / "first")
    loaded.merge(second)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "these data are zero")
        scaler = loaded.compute()
    scaler.save(tmp_path / "scaler")
    again = Scaler.load(tmp_path / "scaler")
    assert again.declaration == scaler.declaration == loaded.declaration
    # The scale of the dipole, which has no baseline and is intensive, by math.fsum.
    squares = [v**2 for batch in batches for v in batch["dipole"].flatten().tolist()]
    expected = math.sqrt(math.fsum(squares) / len(squares))
    assert again.per_target_scales["dipole"].block().values.item() == pytest.approx(expected, 1e-14)
    other = ScaleAccumulator({"dipole": DECLARED["dipole"]}, baseline=baseline)
    with pytest.raises(ValueError, match="expected an accumulator with the same settings"):
        loaded.merge(other)


class OfGraphs(TargetScalingMixin, Network):
    def forward(self, batch):
        n_atoms = batch.ptr.diff()
        found = self.numbers(batch.z, batch.pos, n_atoms)
        return found["energy"][:, None], found["forces"], {"mu": found["dipole"]}


def graphs(batch):
    """One graph of PyTorch Geometric for each structure."""
    start, found = 0, []
    for i, n in enumerate(batch["n_atoms"].tolist()):
        atoms = slice(start, start + n)
        start += n
        found.append(
            Data(
                z=batch["z"][atoms].long(),
                pos=batch["positions"][atoms],
                y=torch.stack([torch.ones(1), batch["energy"][i : i + 1]], 1),
                dy=-batch["forces"][atoms],
                dipole=batch["dipole"][i : i + 1],
            )
        )
    return found


def test_batches_of_pytorch_geometric_train_and_predict(runs, molecules, tmp_path):
    _, (with_tensors, *_), plain, _ = runs
    data = [graph for batch in plain for graph in graphs(batch)]
    callback = TargetScaler(
        targets={
            "energy": {
                "per": "structure",
                "tensor": ["y", 1],
                "prediction": 0,
                "gradients": {"positions": {"tensor": "dy", "prediction": [1]}},
            },
            "dipole": {
                "per": "structure",
                "components": "xyz",
                "intensive": True,
                "prediction": [2, "mu"],
            },
        },
    )
    net = OfGraphs()
    trainer = quiet_trainer(tmp_path, callbacks=[callback])
    with pytest.warns(UserWarning, match="is minus the derivative of the predicted values"):
        trainer.fit(net, GraphLoader(data, 16), GraphLoader(data, 16))
    for name in ("energy", "dipole"):
        ours, theirs = (
            m.scaler.per_target_scales[name].block().values for m in (net, with_tensors)
        )
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)
    predictions = trainer.predict(net, GraphLoader(data, 16))
    assert predictions[0].keys() == {"energy", "dy", "dipole", "n_atoms"}
    assert predictions[0]["energy"].shape == (16, 1)
    assert predictions[0]["dy"].shape == plain[0]["forces"].shape
    assert all(graph.y.shape == (1, 2) and graph.y[0, 0] == 1 for graph in data)


class OfAtoms(TargetScalingMixin, Network):
    def forward(self, batch):
        types = torch.tensor(np.concatenate([atoms.numbers for atoms in batch]))
        positions = torch.tensor(np.concatenate([atoms.positions for atoms in batch]))
        found = self.numbers(types, positions, torch.tensor([len(atoms) for atoms in batch]))
        return {name: found[name] for name in ("energy", "forces", "charges")}


def test_lists_of_ase_atoms_train_and_predict(runs, tmp_path):
    _, (with_tensors, *_), plain, _ = runs
    data = []
    for batch in plain:
        parts = [batch[n].split(batch["n_atoms"].tolist()) for n in ("z", "positions", "forces")]
        charges = batch["charges"].split(batch["n_atoms"].tolist())
        for energy, z, x, f, q in zip(batch["energy"], *parts, charges, strict=True):
            atoms = ase.Atoms(z.numpy(), x.numpy())
            atoms.arrays["q"] = q.numpy()
            atoms.calc = SinglePointCalculator(atoms, energy=float(energy), forces=f.numpy())
            data.append(atoms)
    targets = {"energy": DECLARED["energy"], "charges": PerAtom("q", "charges")}
    net = OfAtoms()
    trainer = quiet_trainer(tmp_path, callbacks=[TargetScaler(targets=targets)])
    loader = DataLoader(data, 16, collate_fn=list)
    trainer.fit(net, loader, loader)
    for name in targets:
        ours, theirs = (
            m.scaler.per_target_scales[name].block().values for m in (net, with_tensors)
        )
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)
    predictions = trainer.predict(net, loader)
    assert predictions[0]["n_atoms"].tolist() == plain[0]["n_atoms"].tolist()
    assert predictions[0]["energy"].dtype == torch.float64


def test_a_training_step_of_ones_own_converts_plain_tensors(runs, tmp_path):
    _, (with_tensors, *_), plain, _ = runs

    class Own(WithTensors):
        def training_step(self, batch, batch_idx):
            systems, targets, masks = self.unpack_batch(batch)
            targets = self.targets_to_loss(systems, targets, masks)
            predictions = self.predictions_to_loss(systems, self(batch), targets)
            assert all(isinstance(t, torch.ScriptObject) for t in predictions.values())
            self.update_metrics("train", systems, predictions, targets)
            loss = self.compute_loss(predictions, targets)
            self.losses.append(loss.item())
            return loss

    net = Own()
    run(tmp_path, net, plain, TargetScaler(targets=DECLARED))
    torch.testing.assert_close(net.losses, with_tensors.losses, rtol=1e-6, atol=0)


def one_structure(**tensors):
    return {"z": torch.tensor([8, 1]), "n_atoms": torch.tensor([2]), **tensors}


def test_a_key_that_no_batch_has_is_refused_at_the_first_batch():
    accumulator = ScaleAccumulator({"enrgy": PerStructure()})
    message = "target 'enrgy': expected a tensor at 'enrgy', got a dict with energy, n_atoms, z; "
    with pytest.raises(ValueError, match=message + r"did you mean 'energy'\? give its address"):
        accumulator.update(one_structure(energy=torch.ones(1)))


def test_a_key_that_no_batch_has_beside_others_is_refused_after_the_pass():
    accumulator = ScaleAccumulator({"energy": PerStructure(), "dipol": PerStructure()})
    accumulator.update(one_structure(energy=torch.ones(1), dipole=torch.ones(1, 3)))
    with pytest.raises(ValueError, match=r"'dipol': expected a tensor at .* did you mean 'dipole'"):
        accumulator.compute()


def test_totals_in_single_precision_whose_rounding_is_visible_are_warned_of():
    """Energies of about -1e5 per atom in float32, with 0.1 per atom left by the baseline.

    The machine epsilon is 1.2e-7, so that they are rounded to about 0.012, 12 % of the scale.
    """
    generator = torch.Generator().manual_seed(0)
    types = torch.randint(1, 3, (60,), generator=generator)
    noise = torch.randn(30, generator=generator, dtype=torch.float64) * 0.2
    energy = (types.reshape(30, 2).double() * -1e5).sum(1) + noise
    batch = {"z": types, "n_atoms": [2] * 30, "energy": energy}
    for dtype in (torch.float32, torch.float64):
        accumulator = ScaleAccumulator({"energy": PerStructure()}, baseline=CompositionBaseline())
        accumulator.update({**batch, "energy": energy.to(dtype)})
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            accumulator.compute()
        messages = [str(warning.message) for warning in caught]
        assert len(messages) == (dtype == torch.float32), messages
    assert not messages


def test_an_additive_module_needs_systems_and_takes_them_beside_plain_tensors():

    class Shift(torch.nn.Module):
        def forward(self, systems, names):
            return {"energy": structure_target([10.0 * len(s) for s in systems])}

    targets = {"energy": PerStructure()}
    plain = one_structure(energy=torch.tensor([30.0]).double())
    with pytest.raises(ValueError, match=r"additive module .*Shift needs, got their atoms alone"):
        ScaleAccumulator(targets, additive=Shift()).update(plain)
    accumulator = ScaleAccumulator(targets, additive=Shift())
    accumulator.update({"system": [system(8, 1)], "energy": torch.tensor([30.0]).double()})
    scale = accumulator.compute().per_target_scales["energy"].block().values
    assert scale.item() == 5.0  # (30 - 20) / 2 atoms


def test_a_step_returns_tensormaps_to_compute_loss():
    """compute_loss of a user's own sees TensorMaps in loss space under the declared names."""
    accumulator = ScaleAccumulator({"energy": PerStructure()})
    accumulator.update(one_structure(energy=torch.tensor([4.0]).double()))

    class Net(TargetScalingMixin, LightningModule):
        def forward(self, batch):
            return torch.zeros(1, requires_grad=True)

        def compute_loss(self, predictions, targets):
            assert isinstance(targets["energy"], torch.ScriptObject)
            return (
                predictions["energy"].block().values.sum() + targets["energy"].block().values.sum()
            )

    net = Net()
    net.scaler = accumulator.compute()
    loss = net.training_step(one_structure(energy=torch.tensor([4.0])), 0)
    assert loss.item() == 1.0
