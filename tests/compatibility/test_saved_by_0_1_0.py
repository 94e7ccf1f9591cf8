"""Scaler states and a checkpoint saved by version 0.1.0 load and give the same numbers.

README.md in this folder says what each file holds. The files are never written again.
"""

import json
import math
from pathlib import Path

import pytest
import torch
from builders import (
    Springs,
    atom_samples,
    atom_target,
    atomic_basis,
    forces,
    labels,
    pair_target,
    spherical,
    structure_target,
    system,
)
from small_training import SmallData, SmallNet, quiet_trainer, scaler_callback
from torch.utils.data import DataLoader

from lightning_scaler import Scaler

# Only numbers must not change; a later version may warn about data missing in an old file.
pytestmark = pytest.mark.filterwarnings("default::UserWarning")

FOLDER = Path(__file__).parent
EXPECTED = json.loads((FOLDER / "expected.json").read_text())
STATES = ["scaler_state_1.pt", "scaler_state_2.pt"]
CHECKPOINT = FOLDER / "checkpoint.ckpt"
NAN = math.nan

SYSTEMS = [system(8, 1, 1), system(6), system(1, 8, 6, 1)]
ATOMS = atom_samples(3, 1, 4)
VALUES = {
    "energy": structure_target(
        [3.0, -1.5, 0.75],
        gradient={
            "positions": [
                [[0.5, -1.0, 2.0], [1.5, 0.25, -3.0], [0.75, 1.25, -0.5]],
                [[4.0, -2.5, 1.0]],
                [[-1.0, 3.5, 0.125], [2.5, -0.75, 1.0], [0.5, 0.5, -4.5], [6.0, 1.0, -0.25]],
            ]
        },
    ),
    "gap": structure_target([2.5, 4.0, -1.25], name="gap"),
    "enthalpy": structure_target([1.5, -2.0, 4.5], name="enthalpy"),
    "alpha": spherical(
        {
            0: [[[1.0, 2.0]], [[-3.0, 0.5]], [[2.25, -1.5]]],
            2: [
                [[0.5], [1.0], [-2.0], [3.0], [0.25]],
                [[-1.0], [0.5], [4.0], [1.5], [-0.5]],
                [[2.0], [-3.0], [1.0], [0.75], [5.0]],
            ],
        },
        labels("system", [0, 1, 2]),
    ),
    "charges": atom_target([0.5, -1.0, 2.0, 3.0, 1.25, -0.75, 4.0, -2.5], ATOMS),
    "forces": forces(
        [
            [1.0, -2.0, 0.5],
            [3.0, 0.25, -1.0],
            [-0.5, 4.0, 2.0],
            [1.5, -1.5, 0.75],
            [2.5, 1.0, -3.5],
            [-4.0, 0.5, 1.25],
            [0.125, -6.0, 2.0],
            [5.0, 1.75, -0.25],
        ],
        *(3, 1, 4),
    ),
    "spins": atom_target([1.0, 0.5, -0.25, 2.0, -1.5, 3.0, 0.75, 4.0], ATOMS, name="spin"),
    "moments": spherical(
        {
            1: [
                [[1.0, -2.0], [0.5, 3.0], [-1.5, 0.25]],
                [[2.0, 1.0], [-0.75, 4.0], [0.5, -3.0]],
                [[-1.0, 0.125], [6.0, 2.5], [1.5, -0.5]],
                [[0.25, 5.0], [-2.0, 1.25], [3.5, 0.75]],
                [[4.0, -1.0], [0.5, 2.0], [-3.0, 1.5]],
                [[-0.5, 3.0], [1.0, -2.5], [2.0, 0.5]],
                [[1.75, -4.0], [-1.0, 0.5], [0.25, 2.0]],
                [[3.0, 0.75], [2.5, -1.5], [-6.0, 1.0]],
            ],
            2: [
                [[0.5], [1.0], [-2.0], [3.0], [0.25]],
                [[-1.0], [0.5], [4.0], [1.5], [-0.5]],
                [[2.0], [-3.0], [1.0], [0.75], [5.0]],
                [[1.25], [0.5], [-1.0], [2.5], [-4.0]],
                [[3.5], [-0.25], [2.0], [1.0], [0.5]],
                [[-2.0], [1.5], [0.75], [-3.0], [6.0]],
                [[0.125], [4.0], [-1.5], [2.0], [1.0]],
                [[-0.5], [2.5], [3.0], [-1.0], [1.75]],
            ],
        },
        ATOMS,
    ),
    "basis": atomic_basis(
        {
            (0, 1): [[[1.0, 2.0]], [[-0.5, 3.0]], [[2.5, -1.0]], [[0.25, 4.0]]],
            (0, 8): [[[1.5]], [[-2.0]]],
            (1, 8): [
                [[0.5, -1.0], [2.0, 3.0], [-0.25, 1.5]],
                [[4.0, 0.75], [-3.0, 1.0], [2.5, -0.5]],
            ],
        },
        {1: [[0, 1], [0, 2], [2, 0], [2, 3]], 8: [[0, 0], [2, 1]]},
    ),
    "hopping": pair_target([0.5, -1.5], [[0, 0, 1, 0, 0, 0], [2, 1, 3, 0, 0, 1]]),
}
# The second shielding was never measured for carbon.
SHIELDINGS = {
    "shieldings": atom_target(
        [
            [1.0, -2.0],
            [3.0, 0.5],
            [-1.5, 4.0],
            [2.0, NAN],
            [0.75, 1.0],
            [5.0, -0.25],
            [-3.0, NAN],
            [2.5, 1.5],
        ],
        ATOMS,
        name="shielding",
    )
}
SHIELDINGS_WITHOUT_CARBON = {
    "shieldings": atom_target(
        [[1.0, -2.0], [3.0, 0.5], [-1.5, 4.0]], atom_samples(3), name="shielding"
    )
}

# Neither 7 nor 9 is in the data of the fit; both have a fixed baseline of the enthalpy and of the
# spins, 9 has a fixed scale of the forces.
UNSEEN = [system(7, 9, 1)]
UNSEEN_ATOMS = atom_samples(3)
UNSEEN_VALUES = {
    "enthalpy": structure_target([1.5], name="enthalpy"),
    "forces": forces([[1.0, -2.0, 0.5], [3.0, 0.25, -1.0], [-0.5, 4.0, 2.0]], 3),
    "spins": atom_target([1.0, 0.5, -0.25], UNSEEN_ATOMS, name="spin"),
    "moments": spherical(
        {
            1: [
                [[1.0, -2.0], [0.5, 3.0], [-1.5, 0.25]],
                [[2.0, 1.0], [-0.75, 4.0], [0.5, -3.0]],
                [[-1.0, 0.125], [6.0, 2.5], [1.5, -0.5]],
            ],
            2: [
                [[0.5], [1.0], [-2.0], [3.0], [0.25]],
                [[-1.0], [0.5], [4.0], [1.5], [-0.5]],
                [[2.0], [-3.0], [1.0], [0.75], [5.0]],
            ],
        },
        UNSEEN_ATOMS,
    ),
}
# Positions in the batch for the second state, ids by first appearance for the first.
REORDERED = {"enthalpy": structure_target([1.5, -2.0, 4.5], [2, 0, 1], name="enthalpy")}

CONVERSIONS = {
    "physical to loss": (SYSTEMS, {**VALUES, **SHIELDINGS}, "physical", "loss"),
    "physical to model": (SYSTEMS, {**VALUES, **SHIELDINGS}, "physical", "model"),
    "loss to physical": (SYSTEMS, VALUES, "loss", "physical"),
    "loss to model": (SYSTEMS, {**VALUES, **SHIELDINGS}, "loss", "model"),
    "model to physical": (SYSTEMS, VALUES, "model", "physical"),
    "model to loss": (SYSTEMS, {**VALUES, **SHIELDINGS}, "model", "loss"),
    "shieldings": (SYSTEMS[:1], SHIELDINGS_WITHOUT_CARBON, "model", "physical"),
    "unseen types, physical to loss": (UNSEEN, UNSEEN_VALUES, "physical", "loss"),
    "unseen types, loss to physical": (UNSEEN, UNSEEN_VALUES, "loss", "physical"),
    "unseen types, model to physical": (UNSEEN, UNSEEN_VALUES, "model", "physical"),
    "system labels": (SYSTEMS, REORDERED, "physical", "loss"),
}

# One atom of each type of the fit, at the origin, where springs have no energy. Only blocks with
# a baseline.
SINGLE_ATOMS = [system(1), system(6), system(8)]
EACH = atom_samples(1, 1, 1)
ZEROS = {
    "energy": structure_target([0.0] * 3),
    "gap": structure_target([0.0] * 3, name="gap"),
    "enthalpy": structure_target([0.0] * 3, name="enthalpy"),
    "alpha": spherical({0: torch.zeros(3, 1, 2)}, labels("system", [0, 1, 2])),
    "charges": atom_target([0.0] * 3, EACH),
    "spins": atom_target([0.0] * 3, EACH, name="spin"),
    "shieldings": atom_target(torch.zeros(2, 2), [[0, 0], [2, 0]], name="shielding"),
    "basis": atomic_basis(
        {(0, 1): torch.zeros(1, 1, 2), (0, 8): torch.zeros(1, 1, 1)}, {1: [[0, 0]], 8: [[2, 0]]}
    ),
}


def restored(file: str, how: str, folder: Path) -> Scaler:
    """The scaler of a state, in one of the ways a user loads it."""
    # The weights of the module are part of the state: 0.75, not those given here.
    additive = Springs(k=0.0) if file == "scaler_state_2.pt" else None
    if how == "load":
        return Scaler.load(FOLDER / file, additive)
    if how == "saved again":
        Scaler.load(FOLDER / file).save(folder / "again.pt")
        return Scaler.load(folder / "again.pt", additive)
    module = torch.nn.ModuleDict({"layer": torch.nn.Linear(1, 1), "scaler": Scaler()})
    state = module.state_dict()
    state["scaler._extra_state"] = torch.load(FOLDER / file, weights_only=True)
    module.load_state_dict(state)
    if additive is not None:
        module["scaler"].set_additive(additive)
    return module["scaler"]


def numbers(tensor) -> list[list[float | None]]:
    """Values and gradients of each block, flat; ``None`` where a value is missing."""
    blocks = []
    for block in tensor.blocks():
        parts = [block.values, *(block.gradient(name).values for name in block.gradients_list())]
        flat = torch.cat([part.flatten() for part in parts])
        assert flat.dtype == torch.float64
        blocks.append([None if math.isnan(value) else value for value in flat.tolist()])
    return blocks


def scales_of(scaler: Scaler) -> dict:
    """All that a scaler shows: layouts and scales by target name."""
    return {
        name: {
            "keys": [tensor.keys.names, tensor.keys.values.tolist()],
            "properties": [
                [block.properties.names, block.properties.values.tolist()]
                for block in tensor.blocks()
            ],
            "types": tensor.block_by_id(0).samples.values.flatten().tolist(),
            "per_target_scales": numbers(scaler.per_target_scales[name]),
            "per_property_scales": numbers(scaler.per_property_scales[name]),
            "scales": numbers(tensor),
        }
        for name, tensor in scaler.scales.items()
    }


def convert(scaler: Scaler, conversion: str) -> dict[str, list[list[float | None]]]:
    systems, tensors, source, target = CONVERSIONS[conversion]
    converted = scaler.convert(systems, tensors, source, target)
    return {name: numbers(tensor) for name, tensor in converted.items()}


def assert_close(found: dict, expected: dict, rtol: float = 1e-15, where: str = "") -> None:
    """Numbers by target name and block; the order of the operations is free to change."""
    assert found.keys() == expected.keys(), where
    for name, blocks in found.items():
        for ours, theirs in zip(blocks, expected[name], strict=True):
            ours, theirs = ([NAN if x is None else x for x in part] for part in (ours, theirs))
            assert ours == pytest.approx(theirs, rel=rtol, abs=rtol, nan_ok=True), (where, name)


ways_to_load = pytest.mark.parametrize("how", ["load", "load_state_dict", "saved again"])
both_states = pytest.mark.parametrize("file", STATES)


@both_states
@ways_to_load
def test_scales_of_a_saved_state_are_the_same_to_the_bit(tmp_path, file, how):
    assert scales_of(restored(file, how, tmp_path)) == EXPECTED[file]["scales"]


@both_states
@ways_to_load
def test_composition_weights_of_a_saved_state_are_the_same(tmp_path, file, how):
    converted = restored(file, how, tmp_path).convert(SINGLE_ATOMS, ZEROS, "loss", "physical")
    found = {name: numbers(tensor) for name, tensor in converted.items()}
    if file == "scaler_state_2.pt":
        # Springs add charges of a tenth of the type.
        charges = zip(found["charges"][0], [1, 6, 8], strict=True)
        found["charges"] = [[charge - 0.1 * z for charge, z in charges]]
    assert_close(found, EXPECTED[file]["weights"])


@both_states
@ways_to_load
def test_conversions_of_a_saved_state_are_the_same(tmp_path, file, how):
    scaler = restored(file, how, tmp_path)
    for conversion, expected in EXPECTED[file]["conversions"].items():
        assert_close(convert(scaler, conversion), expected, where=conversion)


@both_states
def test_extensive_and_intensive_targets_of_a_saved_state_stay_so(tmp_path, file):
    net = SmallNet().double()
    net.scaler = restored(file, "load", tmp_path)
    names = ("energy", "gap", "alpha")
    loss = net.targets_to_loss(SYSTEMS, {name: VALUES[name] for name in names})
    for name in names:
        # The loss is taken per atom, except for the gap.
        n_atoms = torch.tensor([1, 1, 1] if name == "gap" else [3, 1, 4])[:, None]
        totals = EXPECTED[file]["conversions"]["physical to loss"][name]
        for block, expected in zip(loss[name].blocks(), totals, strict=True):
            found = block.values.flatten(1) * n_atoms
            # The values come first, their gradients after them.
            expected = torch.tensor(expected, dtype=torch.float64)[: found.numel()]
            torch.testing.assert_close(found, expected.reshape_as(found), rtol=1e-14, atol=1e-14)


def test_a_saved_additive_module_must_be_given_again():
    scaler = Scaler.load(FOLDER / "scaler_state_2.pt")
    with pytest.raises(RuntimeError, match="Springs"):
        scaler.convert(SYSTEMS, {"energy": VALUES["energy"]})
    gap = scaler.convert(SYSTEMS, {"gap": VALUES["gap"]})["gap"]
    expected = EXPECTED["scaler_state_2.pt"]["conversions"]["physical to loss"]["gap"]
    assert_close({"gap": numbers(gap)}, {"gap": expected})


# The checkpoint.


class AdamNet(SmallNet):
    """The network of the checkpoint, whose optimizer has a state."""

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=self.hparams["lr"])


SETTINGS = {
    "fixed_scales": {"charges": {1: 0.5, 6: 0.25, 8: 0.75}},
    "fixed_baseline": {"energy": {1: -1000.5, 6: -2000.25, 8: -3001.0}},
    "unseen_types": "pooled",
}
TARGETS_OF_CHECKPOINT = ("energy", "dipole", "polarizability", "charges")


def predictions(net, folder: Path) -> dict[str, list[list[float | None]]]:
    """In physical units, with the float32 weights of the checkpoint in float64."""
    loader = DataLoader(SYSTEMS, batch_size=3, collate_fn=lambda systems: {"system": systems})
    (batch,) = quiet_trainer(folder, precision="64-true").predict(net, loader)
    return {name: numbers(batch[name]) for name in TARGETS_OF_CHECKPOINT}


def test_load_from_checkpoint_restores_scales_and_predictions(tmp_path):
    net = AdamNet.load_from_checkpoint(CHECKPOINT, weights_only=True)
    assert scales_of(net.scaler) == EXPECTED["checkpoint.ckpt"]["scales"]
    expected = EXPECTED["checkpoint.ckpt"]["predictions"]
    assert_close(predictions(net, tmp_path), expected, rtol=1e-12)


def test_load_state_dict_of_a_checkpoint_restores_scales_and_predictions(tmp_path):
    net = AdamNet()
    net.load_state_dict(torch.load(CHECKPOINT, weights_only=True)["state_dict"])
    assert scales_of(net.scaler) == EXPECTED["checkpoint.ckpt"]["scales"]
    expected = EXPECTED["checkpoint.ckpt"]["predictions"]
    assert_close(predictions(net, tmp_path), expected, rtol=1e-12)


def test_a_resumed_run_keeps_the_scales_and_reads_no_data_for_a_fit(tmp_path):
    # In units in which a new fit would give other scales.
    data, net = SmallData(factors={"dipole": 2.0, "polarizability": 0.5}), AdamNet()
    trainer = quiet_trainer(tmp_path, callbacks=[scaler_callback(**SETTINGS)], max_epochs=2)
    with (
        pytest.warns(UserWarning, match="mean squares of the loss terms .* are unknown"),
        pytest.warns(UserWarning, match=r"may not suit these data.*20\.2 for 'polarizability'"),
    ):
        trainer.fit(net, data, ckpt_path=CHECKPOINT, weights_only=True)
    assert sorted(data.train.reads) == list(range(22))  # the second epoch alone
    assert scales_of(net.scaler) == EXPECTED["checkpoint.ckpt"]["scales"]
    # Six steps before the checkpoint, six after it.
    assert trainer.global_step == 12
    assert trainer.optimizers[0].state[net.weights]["step"].item() == 12.0


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"intensive_targets": ["dipole"]}, r"intensive_targets.*polarizability"),
        ({"fixed_scales": {"charges": {1: 0.5, 6: 0.25, 8: 1.0}}}, r"fixed_scales.*charges"),
        ({"fixed_baseline": {}}, r"fixed_baseline.*energy"),
        ({"unseen_types": "identity"}, r"unseen_types.*'pooled'.*'identity'"),
        ({"baseline": "none", "fixed_baseline": {}}, r"baseline.*composition"),
        ({"enabled": False}, r"enabled.*True.*False"),
    ],
)
def test_settings_that_contradict_those_of_the_checkpoint_are_an_error(tmp_path, setting, message):
    callback = scaler_callback(**{**SETTINGS, **setting})
    trainer = quiet_trainer(tmp_path, callbacks=[callback], max_epochs=2)
    with pytest.raises(ValueError, match=message):
        trainer.fit(AdamNet(), SmallData(), ckpt_path=CHECKPOINT, weights_only=True)
