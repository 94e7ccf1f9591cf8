"""Scales of atomic-basis targets: of a block's own type from its data, 1 for all other types."""

import json
from pathlib import Path

import metatensor.torch as mts
import pytest
import torch
from builders import atomic_basis, fit, labels, system
from metatensor.torch import TensorBlock, TensorMap

from lightning_scaler import Scaler

FIXTURE = Path(__file__).parent / "metatrain_fixture"
FILES = (FIXTURE / "scaler.ckpt", FIXTURE / "composition_model.ckpt")
# Numbers that metatrain itself has converted, by block: keys (o3_lambda, atom_type).
ORBITALS = [(0, 1), (0, 6), (1, 6), (0, 8), (1, 8)]
CONVERTED = json.loads((FIXTURE / "expected.json").read_text())["orbitals"]


def rows_by_type(scales):
    """Rows of each block by (o3_lambda, atom_type) and type."""
    rows = {}
    for key, block in scales.items():
        of_block = zip(block.samples.column("atomic_type").tolist(), block.values, strict=True)
        rows[key["o3_lambda"], key["atom_type"]] = {z: row.tolist() for z, row in of_block}
    return rows


@pytest.mark.parametrize("block", range(len(ORBITALS)), ids=[str(key) for key in ORBITALS])
def test_blocks_of_metatrain_scale_their_own_type_alone(block):
    rows = rows_by_type(Scaler.from_metatrain(*FILES).scales["orbitals"])
    assert list(rows) == ORBITALS
    of_block = rows[ORBITALS[block]]
    own = of_block.pop(ORBITALS[block][1])
    n_properties = len(own)
    assert of_block.keys() == {1, 6, 8} - {ORBITALS[block][1]}
    for row in of_block.values():
        assert row == pytest.approx([1.0] * n_properties, rel=1e-15)
    # physical = scale · model + baseline, the same baseline for all atoms of a type: differences.
    model, physical = (
        torch.tensor(CONVERTED[block][space], dtype=torch.float64).reshape(-1, n_properties)
        for space in ("model", "physical")
    )
    slopes = (physical[1:] - physical[:1]) / (model[1:] - model[:1])
    assert len(slopes) > 0
    expected = torch.tensor(own, dtype=torch.float64).expand_as(slopes)
    torch.testing.assert_close(slopes, expected, rtol=1e-10, atol=0.0)


def test_blocks_of_metatrain_have_a_baseline_of_their_own_type_alone():
    """Weights of all types are in one block of metatrain, some with the same properties."""
    scales = Scaler.from_metatrain(*FILES).targets["orbitals"]
    types = scales.baseline_types.tolist()
    found = {
        key[-1]: [z for z, row in zip(types, table.tolist(), strict=True) if any(row)]
        for key, table in scales.weights.items()
    }
    assert scales.layout.key_names[-1] == "atom_type"
    assert found == {1: [1], 6: [6], 8: [8]}


# metatrain keeps one block for all types, with the properties of any of them: λ = 0 has the
# properties 0 (H and O) and 1 (O alone), λ = 1 the property 0 of O.
SCALES_OF_H_AND_O = [2.0, 4.0]
FULL = {0: [[3.0, 1.0], [5.0, 6.0]], 1: [[1.0], [7.0]]}
LAYOUT = atomic_basis(
    {(0, 1): [[[0.0]]], (0, 8): [[[0.0, 0.0]]], (1, 8): torch.zeros(1, 3, 1)},
    {1: [[0, 0]], 8: [[0, 1]]},
)


def state_dict():
    """The buffers of a metatrain Scaler, for the types 1 and 8."""
    per_target = torch.tensor(SCALES_OF_H_AND_O).double()[:, None]
    full = {o3_lambda: torch.tensor(rows).double() for o3_lambda, rows in FULL.items()}
    buffers = {
        "": full,
        "_per_target": {k: per_target.expand_as(rows).clone() for k, rows in full.items()},
        "_per_property": {k: rows / per_target for k, rows in full.items()},
    }
    found = {}
    for name, of_blocks in buffers.items():
        blocks = [
            TensorBlock(rows, labels("atomic_type", [0, 1]), [], labels("n", range(rows.shape[1])))
            for rows in of_blocks.values()
        ]
        keys = labels(["o3_lambda", "o3_sigma"], [[o3_lambda, 1] for o3_lambda in of_blocks])
        found[f"orbitals{name}_scaler_buffer"] = mts.save_buffer(TensorMap(keys, blocks))
    return found


def imported():
    options = {"layouts": {"orbitals": LAYOUT}, "atomic_types": [1, 8]}
    return Scaler.from_metatrain(state_dict(), {}, **options)


def test_blocks_of_a_state_dict_scale_their_own_type_alone():
    scaler = imported()
    assert rows_by_type(scaler.scales["orbitals"]) == {
        (0, 1): {1: [3.0], 8: [1.0]},
        (0, 8): {1: [1.0, 1.0], 8: [5.0, 6.0]},
        (1, 8): {1: [1.0], 8: [7.0]},
    }
    assert rows_by_type(scaler.per_target_scales["orbitals"]) == {
        (0, 1): {1: [2.0], 8: [4.0]},
        (0, 8): {1: [2.0, 2.0], 8: [4.0, 4.0]},
        (1, 8): {1: [2.0], 8: [4.0]},
    }


def test_a_state_dict_converts_every_block_by_the_scales_of_its_type():
    ones = atomic_basis(
        {(0, 1): [[[1.0]]], (0, 8): [[[1.0, 1.0]]], (1, 8): torch.ones(1, 3, 1)},
        {1: [[0, 0]], 8: [[0, 1]]},
    )
    systems, scaler = [system(1, 8)], imported()
    physical = scaler.convert(systems, {"orbitals": ones}, "model", "physical")["orbitals"]
    values = [block.values.flatten().tolist() for block in physical.blocks()]
    assert values == [[3.0], [5.0, 6.0], [7.0, 7.0, 7.0]]
    loss = scaler.convert(systems, {"orbitals": physical}, "physical", "loss")["orbitals"]
    values = [block.values.flatten().tolist() for block in loss.blocks()]
    assert values == [[1.5], [1.25, 1.5], [1.75, 1.75, 1.75]]


def test_a_fit_of_atomic_basis_targets_scales_the_own_type_of_every_block_alone():
    # RMS of H: 3 and 5 give sqrt(17); of O: 1 and 7 give 5, and 2, 2 give 2; no baseline.
    samples = {1: [[0, 0], [0, 1]], 8: [[0, 2], [1, 0]]}
    target = atomic_basis(
        {(0, 1): [[[3.0]], [[5.0]]], (0, 8): [[[1.0, 2.0]], [[7.0, -2.0]]]}, samples
    )
    scaler = fit([system(1, 1, 8), system(8)], {"orbitals": target})
    rows = rows_by_type(scaler.scales["orbitals"])
    assert rows[0, 1] == {1: pytest.approx([17**0.5]), 8: pytest.approx([1.0], rel=1e-15)}
    assert rows[0, 8] == {1: pytest.approx([1.0] * 2, rel=1e-15), 8: pytest.approx([5.0, 2.0])}
