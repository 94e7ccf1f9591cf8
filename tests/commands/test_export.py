"""The command that writes a model file, and the file in a process without this package."""

import re
import subprocess
import sys

import numpy as np
import pytest
from launching import (
    SHORT_TRAINING,
    checkpoint_of_another_module,
    composed,
    files_of_other_kinds,
    launch,
    run_here,
)
from metatomic.torch import load_atomistic_model

from lightning_scaler import ZBL
from lightning_scaler.commands.export import write_model
from lightning_scaler.molecules.datamodule import MoleculesDataModule
from lightning_scaler.molecules.model import MoleculesModel

COMMAND = [sys.executable, "-m", "lightning_scaler.commands.export"]

# Arguments: model file, structures, results.
RUN_WITH_ASE = """
import sys
sys.modules["lightning_scaler"] = None
import ase
import numpy as np
from metatomic.torch import ModelOutput
from metatomic_ase import MetatomicCalculator

model, structures, results = sys.argv[1:]
calculator = MetatomicCalculator(model, check_consistency=True)
kinds = {"charge": "atom", "lightning_scaler::dipole": "system"}
requests = {name: ModelOutput(sample_kind=kind) for name, kind in kinds.items()}
found = {name: [] for name in ("energy", "forces", "shares", "charges", "dipole")}
with np.load(structures) as data:
    for i in range(len(data.files) // 2):
        atoms = ase.Atoms(data[f"types{i}"], data[f"positions{i}"], calculator=calculator)
        found["energy"].append([atoms.get_potential_energy()])
        found["forces"].append(atoms.get_forces())
        found["shares"].append([atoms.get_potential_energies().sum()])
        others = calculator.run_model(atoms, requests)
        found["charges"].append(others["charge"].block().values.detach()[:, 0])
        found["dipole"].append(others["lightning_scaler::dipole"].block().values.detach()[..., 0])
np.savez(results, **{name: np.concatenate(values) for name, values in found.items()})
"""


def export_here(folder, *overrides):
    with composed(folder, *overrides, name="export") as config:
        write_model(config)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Of short trainings without and with an additive module."""
    files = []
    for name, *overrides in (
        ("plain",),
        ("zbl", "callbacks.target_scaler.baseline={_target_: lightning_scaler.ZBL}"),
    ):
        folder = tmp_path_factory.mktemp(name)
        run_here(folder, *SHORT_TRAINING, *overrides)
        files.append(folder / "last.ckpt")
    return files


def predictions(checkpoint, systems):
    """Physical values of each system by itself, as ``Trainer.predict`` gives them."""
    model = MoleculesModel.load_from_checkpoint(checkpoint, weights_only=True)
    model.scaler.set_additive(ZBL())
    batches = [model.predict_step({"system": [system]}) for system in systems]
    blocks = {name: [batch[name].block() for batch in batches] for name in ("energy", "dipole")}
    charges = [batch["charges"].block().values[:, 0] for batch in batches]
    return {
        "energy": np.concatenate([block.values[:, 0] for block in blocks["energy"]]),
        "forces": -np.concatenate(
            [block.gradient("positions").values[..., 0] for block in blocks["energy"]]
        ),
        "charges": np.concatenate(charges),
        "dipole": np.concatenate([block.values[..., 0] for block in blocks["dipole"]]),
    }


@pytest.mark.slow
def test_ase_computes_the_predictions_from_the_file_without_this_package(checkpoints, tmp_path):
    _, checkpoint = checkpoints
    baseline = "baseline={_target_: lightning_scaler.ZBL}"
    export_here(tmp_path, f"ckpt_path={checkpoint}", f"out={tmp_path / 'model.pt'}", baseline)
    systems = MoleculesDataModule().dataset("conformers").systems[::20]
    structures = {f"types{i}": system.types.numpy() for i, system in enumerate(systems)}
    structures |= {f"positions{i}": s.positions.numpy() for i, s in enumerate(systems)}
    np.savez(tmp_path / "structures.npz", **structures)
    command = [sys.executable, "-c", RUN_WITH_ASE, "model.pt", "structures.npz", "results.npz"]
    subprocess.run(command, cwd=tmp_path, check=True)
    expected = predictions(checkpoint, systems)
    with np.load(tmp_path / "results.npz") as found:
        # Energies are hundreds to thousands of eV; the network computes in float32.
        np.testing.assert_allclose(found["energy"], expected["energy"], rtol=0, atol=2e-7)
        np.testing.assert_allclose(found["shares"], expected["energy"], rtol=0, atol=2e-6)
        for name in ("forces", "charges", "dipole"):
            np.testing.assert_allclose(found[name], expected[name], rtol=0, atol=1e-5)


@pytest.mark.slow
def test_the_command_writes_the_file_and_nothing_else(checkpoints, tmp_path):
    result = launch(tmp_path, f"ckpt_path={checkpoints[0]}", "out=model.pt", command=COMMAND)
    assert result.returncode == 0, result.stderr
    assert re.fullmatch(r"The model is in model\.pt \(0\.\d MB\)\n", result.stdout)
    assert [file.name for file in tmp_path.iterdir()] == ["model.pt"]


@pytest.mark.slow
def test_targets_can_be_left_out_and_have_other_names(checkpoints, tmp_path):
    export_here(
        tmp_path,
        f"ckpt_path={checkpoints[0]}",
        f"out={tmp_path / 'model.pt'}",
        *("~outputs.charges", "~outputs.populations", "~outputs.polarizability"),
        "outputs.energy={unit: eV, name: energy/xtb}",
        "atomic_types=[H, 8]",
    )
    capabilities = load_atomistic_model(tmp_path / "model.pt").capabilities()
    names = {"energy/xtb", "lightning_scaler::dipole", "lightning_scaler::atomic_dipoles"}
    assert set(capabilities.outputs) == names
    assert capabilities.outputs["energy/xtb"].unit == "eV"
    assert capabilities.atomic_types == [1, 8]


def test_checkpoint_and_file_must_be_named(tmp_path):
    with pytest.raises(ValueError, match=r"ckpt_path: expected the checkpoint .*add ckpt_path="):
        export_here(tmp_path, "out=model.pt")
    with pytest.raises(ValueError, match=r"out: expected the file to write.*add out=model\.pt"):
        export_here(tmp_path, "ckpt_path=last.ckpt")
    with pytest.raises(FileNotFoundError, match=r"ckpt_path: there is no file 'missing\.ckpt'"):
        export_here(tmp_path, "ckpt_path=missing.ckpt", "out=model.pt")


def test_checkpoint_and_file_may_not_be_empty(tmp_path):
    for nothing in ("null", ""):
        with pytest.raises(ValueError, match="ckpt_path: expected the checkpoint of a training"):
            export_here(tmp_path, f"ckpt_path={nothing}", "out=model.pt")
        with pytest.raises(ValueError, match="out: expected the file to write, got none"):
            export_here(tmp_path, "ckpt_path=last.ckpt", f"out={nothing}")


@pytest.mark.parametrize("file", files_of_other_kinds())
def test_a_file_that_is_no_checkpoint(file, tmp_path):
    path, found = file(tmp_path)
    with pytest.raises((ValueError, OSError), match=found):
        export_here(tmp_path, f"ckpt_path={path}", f"out={tmp_path / 'model.pt'}")
    assert not (tmp_path / "model.pt").exists()


@pytest.mark.filterwarnings("ignore:the checkpoint has no target scales")
def test_a_checkpoint_of_another_module_and_a_module_without_a_network(tmp_path):
    checkpoint, out = checkpoint_of_another_module(tmp_path), f"out={tmp_path / 'model.pt'}"
    message = (
        r"expected the weights of MoleculesModel, got .*Missing key.*module\._target_=my_project"
    )
    with pytest.raises(ValueError, match=message):
        export_here(tmp_path, f"ckpt_path={checkpoint}", out)
    identity = "module._target_=torch.nn.Identity"
    with pytest.raises(TypeError, match=r"got Identity without 'network'; set module\._target_"):
        export_here(tmp_path, f"ckpt_path={checkpoint}", out, identity)
    with pytest.raises(IsADirectoryError):
        export_here(tmp_path, f"ckpt_path={checkpoint}", f"out={tmp_path}")


@pytest.mark.slow
def test_a_missing_setting_is_one_line_of_the_command(tmp_path):
    result = launch(tmp_path, "out=model.pt", command=COMMAND)
    assert result.returncode == 1
    assert "lightning-scaler-export: ckpt_path: expected the checkpoint of" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.slow
def test_a_checkpoint_with_an_additive_module_needs_its_code(checkpoints, tmp_path):
    out = tmp_path / "model.pt"
    message = r"baseline: expected the additive module ZBL .*baseline='{_target_: lightning_scaler"
    with pytest.raises(ValueError, match=message):
        export_here(tmp_path, f"ckpt_path={checkpoints[1]}", f"out={out}")
    assert not out.exists()
