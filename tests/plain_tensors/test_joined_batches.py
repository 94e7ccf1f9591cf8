"""Batches of plain tensors of several loaders, joined."""

import ase
import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from small_training import quiet_trainer
from torch.utils.data import DataLoader

from lightning_scaler import (
    PerAtom,
    PerStructure,
    ScaleAccumulator,
    ScaledSteps,
    TargetScaler,
    TargetScalingMixin,
)
from lightning_scaler.plain_tensors import Declaration, read_batch

DECLARED = {"energy": PerStructure(gradients={"positions": "-forces"}), "charges": PerAtom()}
FIRST = {
    "z": torch.tensor([8, 1, 1]),
    "n_atoms": torch.tensor([1, 2]),
    "energy": torch.tensor([-3.0, 5.0]),
    "forces": torch.arange(9.0).reshape(3, 3) / 8,
    "charges": torch.tensor([0.5, -0.25, 0.125]),
}
SECOND = {
    "z": torch.tensor([8, 8, 1]),
    "n_atoms": torch.tensor([3]),
    "energy": torch.tensor([7.0]),
    "forces": -torch.arange(9.0).reshape(3, 3),
}
FORMS = {"dict": {"a": FIRST, "b": SECOND}, "list": [FIRST, SECOND], "tuple": (FIRST, SECOND)}
TOGETHER = {
    name: torch.cat([FIRST[name], SECOND[name]]) for name in ("z", "n_atoms", "energy", "forces")
}


def read(batch):
    return read_batch(batch, Declaration.parse(DECLARED, None))


@pytest.mark.parametrize("form", FORMS)
def test_structures_and_rows_follow_each_other(form):
    systems, targets, masks = read(FORMS[form])
    assert [len(one) for one in systems] == [1, 2, 3]
    assert [one.types.tolist() for one in systems] == [[8], [1, 1], [8, 8, 1]]
    energy, charges = targets["energy"].block(), targets["charges"].block()
    assert energy.values[:, 0].tolist() == [-3.0, 5.0, 7.0]
    assert energy.samples.values[:, 0].tolist() == [0, 1, 2]
    forces = -energy.gradient("positions").values.squeeze(-1)
    assert torch.equal(forces, TOGETHER["forces"])
    assert charges.samples.values.tolist() == [[0, 0], [1, 0], [1, 1]]
    assert masks == {}


def test_outputs_need_predictions_of_the_targets_of_their_own_batch_alone():
    """As of two tasks, each with a loader."""
    targets = {"energy": PerStructure(), "charges": PerAtom()}
    first = {name: FIRST[name] for name in ("z", "n_atoms", "charges")}
    second = {name: SECOND[name] for name in ("z", "n_atoms", "energy")}
    systems, *_ = read_batch({"a": first, "b": second}, Declaration.parse(targets, None))
    output = {"a": {"charges": torch.ones(3)}, "b": {"energy": torch.tensor([6.0])}}
    found = systems.predictions(output, needed=["energy", "charges"])
    assert found["charges"].block().samples.values.tolist() == [[0, 0], [1, 0], [1, 1]]
    assert found["energy"].block().samples.values.tolist() == [[2]]
    assert found["energy"].block().values.tolist() == [[6.0]]


def test_a_loader_that_has_ended_is_left_out():
    systems, targets, _ = read({"a": None, "b": SECOND})
    assert len(systems) == 1
    assert targets["energy"].block().values.tolist() == [[7.0]]


@pytest.mark.parametrize("form", [dict, list, tuple])
def test_lists_of_ase_atoms_are_joined(form):
    first = [ase.Atoms("O", info={"energy": -3.0}), ase.Atoms("H2", info={"energy": 5.0})]
    second = [ase.Atoms("OOH", info={"energy": 7.0})]
    batch = {"a": first, "b": second} if form is dict else form([first, None, second])
    systems, targets, _ = read_batch(batch, Declaration({"energy": PerStructure()}))
    assert systems.atoms.types.tolist() == [8, 1, 1, 8, 8, 1]
    assert targets["energy"].block().values[:, 0].tolist() == [-3.0, 5.0, 7.0]


@pytest.mark.parametrize("order", ["ab", "ba"])
def test_a_loader_may_be_without_the_energies(order):
    parts = {"a": FIRST, "b": {name: SECOND[name] for name in ("z", "n_atoms")}}
    accumulator = ScaleAccumulator({"energy": PerStructure()}, baseline=None)
    accumulator.update({key: parts[key] for key in order})
    # Per atom: -3 and 5/2.
    scale = accumulator.compute().scales["energy"].block().values.item()
    assert scale == pytest.approx(((9 + 6.25) / 2) ** 0.5)


def test_scales_are_those_of_one_batch():
    scales = []
    for batch in (FORMS["dict"], TOGETHER):
        accumulator = ScaleAccumulator({"energy": DECLARED["energy"]})
        accumulator.update(batch)
        scales.append(accumulator.compute().scales["energy"].block().values)
    assert torch.equal(*scales)


def test_batches_and_outputs_are_converted_each_in_its_place():
    accumulator = ScaleAccumulator({"energy": DECLARED["energy"]})
    accumulator.update(FORMS["dict"])
    scaler = accumulator.compute()
    expected = scaler.convert(TOGETHER, TOGETHER)
    for batch in FORMS.values():
        converted = scaler.convert(batch, batch)
        parts = [*converted.values()] if isinstance(converted, dict) else converted
        assert torch.equal(torch.cat([part["energy"] for part in parts]), expected["energy"])
        assert torch.equal(torch.cat([part["forces"] for part in parts]), expected["forces"])
    output = {
        key: {"energy": part["energy"], "forces": part["forces"]}
        for key, part in FORMS["dict"].items()
    }
    physical = scaler.convert(FORMS["dict"], output, source="model", target="physical")
    whole = scaler.convert(TOGETHER, {**TOGETHER}, source="model", target="physical")
    assert torch.equal(torch.cat([physical[key]["energy"] for key in "ab"]), whole["energy"])
    assert FIRST["energy"].tolist() == [-3.0, 5.0]


def test_an_output_for_each_batch_is_needed():
    systems, _, _ = read(FORMS["dict"])
    message = r"an output for each, .*\['a', 'b'\], got a dict with a; if they are one batch, "
    with pytest.raises(ValueError, match=message):
        systems.predictions({"a": FIRST})


def test_targets_that_no_batch_has_are_named():
    parts = {key: {**part} for key, part in FORMS["dict"].items()}
    for part in parts.values():
        part.pop("charges", None)
    systems, targets, _ = read(parts)
    assert set(targets) == {"energy"}
    assert systems.describe_missing_targets()["charges"].startswith("target 'charges': expected")
    assert systems.names_in_batch() == {"energy"}
    assert not systems.may_lack_targets


@pytest.mark.parametrize("batch", [{"a": FIRST, "b": 3.0}, [FIRST, "b"], [], {"a": None}])
def test_what_is_not_a_batch_is_refused_as_before(batch):
    with pytest.raises(TypeError, match="expected the atomic types of the batch"):
        read(batch)


class Net(LightningModule):
    """Energies that are linear in the numbers of oxygen atoms, and charges."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def predict(self, batch):
        oxygen = (batch["z"] == 8).float()[:, None]
        charges = self.layer(oxygen)[:, 0]
        owner = torch.arange(len(batch["n_atoms"])).repeat_interleave(batch["n_atoms"])
        energy = torch.zeros(len(batch["n_atoms"])).index_add(0, owner, charges)
        return {"energy": energy, "charges": charges}

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


class Mixed(TargetScalingMixin, Net):
    def forward(self, batch):
        if "z" in batch:  # of the validation, which reads one loader after another
            return self.predict(batch)
        return {key: self.predict(part) for key, part in batch.items()}


class Theirs(Net):
    def forward(self, batch):
        return self.predict(batch)

    def training_step(self, batch, batch_idx):
        self.seen = {key: part["energy"] for key, part in batch.items()}
        outputs = {key: self(part) for key, part in batch.items()}
        return sum((outputs[key]["energy"] - batch[key]["energy"]).square().sum() for key in batch)


class Ours(ScaledSteps, Theirs):
    pass


@pytest.mark.parametrize("kind", [Mixed, Ours])
def test_several_loaders_train(tmp_path, kind):
    def loader(part):
        return DataLoader([part], batch_size=None)

    loaders = CombinedLoader({"a": loader(FIRST), "b": loader(SECOND)}, "max_size")
    targets = {"energy": PerStructure(), "charges": PerAtom()}
    net = kind()
    trainer = quiet_trainer(tmp_path, callbacks=[TargetScaler(targets=targets, baseline="none")])
    trainer.fit(net, loaders, loader(SECOND) if kind is Mixed else None)
    scaler = net.scaler if kind is Mixed else net.target_scaler
    # Per atom: -3, 5/2 and 7/3.
    expected = ((9 + 6.25 + 49 / 9) / 3) ** 0.5
    assert scaler.scales["energy"].block().values.item() == pytest.approx(expected, rel=1e-6)
    if kind is Ours:
        scale = torch.tensor(expected, dtype=torch.float64)
        assert torch.allclose(net.seen["b"], SECOND["energy"] / scale.float())
