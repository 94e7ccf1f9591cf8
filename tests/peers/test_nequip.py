"""NequIP 0.19: nequip-train with the callback in its YAML, its test, its loading of checkpoints."""

import os

import pytest
import torch
from peer_runs import PEERS, callback_lines, logged, molecules, run, scale_and_weights

nequip = pytest.importorskip("nequip", reason="needs nequip 0.19, see CONTRIBUTING.md")

pytestmark = pytest.mark.filterwarnings("ignore")

CONFIG = PEERS / "nequip.yaml"


def train(data, folder, *overrides):
    return run(
        data,
        "nequip-train",
        f"--config-path={PEERS}",
        "--config-name=nequip",
        f"hydra.run.dir={folder}",
        *overrides,
        DATA=data / "molecules.extxyz",
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    import ase.io

    folder = tmp_path_factory.mktemp("nequip")
    ase.io.write(folder / "molecules.extxyz", molecules(), format="extxyz")
    code, output = train(folder, folder / "run")
    assert code == 0, output[-3000:]
    os.environ["DATA"] = str(folder / "molecules.extxyz")
    return folder, output


@pytest.fixture(scope="module")
def scaled(trained):
    """The module of the best checkpoint with its averaged weights, and its data."""
    from hydra.utils import instantiate
    from nequip.utils.global_state import set_global_state
    from scaled_nequip import ScaledEMA

    set_global_state()
    path = trained[0] / "run" / "best.ckpt"
    module = ScaledEMA.load_from_checkpoint(path, weights_only=False).eval()
    module.ema.swap_parameters(module.model)
    hparams = torch.load(path, weights_only=False)["hyper_parameters"]
    data = instantiate(hparams["info_dict"]["data"], _recursive_=False)
    data.prepare_data()
    for stage in ("fit", "test"):
        data.setup(stage)
    return module, data


def test_the_config_needs_few_lines_and_no_python():
    assert len(callback_lines(CONFIG)) <= 8


def test_scales_are_those_of_numpy(scaled):
    module, data = scaled
    types, energies = [], []
    for batch in data.train_dataloader():
        assert batch["total_energy"].dtype == torch.float64
        types += batch["atomic_numbers"].flatten().split(batch["num_atoms"].tolist())
        energies += batch["total_energy"].flatten().tolist()
    sigma, weights = scale_and_weights([z.numpy() for z in types], energies)
    scales = module.target_scaler.targets["total_energy"]
    assert scales.per_target[0].item() == pytest.approx(sigma, rel=1e-10)
    assert scales.weights[(0,)][:, 0].tolist() == pytest.approx(weights, rel=1e-10)


def errors(module, loader):
    energy, forces = [], []
    for batch in loader:
        output = module(dict(batch))
        error = (output["total_energy"] - batch["total_energy"]).flatten() / batch["num_atoms"]
        energy.append(error.detach().abs())
        forces.append((output["forces"] - batch["forces"]).detach().abs().flatten())
    return torch.cat(energy).mean().item(), torch.cat(forces).mean().item()


def test_its_test_logs_the_errors_of_the_predictions(trained, scaled):
    folder, _ = trained
    module, data = scaled
    (loader,) = data.test_dataloader()
    energy, forces = errors(module, loader)
    assert logged(folder, "test0_epoch/per_atom_energy_mae") == pytest.approx(energy, rel=1e-9)
    assert logged(folder, "test0_epoch/forces_mae") == pytest.approx(forces, rel=1e-9)
    # eV per atom, of totals of -1e3 to -1e4 eV
    assert energy < 2.0


def test_forces_are_the_derivative_of_the_energy(scaled):
    module, data = scaled
    (loader,) = data.val_dataloader()
    batch = next(iter(loader))
    forces = module(dict(batch))["forces"]
    for atom in range(3):
        for axis in range(3):
            energies = []
            for step in (1e-4, -1e-4):
                moved = {name: tensor.clone().detach() for name, tensor in batch.items()}
                moved["pos"][atom, axis] += step
                energies.append(module(moved)["total_energy"].sum().item())
            slope = (energies[0] - energies[1]) / 2e-4
            assert -slope == pytest.approx(forces[atom, axis].item(), abs=2e-6)


def test_a_folded_checkpoint_is_loaded_by_nequip(trained, scaled, tmp_path):
    from nequip.model.saved_models import ModelFromCheckpoint

    from lightning_scaler import fold

    module, data = scaled
    path, out = trained[0] / "run" / "best.ckpt", tmp_path / "folded.ckpt"
    with pytest.raises(RuntimeError, match=r"Unexpected key.*target_scaler"):
        ModelFromCheckpoint(str(path))
    fold(path, out=out)
    alone = ModelFromCheckpoint(str(out))["sole_model"].eval()
    for batch in data.val_dataloader()[0]:
        expected, found = module(dict(batch)), alone(dict(batch))
        for name in ("total_energy", "forces"):
            largest = expected[name].abs().max().item()
            torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-12 * largest)


def test_a_run_is_continued_with_a_class_in_the_config(trained, tmp_path):
    folder, _ = trained
    code, output = train(folder, tmp_path / "again", f"++ckpt_path={folder / 'run' / 'last.ckpt'}")
    assert code != 0
    assert 'Unexpected key(s) in state_dict: "target_scaler._extra_state"' in output
    with_class = "training_module._target_=scaled_nequip.ScaledEMA"
    code, output = train(folder, tmp_path / "first", with_class, "trainer.max_epochs=2")
    assert code == 0, output[-3000:]
    last = tmp_path / "first" / "last.ckpt"
    code, output = train(folder, tmp_path / "second", with_class, f"++ckpt_path={last}")
    assert code == 0, output[-3000:]
    assert "are kept, without a data pass" in output
    assert logged(tmp_path / "second", "test0_epoch/per_atom_energy_mae") < 2.0
