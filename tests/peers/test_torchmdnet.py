"""TorchMD-NET 3.1: LNNP with the callback, and its checkpoints in TorchMD-NET alone."""

import copy

import lightning
import pytest
import torch
from peer_runs import molecules, scale_and_weights

from lightning_scaler import ScaledSteps, TargetScaler, fold

torchmdnet = pytest.importorskip("torchmdnet", reason="needs torchmd-net 3.1, see CONTRIBUTING.md")

pytestmark = pytest.mark.filterwarnings("ignore")

TARGETS = {
    "y": {
        "per": "structure",
        "prediction": 0,
        "gradients": {"positions": {"tensor": "-neg_dy", "prediction": 1}},
    }
}


def loaders():
    from torch_geometric.data import Data
    from torch_geometric.loader import DataLoader

    data = [
        Data(
            z=torch.tensor(atoms.numbers).long(),
            pos=torch.tensor(atoms.positions),
            y=torch.tensor([[atoms.get_potential_energy()]], dtype=torch.float64),
            neg_dy=torch.tensor(atoms.get_forces()),
        )
        for atoms in molecules(50)
    ]
    return DataLoader(data[:40], batch_size=5, shuffle=True), DataLoader(data[40:], batch_size=10)


def new(precision, prior=None, **hparams):
    from torchmdnet.module import LNNP
    from torchmdnet.scripts.train import get_argparse

    given = vars(get_argparse().parse_args([]))
    given.update(
        model="tensornet",
        embedding_dimension=16,
        num_layers=1,
        num_rbf=8,
        derivative=True,
        lr=3e-3,
        precision=precision,
        **hparams,
    )
    lightning.seed_everything(0)
    return LNNP(given, prior_model=prior)


def fit(net, epochs=1, data=None, targets=TARGETS, **options):
    train, val = data or loaders()
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        callbacks=[TargetScaler(targets=targets, **options)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        inference_mode=False,
    )
    trainer.fit(net, train, val)
    return trainer


def checkpoint_of(trainer, folder):
    path = folder / "last.ckpt"
    trainer.save_checkpoint(path)
    return path


@pytest.fixture(scope="module")
def batch():
    return next(iter(loaders()[1]))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    net = new(64)
    trainer = fit(net, epochs=8)
    return net.eval(), trainer, checkpoint_of(trainer, tmp_path_factory.mktemp("torchmdnet"))


def called(net, batch):
    """Energies and forces of a module of TorchMD-NET alone."""
    return net(batch.z, batch.pos.clone(), batch=batch.batch)


def assert_same(found, expected, tolerance=1e-12):
    for one, other in zip(found, expected, strict=True):
        atol = tolerance * other.abs().max().item()
        torch.testing.assert_close(one.double(), other.double(), rtol=0, atol=atol)


def test_scales_are_those_of_numpy(trained):
    types, energies = [], []
    for data in loaders()[0].dataset:
        types.append(data.z.numpy())
        energies.append(data.y.item())
    sigma, weights = scale_and_weights(types, energies)
    scales = trained[0].target_scaler.targets["y"]
    assert scales.per_target[0].item() == pytest.approx(sigma, rel=1e-10)
    assert scales.weights[(0,)][:, 0].tolist() == pytest.approx(weights, rel=1e-10)


def test_its_validation_logs_the_errors_of_the_predictions(trained, batch):
    net, trainer, _ = trained
    y, neg_dy = net.predict_step(batch, 0)
    energy = (y - batch.y).abs().mean().item()
    forces = (neg_dy - batch.neg_dy).abs().mean().item()
    assert trainer.callback_metrics["val_y_l1_loss"].item() == pytest.approx(energy, rel=1e-9)
    assert trainer.callback_metrics["val_neg_dy_l1_loss"].item() == pytest.approx(forces, rel=1e-9)
    # eV, of totals of -1e3 to -1e4 eV
    assert energy < 10.0


def test_a_folded_checkpoint_is_loaded_by_torchmdnet(trained, batch, tmp_path):
    from torchmdnet.models.model import load_model
    from torchmdnet.module import LNNP

    net, _, path = trained
    with pytest.raises(RuntimeError, match=r"Unexpected key.*target_scaler"):
        LNNP.load_from_checkpoint(path, weights_only=False)
    out = tmp_path / "folded.ckpt"
    fold(path, batch, out=out)
    expected = net.predict_step(batch, 0)
    for loaded in (
        LNNP.load_from_checkpoint(out, weights_only=False).eval(),
        load_model(str(out)).eval(),
    ):
        assert_same(called(loaded, batch), expected)


def test_forces_of_the_folded_module_are_the_derivative_of_its_energy(trained, batch):
    folded = fold(trained[0], batch).eval()
    _, forces = called(folded, batch)
    for axis in range(3):
        energies = []
        for step in (1e-4, -1e-4):
            moved = batch.clone()
            moved.pos[0, axis] += step
            energies.append(called(folded, moved)[0].sum().item())
        slope = (energies[0] - energies[1]) / 2e-4
        assert -slope == pytest.approx(forces[0, axis].item(), abs=2e-6)


def test_a_class_with_scaled_steps_reads_the_checkpoint(trained, batch):
    from torchmdnet.module import LNNP

    class Scaled(ScaledSteps, LNNP):
        pass

    net, _, path = trained
    again = Scaled.load_from_checkpoint(path, weights_only=False).eval()
    assert_same(again.predict_step(batch, 0), net.predict_step(batch, 0))


def test_an_atomref_and_a_mean_of_its_own_are_kept(batch, tmp_path):
    from torchmdnet.models.model import load_model
    from torchmdnet.priors import Atomref

    arguments = {"max_z": 100, "trainable": True}
    net = new(64, [Atomref(**arguments)], prior_model=["Atomref"], prior_args=[arguments])
    net.model.prior_model[0].initial_atomref += 0.25
    net.model.prior_model[0].reset_parameters()
    net.model.mean += 0.5
    net.model.std += 1.0
    trainer = fit(net)
    path, out = checkpoint_of(trainer, tmp_path), tmp_path / "folded.ckpt"
    folded = fold(path, batch, out=out)
    (prior,) = folded.model.prior_model
    assert prior.atomref.weight.requires_grad
    table = prior.atomref.weight.detach()
    assert table[[1, 6]].isfinite().all()
    torch.testing.assert_close(prior.initial_atomref, table, rtol=0, atol=0, equal_nan=True)
    expected = net.eval().predict_step(batch, 0)
    assert_same(called(load_model(str(out)).eval(), batch), expected)


def test_without_a_baseline_no_prior_is_added(batch, tmp_path):
    net = new(64)
    trainer = fit(net, baseline="none")
    folded = fold(checkpoint_of(trainer, tmp_path), batch, out=tmp_path / "folded.ckpt")
    assert folded.model.prior_model is None
    assert_same(called(folded.eval(), batch), net.eval().predict_step(batch, 0))


def test_single_precision_is_folded_up_to_rounding(batch, tmp_path):
    net = new(32)
    trainer = fit(net)
    fold(checkpoint_of(trainer, tmp_path), batch, out=tmp_path / "folded.ckpt")
    folded = fold(net, batch).eval()
    assert folded.model.std.dtype == folded.model.prior_model[0].initial_atomref.dtype
    single = batch.clone()
    single.pos = single.pos.float()
    found, expected = called(folded, single), net.eval().predict_step(batch, 0)
    # Sums of some ten terms, each rounded to 6e-8 of the total.
    assert_same(found, expected, tolerance=1e-6)


def test_priors_that_cannot_be_folded_are_named(trained, batch):
    from torchmdnet.priors import ZBL, Atomref

    net = copy.deepcopy(trained[0])
    net.model.prior_model = torch.nn.ModuleList([Atomref(max_z=100, enable=False)])
    with pytest.raises(ValueError, match=r"Atomref is switched off.*without remove_ref_energy"):
        fold(net, batch)
    zbl = ZBL(4.0, 50, list(range(100)), distance_scale=1e-10, energy_scale=1.6e-19)
    net.model.prior_model = torch.nn.ModuleList([zbl])
    with pytest.raises(ValueError, match="the prior ZBL was multiplied by the scale"):
        fold(net, batch)


def test_several_targets_are_refused():
    (train, val), net = loaders(), new(64)
    for data in (*train.dataset, *val.dataset):
        data.z[:] = 6  # one scale for all atoms
    targets = {"y": {"per": "structure", "prediction": 0}}
    targets["neg_dy"] = {"per": "atom", "components": "xyz", "prediction": 1}
    fit(net, data=(train, val), targets=targets)
    with pytest.raises(ValueError, match=r"expected one target, got \['y', 'neg_dy'\]"):
        fold(net, next(iter(val)))


def test_a_network_that_takes_no_prior_has_no_place_for_a_baseline(trained, batch):
    net = copy.deepcopy(trained[0])
    net.model.output_model.allow_prior_model = False
    with pytest.raises(ValueError, match="Scalar takes no prior"):
        fold(net, batch)
