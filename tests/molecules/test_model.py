"""Symmetries, forces, batches and dtypes of the example model."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from builders import system
from deployable import register_neighbors
from lightning.pytorch import Trainer
from metatensor.torch import TensorMap
from metatomic.torch import System

from lightning_scaler import TargetScaler
from lightning_scaler.molecules.datamodule import MoleculesDataModule
from lightning_scaler.molecules.dataset import MoleculesDataset, collate
from lightning_scaler.molecules.model import MoleculesModel
from lightning_scaler.molecules.targets import TARGETS, neighbor_list_options

COMPATIBILITY = Path(__file__).parents[1] / "compatibility"
CUTOFF = 3.0
ROTATION = torch.linalg.qr(
    torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
).Q
ROTATION = ROTATION * torch.linalg.det(ROTATION)
INVERSION = -torch.eye(3, dtype=torch.float64)

# Second-rank matrices of the components m = -2..2: xy, yz, z², xz, x²-y².
_XX, _YY, _ZZ = (torch.diag(row) for row in torch.eye(3, dtype=torch.float64))
QUADRUPOLES = torch.zeros(5, 3, 3, dtype=torch.float64)
for m, (a, b) in zip((0, 1, 3), ((0, 1), (1, 2), (0, 2)), strict=True):
    QUADRUPOLES[m, a, b] = QUADRUPOLES[m, b, a] = 2**-0.5
QUADRUPOLES[2] = (2 * _ZZ - _XX - _YY) / 6**0.5
QUADRUPOLES[4] = (_XX - _YY) / 2**0.5


@pytest.fixture(scope="module")
def model() -> Iterator[MoleculesModel]:
    """A model in float64 that tests must not change."""
    # e3nn rounds its coupling coefficients to the default dtype when a module is built.
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield MoleculesModel(channels=4, cutoff=CUTOFF)
    torch.set_default_dtype(torch.float32)


def make_system(types: list[int], positions: torch.Tensor) -> System:
    return register_neighbors(system(*types, positions=positions), neighbor_list_options(CUTOFF))


def make_systems(rotation: torch.Tensor | None = None) -> list[System]:
    """Three clusters without symmetry, some of whose pairs are beyond the cutoff."""
    generator = torch.Generator().manual_seed(2)
    systems = []
    for types in ([8, 1, 6, 7], [6, 9], [1, 7, 6, 8, 1, 1]):
        positions = 1.4 * torch.randn(len(types), 3, dtype=torch.float64, generator=generator)
        systems.append(
            make_system(types, positions if rotation is None else positions @ rotation.T)
        )
    return systems


def tables(predictions: dict[str, TensorMap]) -> dict[str, torch.Tensor]:
    """Values of every block, and the gradient, by name."""
    found = {}
    for name, tensor in predictions.items():
        for i, block in enumerate(tensor.blocks()):
            found[f"{name}/{i}"] = block.values.detach().squeeze(-1)
    gradient = predictions["energy"][0].gradient("positions")
    return {**found, "gradient": gradient.values.detach().squeeze(-1)}


@pytest.mark.slow
@pytest.mark.parametrize(
    "rotation", [ROTATION, INVERSION, -ROTATION], ids=["rotation", "inversion", "both"]
)
def test_outputs_are_equivariant(model, rotation):
    before, after = tables(model(make_systems())), tables(model(make_systems(rotation)))
    for name, value in before.items():
        if name in ("dipole/0", "gradient"):
            value = value @ rotation.T
        elif name == "atomic_dipoles/0":  # y z x
            value = (value[:, [2, 0, 1]] @ rotation.T)[:, [1, 2, 0]]
        elif name == "polarizability/1":
            matrix = rotation @ torch.einsum("nm,mab->nab", value, QUADRUPOLES) @ rotation.T
            value = torch.einsum("nab,mab->nm", matrix, QUADRUPOLES)
        assert value.abs().max() > 1e-3
        torch.testing.assert_close(after[name], value, rtol=0, atol=1e-8)


def test_outputs_have_the_layouts_of_the_targets(model):
    predictions = model(make_systems())
    assert set(predictions) == set(TARGETS)
    for name, target in TARGETS.items():
        assert predictions[name].keys == target.keys
        for block, components in zip(predictions[name].blocks(), target.components, strict=True):
            assert len(block.samples) == (12 if target.per_atom else 3)
            assert block.components == components
            assert block.properties == target.properties
    assert predictions["charges"][0].samples.values[4].tolist() == [1, 0]


@pytest.mark.slow
def test_gradient_is_the_derivative_of_the_energy(model):
    types, step = [8, 1, 6, 7], 1e-4
    positions = make_systems()[0].positions
    analytic = model([make_system(types, positions)])["energy"][0].gradient("positions").values
    for atom in range(len(types)):
        for axis in range(3):
            energies = []
            for sign in (1, -1):
                moved = positions.clone()
                moved[atom, axis] += sign * step
                energies.append(model([make_system(types, moved)])["energy"][0].values.item())
            numeric = (energies[0] - energies[1]) / (2 * step)
            assert analytic[atom, axis, 0].item() == pytest.approx(numeric, rel=1e-5, abs=1e-6)


def test_outputs_vanish_smoothly_at_the_cutoff(model):
    """Two atoms just within the cutoff have the energy of two atoms just beyond it."""
    energies = [
        model([make_system([6, 8], torch.tensor([[0.0, 0, 0], [0, 0, distance]]))])["energy"][0]
        for distance in (CUTOFF - 1e-3, CUTOFF + 1e-3)
    ]
    torch.testing.assert_close(energies[0].values, energies[1].values)
    assert energies[0].gradient("positions").values.abs().max() < 1e-6


def test_outputs_of_a_system_do_not_depend_on_its_batch(model):
    systems = make_systems()
    batch = tables(model(systems))
    owner = torch.tensor([len(s) for s in systems])
    owner = torch.arange(len(systems)).repeat_interleave(owner)
    for i, one in enumerate(systems):
        for name, value in tables(model([one])).items():
            rows = [i] if len(batch[name]) == len(systems) else (owner == i)
            torch.testing.assert_close(value, batch[name][rows], rtol=0, atol=1e-10)


def test_outputs_of_a_single_atom_are_finite_and_its_force_is_zero(model):
    predictions = tables(model([make_system([8], torch.zeros(1, 3))]))
    assert all(value.isfinite().all() for value in predictions.values())
    assert not predictions["gradient"].any()


def test_systems_are_not_modified(model):
    systems = make_systems()
    before = [system.positions.clone() for system in systems]
    model(systems)
    for one, positions in zip(systems, before, strict=True):
        assert not one.positions.requires_grad
        assert torch.equal(one.positions, positions)


def test_every_parameter_has_a_gradient(model):
    model = copy.deepcopy(model)
    predictions = model(make_systems())
    gradient = predictions["energy"][0].gradient("positions").values
    blocks = [block for tensor in predictions.values() for block in tensor.blocks()]
    loss = sum(block.values.square().mean() for block in blocks) + gradient.square().mean()
    loss.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.slow
def test_evaluation_without_autograd_returns_the_same_values(model):
    with_gradients = tables(model(make_systems()))
    model = copy.deepcopy(model).eval()
    with torch.inference_mode(), torch.inference_mode(False), torch.no_grad():
        predictions = model(make_systems())
    assert not any(b.values.requires_grad for t in predictions.values() for b in t.blocks())
    for name, value in tables(predictions).items():
        torch.testing.assert_close(value, with_gradients[name])


def test_float32_outputs_agree_with_float64(model):
    expected = tables(model(make_systems()))
    systems = [system.to(torch.float32) for system in make_systems()]
    predictions = copy.deepcopy(model).float()(systems)
    for name, value in tables(predictions).items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value.double(), expected[name], rtol=1e-3, atol=1e-4)


def test_bfloat16_parameters_accept_float32_systems(model):
    systems = [system.to(torch.float32) for system in make_systems()]
    predictions = copy.deepcopy(model).bfloat16()(systems)
    assert all(value.isfinite().all() for value in tables(predictions).values())


def test_a_missing_neighbor_list_is_refused():
    with pytest.raises(ValueError, match=r"neighbor list with cutoff 4.0.* cutoffs \[3.0\]"):
        MoleculesModel(channels=4, layers=1, cutoff=4.0)(make_systems())


@pytest.mark.slow
def test_a_checkpoint_of_version_0_1_0_gives_the_same_predictions():
    checkpoint = COMPATIBILITY / "molecules.ckpt"
    model = MoleculesModel.load_from_checkpoint(checkpoint, weights_only=True).eval()
    data = MoleculesDataset("molecules", CUTOFF)
    predictions = model.predict_step(collate([data[0], data[10]]), 0)
    expected = json.loads((COMPATIBILITY / "molecules.json").read_text())
    assert predictions.keys() == expected.keys()
    for name, tensor in predictions.items():
        values = torch.cat([block.values.reshape(-1) for block in tensor.blocks()]).double()
        numbers = torch.tensor(expected[name], dtype=torch.float64)
        largest = float(numbers.abs().max())  # the network is in float32
        torch.testing.assert_close(values, numbers, rtol=0.0, atol=1e-5 * largest)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch")
def test_training_continues_from_a_checkpoint_of_version_0_1_0(tmp_path):
    model = MoleculesModel(channels=2, layers=1, cutoff=CUTOFF, n_radial=2)
    quiet = {name: False for name in ("enable_progress_bar", "enable_model_summary", "logger")}
    trainer = Trainer(
        max_steps=4,
        limit_val_batches=0,
        accelerator="cpu",
        callbacks=[TargetScaler()],
        default_root_dir=tmp_path,
        enable_checkpointing=False,
        **quiet,
    )
    checkpoint = COMPATIBILITY / "molecules.ckpt"
    trainer.fit(model, MoleculesDataModule(cutoff=CUTOFF), ckpt_path=checkpoint, weights_only=True)
    steps = {float(state["step"]) for state in trainer.optimizers[0].state.values()}
    assert steps == {4.0}
