"""The ZBL repulsion against the published formula, and its gradients."""

import io

import ase
import mpmath
import pytest
import torch
from ase.data import covalent_radii
from builders import system
from deployable import register_neighbors
from metatensor.torch import Labels
from metatomic.torch import (
    ModelOutput,
    NeighborListOptions,
    System,
    systems_to_torch,
)

from lightning_scaler import ZBL, Scaler
from lightning_scaler.baselines.zbl import COVALENT_RADII


def pair_energy(z_i, z_j, r):
    """The formula and its envelope in 30 digits."""
    mpmath.mp.dps = 30
    z_i, z_j, r = mpmath.mpf(z_i), mpmath.mpf(z_j), mpmath.mpf(r)
    cutoff = mpmath.mpf(float(covalent_radii[int(z_i)] + covalent_radii[int(z_j)]))
    if r >= cutoff:
        return mpmath.mpf(0)
    x = r * (z_i ** mpmath.mpf("0.23") + z_j ** mpmath.mpf("0.23")) / mpmath.mpf("0.4685")
    terms = [
        ("0.18175", "3.1998"),
        ("0.50986", "0.94229"),
        ("0.28022", "0.4029"),
        ("0.02817", "0.20162"),
    ]
    screening = sum(mpmath.mpf(c) * mpmath.exp(-mpmath.mpf(k) * x) for c, k in terms)
    d, p = r / cutoff, 6
    envelope = (
        1
        - mpmath.mpf((p + 1) * (p + 2)) / 2 * d**p
        + p * (p + 2) * d ** (p + 1)
        - mpmath.mpf(p * (p + 1)) / 2 * d ** (p + 2)
    )
    return mpmath.mpf("14.399645") * z_i * z_j / r * screening * envelope


def energy_of(systems, **options):
    return ZBL(**options)(systems, ["energy"])["energy"].block()


def at(*positions):
    return torch.tensor(positions, dtype=torch.float64)


@pytest.mark.parametrize("distance", [0.05, 0.3, 0.8, 0.9699, 0.98, 3.0])
def test_pair_energy_equals_the_published_formula(distance):
    pair = system(1, 8, positions=at((0, 0, 0), (0, 0, distance)))
    expected = float(pair_energy(1, 8, distance))
    assert energy_of([pair]).values.item() == pytest.approx(expected, rel=1e-12, abs=1e-12)
    in_kcal = energy_of([pair], energy_unit=0.0433641).values.item()
    assert in_kcal == pytest.approx(expected / 0.0433641, rel=1e-12, abs=1e-12)


def test_covalent_radii_equal_those_of_ase():
    assert list(COVALENT_RADII) == pytest.approx(covalent_radii[1:97], abs=1e-12)


def test_energy_is_the_sum_over_the_pairs_of_each_system():
    generator = torch.Generator().manual_seed(0)
    types = [[8], [1, 6, 8, 1], [], [9, 7, 1]]
    positions = [torch.rand(len(t), 3, generator=generator).double() for t in types]
    systems = [system(*t, positions=r) for t, r in zip(types, positions, strict=True)]
    for values, t, r in zip(energy_of(systems).values, types, positions, strict=True):
        expected = sum(
            pair_energy(t[i], t[j], float((r[i] - r[j]).norm()))
            for i in range(len(t))
            for j in range(i)
        )
        assert values.item() == pytest.approx(float(expected), rel=1e-12)


def crystal(positions, strain=None):
    cell = torch.tensor([[1.9, 0.1, 0.0], [0.0, 1.7, 0.2], [0.3, 0.0, 1.6]]).double()
    if strain is not None:
        positions, cell = positions @ strain, cell @ strain
    return System(torch.tensor([14, 6]), positions, cell, torch.tensor([True] * 3))


POSITIONS = at((0.1, 0.2, 0.3), (0.9, 0.8, 0.6))


def test_periodic_images_count_once():
    system_ = crystal(POSITIONS)
    shifts = torch.cartesian_prod(*[torch.arange(-3, 4).double()] * 3) @ system_.cell
    types, expected = system_.types.tolist(), 0.0
    for i in range(2):
        for j in range(2):
            for shift in shifts:
                distance = float((POSITIONS[j] + shift - POSITIONS[i]).norm())
                if distance > 0.0:
                    expected += 0.5 * pair_energy(types[i], types[j], distance)
    assert energy_of([system_]).values.item() == pytest.approx(float(expected), rel=1e-12)


def test_gradients_equal_finite_differences():
    block, step = energy_of([crystal(POSITIONS)]), 1e-5
    for parameter, rows in (("positions", 2), ("strain", 3)):
        gradient = block.gradient(parameter).values[..., 0].reshape(rows, 3)
        for row in range(rows):
            for axis in range(3):
                either = []
                for sign in (1, -1):
                    if parameter == "positions":
                        moved = POSITIONS.clone()
                        moved[row, axis] += sign * step
                        either.append(energy_of([crystal(moved)]).values.item())
                    else:
                        strain = torch.eye(3).double()
                        strain[row, axis] += sign * step
                        either.append(energy_of([crystal(POSITIONS, strain)]).values.item())
                slope = (either[0] - either[1]) / (2 * step)
                assert gradient[row, axis].item() == pytest.approx(slope, rel=1e-6, abs=1e-6)


def test_only_the_requested_energy_is_returned():
    assert ZBL()([system(1)], ["charges"]) == {}
    assert list(ZBL(target="U")([system(1)], ["U", "charges"])) == ["U"]


def test_types_that_are_not_atomic_numbers_are_an_error():
    with pytest.raises(ValueError, match=r"ZBL: expected atomic numbers from 1 to 96.*\[0, 97\]"):
        ZBL()([system(0, 1, 97)], ["energy"])


def test_batch_without_systems():
    assert energy_of([]).values.shape == (0, 1)


def test_repr_shows_target_and_unit():
    assert repr(ZBL()) == "ZBL(target='energy')"
    assert repr(ZBL("mtt::u", energy_unit=27.2114)) == "ZBL(target='mtt::u', energy_unit=27.2114)"


# For simulation engines.


def with_neighbors(model, *systems_: System) -> list[System]:
    """The systems with the requested neighbor list."""
    (options,) = model.requested_neighbor_lists()
    return [register_neighbors(each, options) for each in systems_]


def clusters() -> list[System]:
    """With bonds of all lengths: an atom alone, a crystal, and pairs beyond the last bond."""
    generator = torch.Generator().manual_seed(0)
    types = [[8], [1, 6, 8, 1], [9, 7, 1, 14]]
    positions = [1.5 * torch.rand(len(t), 3, generator=generator).double() for t in types]
    return [system(*t, positions=r) for t, r in zip(types, positions, strict=True)] + [
        crystal(POSITIONS)
    ]


TYPES = [1, 6, 7, 8, 9, 14]


@pytest.fixture(scope="module")
def scripted() -> torch.jit.ScriptModule:
    """The module, saved and loaded."""
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(ZBL(energy_unit=0.5).scriptable(TYPES)), file)
    return torch.jit.load(io.BytesIO(file.getvalue()))


def request(kind: str = "system") -> dict[str, ModelOutput]:
    return {"energy": ModelOutput(sample_kind=kind)}


def test_the_scriptable_module_asks_for_a_half_list_up_to_the_longest_bond(scripted):
    assert scripted.requested_neighbor_lists() == [
        NeighborListOptions(cutoff=2 * 1.11, full_list=False, strict=True)  # Si-Si
    ]


def test_the_scriptable_module_gives_the_same_energies_and_layout(scripted):
    expected = ZBL(energy_unit=0.5)(clusters(), ["energy"])["energy"]
    found = scripted(with_neighbors(scripted, *clusters()), request(), None)["energy"]
    # The order of the pairs differs.
    torch.testing.assert_close(found[0].values, expected[0].values, rtol=4e-16, atol=0)
    assert found.keys == expected.keys
    assert found[0].samples == expected[0].samples
    assert found[0].properties == expected[0].properties


def test_energies_of_float32_systems_are_computed_in_float64(scripted):
    systems = [each.to(torch.float32) for each in with_neighbors(scripted, *clusters())]
    expected = ZBL(energy_unit=0.5)([each.to(torch.float64) for each in systems], ["energy"])
    found = scripted(systems, request(), None)["energy"][0].values
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected["energy"][0].values, rtol=1e-6, atol=0)


def test_autograd_of_the_scriptable_module_gives_the_gradients_of_the_live_one(scripted):
    expected = ZBL(energy_unit=0.5)(clusters(), ["energy"])["energy"][0]
    for _ in range(3):  # TorchScript optimizes the later calls
        strains = torch.eye(3).double().repeat(4, 1, 1).requires_grad_()
        positions = [each.positions.clone().requires_grad_() for each in clusters()]
        strained = [
            System(each.types, r @ strain, each.cell @ strain, each.pbc)
            for each, r, strain in zip(clusters(), positions, strains, strict=True)
        ]
        systems = with_neighbors(scripted, *strained)
        energy = scripted(systems, request(), None)["energy"][0].values.sum()
        *slopes, strain = torch.autograd.grad(energy, [*positions, strains])
        for name, found in (("positions", torch.cat(slopes)), ("strain", strain)):
            gradient = expected.gradient(name).values[..., 0]
            torch.testing.assert_close(found, gradient, rtol=1e-13, atol=1e-12)


def test_atoms_share_the_energy_of_their_pairs_equally(scripted):
    pair = with_neighbors(scripted, system(1, 8, positions=at((0, 0, 0), (0, 0, 0.8))))
    half = float(pair_energy(1, 8, 0.8)) / 0.5 / 2
    shares = scripted(pair, request("atom"), None)["energy"][0]
    assert shares.samples.values.tolist() == [[0, 0], [0, 1]]
    assert shares.values.flatten().tolist() == pytest.approx([half, half], rel=1e-12)


def test_energies_of_two_selections_sum_to_those_of_all_atoms(scripted):
    systems = with_neighbors(scripted, *clusters())
    whole = scripted(systems, request(), None)["energy"][0]
    summed = torch.zeros_like(whole.values)
    domains = [[0, 0], [1, 1], [1, 3], [2, 0]], [[1, 0], [1, 2], [2, 1], [2, 2], [2, 3]]
    for domain in (*domains, [[3, 0], [3, 1]]):
        selected = Labels(["system", "atom"], torch.tensor(domain))
        part = scripted(systems, request(), selected)["energy"][0]
        rows = part.samples.column("system").long()
        assert rows.tolist() == sorted({index for index, _ in domain})
        summed[rows] += part.values
    torch.testing.assert_close(summed, whole.values, rtol=1e-15, atol=0)


def test_a_cast_of_the_scriptable_module_changes_no_energy(scripted):
    systems = with_neighbors(scripted, *clusters())
    rounded = ZBL(energy_unit=0.5).scriptable(TYPES).to(torch.float32)
    expected = scripted(systems, request(), None)["energy"][0].values
    assert torch.equal(rounded(systems, request())["energy"][0].values, expected)


def test_the_scriptable_module_leaves_out_what_is_not_requested(scripted):
    assert scripted(with_neighbors(scripted, system(1)), {"charges": ModelOutput()}, None) == {}


def test_a_scriptable_module_for_types_that_are_not_atomic_numbers_is_an_error():
    with pytest.raises(ValueError, match=r"ZBL: expected atomic numbers from 1 to 96.*\[0\]"):
        ZBL().scriptable([0, 1])


@pytest.mark.parametrize("unit", ["eV", None, 0, -1.0, float("nan"), True])
def test_a_unit_that_is_no_positive_number_is_refused(unit):
    with pytest.raises(
        ValueError, match=r"ZBL, energy_unit: expected a (positive |finite )?number"
    ):
        ZBL(energy_unit=unit)


def test_several_targets_and_a_class_as_additive_module_are_refused():
    with pytest.raises(
        TypeError, match=r"expected the name of one energy as target, got \['energy"
    ):
        ZBL(["energy"])
    with pytest.raises(TypeError, match=r"\(an instance, not its class\), got the class ZBL"):
        Scaler().set_additive(ZBL)


def test_what_is_no_list_of_systems_is_refused_and_atoms_are_converted():
    atoms = ase.Atoms("H2", [[0, 0, 0], [0, 0, 0.5]])
    for other in (system(1), [atoms], atoms, {"system": [system(1)]}):
        with pytest.raises(
            TypeError, match=r"expected a list of metatomic .*systems_to_torch makes"
        ):
            ZBL()(other, ["energy"])
    block = energy_of(systems_to_torch([atoms], dtype=torch.float64))
    assert block.values.item() > 1.0
