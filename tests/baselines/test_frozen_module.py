"""Frozen additive modules: contributions are subtracted first and added back last."""

import copy
import math

import numpy as np
import pytest
import torch
from builders import (
    Springs,
    atom_target,
    block,
    fit,
    labels,
    scale,
    single,
    spherical,
    structure_target,
    system,
    water_family,
)
from metatensor.torch import Labels, TensorBlock, TensorMap
from metatomic.torch import System

from lightning_scaler import CompositionBaseline, ScaleAccumulator, Scaler, TargetScaler
from lightning_scaler.batches.atoms import Atoms

NAN = float("nan")


SYSTEMS = water_family()
SQUARES = [float(s.positions.square().sum()) for s in SYSTEMS]
SLOPES = [s.positions.tolist() for s in SYSTEMS]  # 2 k r of k = 1/2
TYPES = [z for s in SYSTEMS for z in s.types.tolist()]


def energies(left, gradients=None, dtype=torch.float64):
    """Totals that are these values after subtracting the springs."""
    totals = [0.5 * r2 + rest for r2, rest in zip(SQUARES, left, strict=True)]
    return structure_target(totals, gradient=gradients, dtype=dtype)


def test_scales_are_those_of_the_residuals_of_the_module():
    scaler = fit(SYSTEMS, {"energy": energies([3.0, 6.0, 24.0])}, additive=Springs())
    # Per atom 3, 2 and 4: sqrt(29 / 3).
    assert scale(scaler, "energy")[0] == pytest.approx([math.sqrt(29 / 3)], rel=1e-13)
    before = [0.5 * r2 + rest for r2, rest in zip(SQUARES, [3, 6, 24], strict=True)]
    per_atom = [total / len(s) for total, s in zip(before, SYSTEMS, strict=True)]
    rms = math.sqrt(math.fsum(x * x for x in per_atom) / 3)
    assert scaler.targets["energy"].rms_before == pytest.approx(rms, rel=1e-13)


def test_the_composition_is_fitted_to_the_residuals_of_the_module():
    # H 1 and O 2 give 2, 4, 8; then 0.1, -0.2 and 0.3 that no composition can explain away whole.
    left = np.array([2.1, 3.8, 8.3])
    counts = np.array([[0, 1], [2, 1], [4, 2]])
    wanted = np.linalg.lstsq(counts, left, rcond=None)[0]
    scaler = fit(
        SYSTEMS, {"energy": energies(left)}, additive=Springs(), baseline=CompositionBaseline()
    )
    weights = next(iter(scaler.targets["energy"].weights.values()))
    np.testing.assert_allclose(weights.ravel().numpy(), wanted, rtol=1e-12)
    values = scaler.convert(SYSTEMS, {"energy": energies(left)})["energy"].block().values
    sigma = scale(scaler, "energy", "per_target_scales")[0][0]
    np.testing.assert_allclose(values.ravel(), (left - counts @ wanted) / sigma, atol=1e-12)


def test_the_explained_variance_of_a_per_atom_target_is_relative_to_the_stored_data():
    left = [0.3 * atom for atom in range(len(TYPES))]
    stored = [0.1 * z + x for z, x in zip(TYPES, left, strict=True)]
    rows = [[i, atom] for i, s in enumerate(SYSTEMS) for atom in range(len(s))]
    target = {"charges": atom_target(stored, rows)}
    scaler = fit(SYSTEMS, target, additive=Springs(), baseline=CompositionBaseline())
    of_type = [
        np.array([x for x, z in zip(left, TYPES, strict=True) if z == one]) for one in (1, 8)
    ]
    remaining = sum(((numbers - numbers.mean()) ** 2).sum() for numbers in of_type)
    variance = ((np.array(stored) - np.mean(stored)) ** 2).sum()
    expected = 1.0 - remaining / variance
    assert scaler.targets["charges"].explained_variance == pytest.approx(expected, rel=1e-12)


def test_per_atom_targets_in_any_rows():
    rows = [[2, 5], [0, 0], [1, 1], [2, 0]]
    types = [SYSTEMS[i].types[atom].item() for i, atom in rows]
    left = [1.0, -2.0, 4.0, 2.0]
    target = atom_target([0.1 * z + x for z, x in zip(types, left, strict=True)], rows)
    scaler = fit(SYSTEMS, {"charges": target}, additive=Springs(), system_labels="position")
    of_type = {z: [x for x, other in zip(left, types, strict=True) if other == z] for z in (1, 8)}
    expected = [[math.sqrt(math.fsum(x * x for x in of_type[z]) / len(of_type[z]))] for z in (1, 8)]
    np.testing.assert_allclose(scale(scaler, "charges"), expected, rtol=1e-13)
    back = scaler.convert(SYSTEMS, scaler.convert(SYSTEMS, {"charges": target}), "loss", "physical")
    np.testing.assert_allclose(
        back["charges"].block().values, target.block().values, rtol=1e-13, atol=1e-14
    )


def test_ids_of_the_data_set():
    target = atom_target(
        [0.1 * z + 1.0 for z in TYPES],
        [[10 * (3 - i), atom] for i, s in enumerate(SYSTEMS) for atom in range(len(s))],
    )
    scaler = fit(SYSTEMS, {"charges": target}, additive=Springs(), system_labels="id")
    assert scale(scaler, "charges") == [pytest.approx([1.0]), pytest.approx([1.0])]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_lose_and_regain_the_part_of_the_module(dtype):
    rest = [[[1.0, -2.0, 3.0]] * len(s) for s in SYSTEMS]
    gradients = (np.concatenate(SLOPES) + np.concatenate(rest)).tolist()
    nested = [gradients[:1], gradients[1:4], gradients[4:]]
    target = energies([3.0, 6.0, 24.0], {"positions": nested}, dtype)
    scaler = fit(SYSTEMS, {"energy": target}, additive=Springs())
    loss = scaler.convert(SYSTEMS, {"energy": target})
    sigma = scale(scaler, "energy", "per_target_scales")[0][0]
    expected = np.concatenate(rest) / sigma
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    of_loss = loss["energy"].block().gradient("positions").values[..., 0]
    assert of_loss.dtype == dtype
    np.testing.assert_allclose(of_loss, expected, rtol=tolerance)
    back = scaler.convert(SYSTEMS, loss, "loss", "physical")["energy"].block()
    assert back.values.dtype == torch.float64
    np.testing.assert_allclose(
        back.gradient("positions").values[..., 0], gradients, rtol=tolerance, atol=tolerance
    )


def test_a_gradient_that_the_module_does_not_give_is_converted_alone():
    target = energies([3.0, 6.0, 24.0], {"strain": [[[1.0] * 3] * 3] * 3})
    with pytest.warns(UserWarning, match=r"Springs: it gives no gradient 'strain' of.*'energy'"):
        scaler = fit(SYSTEMS, {"energy": target}, additive=Springs())
    sigma = scale(scaler, "energy", "per_target_scales")[0][0]
    strain = scaler.convert(SYSTEMS, {"energy": target})["energy"].block().gradient("strain")
    np.testing.assert_allclose(strain.values, 1.0 / sigma)


def test_missing_values_stay_missing():
    target = energies([3.0, NAN, 24.0])
    scaler = fit(SYSTEMS, {"energy": target}, additive=Springs())
    assert scale(scaler, "energy")[0] == pytest.approx([math.sqrt(25 / 2)])
    values = scaler.convert(SYSTEMS, {"energy": target})["energy"].block().values
    assert values.isnan().ravel().tolist() == [False, True, False]


def test_nothing_left_is_rounding_noise():
    target = energies([0.0, 0.0, 0.0], dtype=torch.float32)
    with pytest.warns(UserWarning, match="target 'energy'"):
        scaler = fit(SYSTEMS, {"energy": target}, additive=Springs())
    assert scale(scaler, "energy") == [[1.0]]


def test_rounding_noise_of_a_module_in_short_precision():
    # Float64 targets that are exactly what the module would give in that precision.
    target = energies([0.0, 0.0, 0.0])
    with pytest.warns(UserWarning, match="target 'energy'"):
        scaler = fit(SYSTEMS, {"energy": target}, additive=Springs(dtype=torch.float32))
    assert scale(scaler, "energy") == [[1.0]]


def test_rounding_noise_of_a_module_over_batches():
    accumulator = ScaleAccumulator(additive=Springs(dtype=torch.float32))
    # The first batch has energies of 0 and so no noise; the residuals of the others are noise.
    for systems in ([system(8)], SYSTEMS):
        squares = [float(s.positions.square().sum()) for s in systems]
        accumulator.update(systems, {"energy": structure_target([r2 / 2 for r2 in squares])})
    with pytest.warns(UserWarning, match="target 'energy'"):
        assert scale(accumulator.compute(), "energy") == [[1.0]]


def test_any_batches_in_any_accumulators():
    target = energies([3.0, 6.0, 24.0])
    whole = fit(SYSTEMS, {"energy": target}, additive=Springs())
    parts = [ScaleAccumulator(additive=Springs()) for _ in SYSTEMS]
    for i, part in enumerate(parts):
        total = 0.5 * SQUARES[i] + [3.0, 6.0, 24.0][i]
        part.update([SYSTEMS[i]], {"energy": structure_target([total])})
    merged = parts[0].fresh()
    for part in parts:
        merged.merge_state(part.state())
    scaler = merged.compute()
    np.testing.assert_allclose(scale(scaler, "energy"), scale(whole, "energy"), rtol=1e-14)
    assert scaler.targets["energy"].additive
    assert not fit(SYSTEMS, {"energy": target}).targets["energy"].additive


def test_the_module_is_a_frozen_copy_in_its_own_dtype():
    module = Springs(dtype=torch.float32)
    scaler = fit(SYSTEMS, {"energy": energies([3.0, 6.0, 24.0])}, additive=module)
    assert module.k.requires_grad
    with torch.no_grad():
        module.k.zero_()
    inner = scaler.half().additive.module
    assert inner.k.item() == 0.5
    assert inner.k.dtype == torch.float32
    assert not inner.k.requires_grad
    assert inner.dtypes == {torch.float32}
    assert list(scaler.parameters()) == []
    assert copy.deepcopy(scaler).to("meta").additive.module.k.device.type == "meta"
    target = {"energy": energies([3.0, 6.0, 24.0])}
    values = copy.deepcopy(scaler).convert(SYSTEMS, target)["energy"].block().values
    assert torch.equal(values, scaler.convert(SYSTEMS, target)["energy"].block().values)


def test_the_state_has_the_weights_and_not_the_code(tmp_path):
    target = {"energy": energies([3.0, 6.0, 24.0])}
    scaler = fit(SYSTEMS, target, additive=Springs())
    scaler.save(tmp_path / "scaler.pt")
    wanted = scaler.convert(SYSTEMS, target)["energy"].block().values
    given = Scaler.load(tmp_path / "scaler.pt", additive=Springs(k=77.0))
    assert torch.equal(given.convert(SYSTEMS, target)["energy"].block().values, wanted)

    loaded = Scaler.load(tmp_path / "scaler.pt")
    with pytest.raises(RuntimeError, match=r"additive module Springs.*set_additive\(Springs"):
        loaded.convert(SYSTEMS, target)
    # Between loss and model space it is not needed.
    loaded.convert(SYSTEMS, target, "model", "loss")
    again = Scaler()
    again.load_state_dict(loaded.state_dict())
    again.set_additive(Springs(k=77.0))
    assert torch.equal(again.convert(SYSTEMS, target)["energy"].block().values, wanted)
    with pytest.raises(ValueError, match=r"fitted with \(Springs\), got Linear"):
        again.set_additive(torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match=r"fitted with \(none\), got Springs"):
        fit(SYSTEMS, target).set_additive(Springs())


def test_atoms_alone_are_not_enough():
    target = {"energy": energies([3.0, 6.0, 24.0])}
    scaler = fit(SYSTEMS, target, additive=Springs())
    atoms = Atoms.from_systems(SYSTEMS)
    bare = Atoms.from_types(atoms.types, atoms.n_atoms)
    with pytest.raises(ValueError, match="expected the systems of the batch"):
        scaler.convert(bare, target)


def giving(contribution):
    class Gives(torch.nn.Module):
        def forward(self, systems, names):
            return contribution

    return Gives()


FINE = structure_target([0.0, 0.0, 0.0])


@pytest.mark.parametrize(
    ("contribution", "error", "message"),
    [
        ([FINE], TypeError, "Gives: expected a dict of TensorMaps by target name, got list"),
        ({"energy": 3.0}, TypeError, "Gives, target 'energy': expected a TensorMap, got float"),
        (
            {"energy": structure_target([0.0, math.inf, NAN])},
            ValueError,
            r"target 'energy', block \(_=0\): expected finite contributions, got 2 .*\(system=1\)",
        ),
        (
            {"energy": structure_target([0.0] * 3, gradient={"strain": [[[NAN] * 3] * 3] * 3})},
            ValueError,
            r"block \(_=0\), gradient 'strain': expected finite contributions, got 27",
        ),
        (
            {"energy": TensorMap(labels("_", [1]), [FINE.block().copy()])},
            ValueError,
            r"Gives: expected contributions to blocks of the target 'energy', got.*other keys",
        ),
        ({"enrgy": FINE}, ValueError, r"Gives gave no contribution to any of the targets.*energy"),
        (
            {"energy": structure_target([0.0, 0.0])},
            ValueError,
            r"no contribution for 1 of 3 rows of the target, the first of them \(system=2\)",
        ),
        (
            {"energy": structure_target([[0.0, 1.0]] * 3)},
            ValueError,
            r"target 'energy', block \(_=0\): expected contributions with components",
        ),
        (
            {"energy": TensorMap(labels("k", [0]), [FINE.block().copy()])},
            ValueError,
            r"expected contributions with keys named \['_'\], got \['k'\]",
        ),
    ],
)
def test_contributions_that_do_not_suit(contribution, error, message):
    with pytest.raises(error, match=message):
        fit(SYSTEMS, {"energy": energies([3.0, 6.0, 24.0])}, additive=giving(contribution))


def test_one_property_goes_with_one_whatever_its_label():
    contribution = {"energy": structure_target([1.0, 2.0, 3.0], name="other")}
    target = {"energy": structure_target([4.0, 8.0, 27.0])}
    scaler = fit(SYSTEMS, target, additive=giving(contribution))
    assert scale(scaler, "energy")[0] == pytest.approx([math.sqrt(29 / 3)])


def test_a_module_may_contribute_to_some_blocks_of_a_target_alone():
    """Isotropic parts of 4, 8 and 12, of which the module gives 3, 6 and 10; others are 1."""
    rows = labels("system", [0, 1, 2])
    isotropic = torch.tensor([4.0, 8.0, 12.0]).double()
    target = {"t": spherical({0: isotropic.reshape(3, 1, 1), 2: torch.ones(3, 5, 1)}, rows)}
    contribution = {"t": spherical({0: [[[3.0]], [[6.0]], [[10.0]]]}, rows)}
    scaler = fit(SYSTEMS, target, additive=giving(contribution), intensive_targets=["t"])
    sigma = math.sqrt((1 + 4 + 4 + 15) / 18)
    assert scale(scaler, "t", "per_target_scales")[0] == pytest.approx([sigma])
    blocks = scaler.convert(SYSTEMS, target)["t"].blocks()
    assert (sigma * blocks[0].values.flatten()).tolist() == pytest.approx([1, 2, 2])
    assert (sigma * blocks[1].values.flatten()).tolist() == pytest.approx([1] * 15)


def with_gradients(energy, positions, strain):
    """Energies and both of their gradients, the same number everywhere."""
    gradients = {
        "positions": [[[positions] * 3] * len(s) for s in SYSTEMS],
        "strain": [[[strain] * 3] * 3 for _ in SYSTEMS],
    }
    return structure_target([energy] * len(SYSTEMS), gradient=gradients)


def test_each_gradient_loses_the_contribution_to_it():
    target, module = (
        with_gradients(3.0, 5.0, 8.0),
        giving({"energy": with_gradients(1.0, 1.0, 2.0)}),
    )
    scaler = fit(SYSTEMS, {"energy": target}, fixed_scales={"energy": 2.0}, additive=module)
    loss = scaler.convert(SYSTEMS, {"energy": target})["energy"].block()
    # (5 - 1) / 2 and (8 - 2) / 2.
    assert loss.gradient("positions").values.unique().tolist() == [2.0]
    assert loss.gradient("strain").values.unique().tolist() == [3.0]


def test_contributions_in_some_batches_only_are_an_error():
    module = Springs()
    accumulator = ScaleAccumulator(additive=module)
    accumulator.update(SYSTEMS, {"energy": energies([3.0, 6.0, 24.0])})
    accumulator.additive.module.names = ("charges",)
    with pytest.raises(ValueError, match=r"Springs, target 'energy', block.*none after some"):
        accumulator.update(SYSTEMS, {"energy": energies([3.0, 6.0, 24.0])})


def test_merged_data_have_the_same_contributions():
    one, other = ScaleAccumulator(additive=Springs()), ScaleAccumulator(additive=Springs())
    other.additive.module.names = ("charges",)
    for accumulator in (one, other):
        accumulator.update(SYSTEMS, {"energy": energies([3.0, 6.0, 24.0])})
    with pytest.raises(ValueError, match=r"Springs, target 'energy', block.*none after some"):
        one.merge(other)


def test_batches_without_systems_do_not_come_to_the_module():
    accumulator = ScaleAccumulator(additive=Springs())
    for systems, values in (([], []), (SYSTEMS, [3.0, 6.0, 24.0]), ([], [])):
        target = energies(values) if systems else structure_target(torch.zeros(0, 1))
        accumulator.update(systems, {"energy": target})
    scaler = accumulator.compute()
    assert scale(scaler, "energy")[0] == pytest.approx([math.sqrt(29 / 3)], rel=1e-13)
    assert len(scaler.convert([], {"energy": structure_target(torch.zeros(0, 1))})) == 1
    nothing = ScaleAccumulator(additive=Springs())
    nothing.update([], {"energy": structure_target(torch.zeros(0, 1))})
    accumulator.merge(nothing)


def test_small_residuals_of_large_totals_are_no_noise_of_a_module_in_short_precision():
    rest = [3e-3, 6e-3, 24e-3]
    totals = [1e4 * len(s) for s in SYSTEMS]
    target = energies([total + x for total, x in zip(totals, rest, strict=True)])
    module, baseline = Springs(k=0.25, dtype=torch.float32), CompositionBaseline()
    left = [0.25 * r2 + x for r2, x in zip(SQUARES, rest, strict=True)]
    counts = np.array([[0, 1], [2, 1], [4, 2]])
    left = np.array(left) - counts @ np.linalg.lstsq(counts, left, rcond=None)[0]
    expected = math.sqrt(math.fsum((left / counts.sum(1)) ** 2) / 3)
    scaler = fit(SYSTEMS, {"energy": target}, additive=module, baseline=baseline)
    assert scale(scaler, "energy")[0] == pytest.approx([expected], rel=1e-4)


class Differentiating(torch.nn.Module):
    """Does not detach what it has differentiated, and ignores the names."""

    def forward(self, systems, names):
        with torch.enable_grad():
            positions = [s.positions.detach().requires_grad_() for s in systems]
            values = torch.stack([r.square().sum() / 2.0 for r in positions])
        return {"energy": single(block(values, labels("system", range(len(values)))))}


def test_contributions_come_detached():
    accumulator = ScaleAccumulator(additive=Differentiating())
    for _ in range(2):
        accumulator.update(SYSTEMS, {"energy": energies([3.0, 6.0, 24.0])})
    accumulator.fresh().merge(accumulator)
    scaler = accumulator.compute()
    assert scale(scaler, "energy")[0] == pytest.approx([math.sqrt(29 / 3)], rel=1e-13)
    assert not scaler.targets["energy"].per_target.requires_grad


class Matrix(torch.nn.Module):
    """A module whose numbers depend on the precision that surrounds it."""

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(3, 1, bias=False)
        torch.nn.init.constant_(self.linear.weight, 1.0 / 3.0)

    def forward(self, systems, names):
        values = torch.zeros(len(systems), 1)
        for row, s in enumerate(systems):
            values[row] = self.linear(s.positions).sum()
        return {
            "energy": single(
                block(values, labels("system", range(len(values))), dtype=values.dtype)
            )
        }


def test_precision_plugins_do_not_reach_the_module():
    target = {"energy": energies([3.0, 6.0, 24.0])}
    scaler = fit(SYSTEMS, target, additive=Matrix())
    wanted = scaler.convert(SYSTEMS, target)["energy"].block().values
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(scaler.convert(SYSTEMS, target)["energy"].block().values, wanted)
    torch.set_default_dtype(torch.bfloat16)
    try:
        got = scaler.convert(SYSTEMS, target)["energy"].block().values
        assert torch.get_default_dtype() == torch.bfloat16
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(got, wanted)


def test_a_module_in_torchscript(tmp_path):
    scripted = torch.jit.script(ScriptedSprings())
    target = {"energy": energies([3.0, 6.0, 24.0])}
    scaler = fit(SYSTEMS, target, additive=scripted)
    assert scale(scaler, "energy")[0] == pytest.approx([math.sqrt(29 / 3)], rel=1e-13)
    scaler.save(tmp_path / "scaler.pt")
    loaded = Scaler.load(tmp_path / "scaler.pt", additive=scripted)
    wanted = scaler.convert(SYSTEMS, target)["energy"].block().values
    assert torch.equal(loaded.convert(SYSTEMS, target)["energy"].block().values, wanted)


class ScriptedSprings(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.k = torch.nn.Parameter(torch.tensor(0.5, dtype=torch.float64))

    def forward(self, systems: list[System], names: list[str]) -> dict[str, TensorMap]:
        values = torch.stack([self.k * s.positions.square().sum() for s in systems])
        samples = Labels(["system"], torch.arange(len(systems)).reshape(-1, 1))
        properties = Labels(["energy"], torch.tensor([[0]]))
        of_block = TensorBlock(values.reshape(-1, 1), samples, [], properties)
        return {"energy": TensorMap(Labels(["_"], torch.tensor([[0]])), [of_block])}


def test_fitted_weights_stay_whatever_is_given_again(tmp_path):
    target = {"energy": energies([3.0, 6.0, 24.0])}
    scaler = fit(SYSTEMS, target, additive=Springs())
    scaler.set_additive(Springs(k=77.0))
    assert scaler.additive.module.k.item() == 0.5

    class Wrong(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.other = torch.nn.Parameter(torch.zeros(()))

    Wrong.__name__ = "Springs"
    with pytest.raises(ValueError, match=r"weights do not match the module .* as in the fit"):
        scaler.set_additive(Wrong())
    assert scaler.additive.module.k.item() == 0.5


def test_a_module_constructed_otherwise_than_in_the_fit(tmp_path):
    scaler = fit(SYSTEMS, {"energy": energies([3.0, 6.0, 24.0])}, additive=Springs())
    scaler.save(tmp_path / "scaler.pt")
    loaded = Scaler.load(tmp_path / "scaler.pt", additive=Springs(names=("charges",)))
    message = r"Springs: expected contributions to the targets \['energy'\].*as in the fit"
    with pytest.raises(ValueError, match=message):
        loaded.convert(SYSTEMS, {"energy": energies([3.0, 6.0, 24.0])})


def test_anything_but_a_module_is_refused():
    with pytest.raises(TypeError, match=r"an instance, not its class.*Springs"):
        ScaleAccumulator(additive=Springs)
    with pytest.raises(TypeError, match=r"a CompositionBaseline or None.*additive="):
        ScaleAccumulator(baseline=Springs())
    with pytest.raises(TypeError, match=r"got the class Springs; write Springs\(\)"):
        TargetScaler(baseline=Springs)
