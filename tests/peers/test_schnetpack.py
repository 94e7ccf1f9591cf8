"""SchNetPack 2.1: spktrain with the callback in an experiment, and the models that it writes."""

import pytest
import torch
from peer_runs import PEERS, callback_lines, logged, molecules, run, scale_and_weights

schnetpack = pytest.importorskip("schnetpack", reason="needs schnetpack 2.1, see CONTRIBUTING.md")

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    from schnetpack.data import ASEAtomsData

    folder = tmp_path_factory.mktemp("schnetpack")
    found = molecules()
    data = ASEAtomsData.create(
        str(folder / "molecules.db"),
        distance_unit="Ang",
        property_unit_dict={"energy": "eV", "forces": "eV/Ang"},
    )
    properties = [
        {
            "energy": torch.tensor([atoms.get_potential_energy()]).double().numpy(),
            "forces": atoms.get_forces(),
        }
        for atoms in found
    ]
    data.add_systems(property_list=properties, atoms_list=found)
    code, output = run(
        folder,
        "spktrain",
        f"--config-dir={PEERS}",
        "experiment=molecules",
        f"hydra.run.dir={folder / 'run'}",
        DATA=folder,
        # Its checkpoints hold modules, which torch 2.6 and newer do not load by default.
        TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1,
    )
    assert code == 0, output[-3000:]
    return folder


@pytest.fixture(scope="module")
def data(trained):
    from schnetpack.data import AtomsDataModule
    from schnetpack.transform import MatScipyNeighborList, SubtractCenterOfMass

    found = AtomsDataModule(
        str(trained / "molecules.db"),
        batch_size=10,
        split_file=str(trained / "run" / "split.npz"),
        transforms=[SubtractCenterOfMass(), MatScipyNeighborList(cutoff=4.0)],
        num_workers=0,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(trained)  # where it leaves its lock file
        found.setup()
    return found


@pytest.fixture(scope="module")
def task(trained):
    """The task that spktrain has written, in its own class."""
    return torch.load(trained / "run" / "best_model.task", weights_only=False).double().eval()


def test_the_config_needs_few_lines_and_no_python():
    assert len(callback_lines(PEERS / "experiment" / "molecules.yaml")) <= 8


def test_scales_are_those_of_numpy(task, data):
    types, energies = [], []
    for batch in data.train_dataloader():
        assert batch["energy"].dtype == torch.float64
        types += batch["_atomic_numbers"].split(batch["_n_atoms"].tolist())
        energies += batch["energy"].tolist()
    sigma, weights = scale_and_weights([z.numpy() for z in types], energies)
    scales = task.target_scaler.targets["energy"]
    assert scales.per_target[0].item() == pytest.approx(sigma, rel=1e-10)
    assert scales.weights[(0,)][:, 0].tolist() == pytest.approx(weights, rel=1e-10)


def test_its_test_logs_the_errors_of_the_predictions(trained, task, data):
    energy, forces = [], []
    for batch in data.test_dataloader():
        output = task(dict(batch))
        energy.append((output["energy"] - batch["energy"]).detach().abs())
        forces.append((output["forces"] - batch["forces"]).detach().abs().flatten())
    mae = torch.cat(energy).mean().item()
    assert logged(trained, "test_energy_mae") == pytest.approx(mae, rel=1e-6)
    assert logged(trained, "test_forces_mae") == pytest.approx(
        torch.cat(forces).mean().item(), rel=1e-6
    )
    # eV, of totals of -1e3 to -1e4 eV
    assert mae < 10.0


def test_forces_are_the_derivative_of_the_energy(task, data):
    batch = next(iter(data.val_dataloader()))
    forces = task({name: tensor.clone() for name, tensor in batch.items()})["forces"]
    for atom in range(3):
        for axis in range(3):
            energies = []
            for step in (1e-4, -1e-4):
                moved = {name: tensor.clone().detach() for name, tensor in batch.items()}
                moved["_positions"][atom, axis] += step
                energies.append(task(moved)["energy"].sum().item())
            slope = (energies[0] - energies[1]) / 2e-4
            assert -slope == pytest.approx(forces[atom, axis].item(), abs=2e-6)


def test_the_model_that_spktrain_writes_predicts_in_physical_units(trained, task, data):
    model = torch.load(trained / "run" / "best_model", weights_only=False).eval()
    batch = next(iter(data.val_dataloader()))
    expected, found = task(dict(batch)), model(dict(batch))
    for name in ("energy", "forces"):
        assert torch.equal(expected[name], found[name])


def test_a_folded_checkpoint_is_loaded_by_schnetpack(trained, task, data, tmp_path):
    from schnetpack.task import AtomisticTask

    from lightning_scaler import fold

    (path,) = (trained / "run" / "checkpoints").glob("epoch*.ckpt")
    batch = next(iter(data.val_dataloader()))
    with pytest.raises(RuntimeError, match=r"Unexpected key.*target_scaler"):
        AtomisticTask.load_from_checkpoint(path, weights_only=False)
    out = tmp_path / "folded.ckpt"
    fold(path, batch, out=out)
    loaded = AtomisticTask.load_from_checkpoint(out, weights_only=False)
    loaded.save_model(str(tmp_path / "best_model"), do_postprocessing=True)
    alone = torch.load(tmp_path / "best_model", weights_only=False).eval()
    assert not alone._forward_hooks
    expected, found = task(dict(batch)), alone(dict(batch))
    for name in ("energy", "forces"):
        largest = expected[name].abs().max().item()
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-12 * largest)
