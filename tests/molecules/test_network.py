"""The network of the example as simulation engines call it."""

import io
from collections.abc import Iterator

import e3nn.util.jit
import pytest
import torch
from deployable import register_neighbors
from metatensor.torch import Labels
from metatomic.torch import (
    AtomisticModel,
    ModelCapabilities,
    ModelEvaluationOptions,
    ModelMetadata,
    ModelOutput,
    System,
)

from lightning_scaler.molecules.model import MoleculesModel
from lightning_scaler.molecules.network import MoleculesNetwork
from lightning_scaler.molecules.targets import TARGETS, neighbor_list_options

CUTOFF = 3.0
ALL = {
    name: ModelOutput(sample_kind="atom" if t.per_atom else "system") for name, t in TARGETS.items()
}
TOTALS = ("energy", "dipole", "polarizability")


@pytest.fixture(scope="module")
def model() -> Iterator[MoleculesModel]:
    """A model in float64, without gradients of its weights."""
    # e3nn rounds its coupling coefficients to the default dtype when a module is built.
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield MoleculesModel(channels=4, cutoff=CUTOFF).eval().requires_grad_(False)
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def network(model: MoleculesModel) -> MoleculesNetwork:
    return model.network


@pytest.fixture(scope="module")
def scripted(network: MoleculesNetwork) -> torch.jit.ScriptModule:
    """The network, saved and loaded."""
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(e3nn.util.jit.compile(network, in_place=False)), file)
    return torch.jit.load(io.BytesIO(file.getvalue()))


def make_system(types, positions, cell=None) -> System:
    cell = torch.zeros(3, 3, dtype=positions.dtype) if cell is None else cell
    pbc = torch.full((3,), bool(cell.any()))
    system = System(torch.tensor(types, dtype=torch.int32), positions, cell, pbc)
    return register_neighbors(system, neighbor_list_options(CUTOFF))


TYPES = ([8, 1, 6, 7], [6, 9], [1, 7, 6, 8, 1, 1])


def make_positions() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [1.4 * torch.randn(len(t), 3, generator=generator).double() for t in TYPES]


def make_systems() -> list[System]:
    return [make_system(t, r) for t, r in zip(TYPES, make_positions(), strict=True)]


def values(tensor) -> torch.Tensor:
    """Values of all blocks, `(n_samples, n_columns)`."""
    return torch.cat([block.values.flatten(1) for block in tensor.blocks()], 1)


@pytest.mark.slow
def test_torchscript_returns_the_same_values(network, scripted):
    systems, atoms = make_systems(), Labels(["system", "atom"], torch.tensor([[0, 1], [2, 5]]))
    shares = {name: ModelOutput(sample_kind="atom") for name in TOTALS}
    for arguments in ((ALL, None), (shares, None), ({**ALL, **shares}, atoms), (ALL, atoms)):
        expected, found = network(systems, *arguments), scripted(systems, *arguments)
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            torch.testing.assert_close(values(found[name]), values(tensor), rtol=0, atol=1e-13)
            assert found[name].keys == tensor.keys
            for a, b in zip(found[name].blocks(), tensor.blocks(), strict=True):
                assert a.samples == b.samples
                assert a.components == b.components
                assert a.properties == b.properties


def test_an_atomistic_model_finds_the_neighbor_list_and_accepts_the_outputs(scripted):
    capabilities = ModelCapabilities(
        outputs={"energy": ModelOutput(unit="eV", sample_kind="atom")},
        atomic_types=[1, 6, 7, 8, 9],
        interaction_range=2 * CUTOFF,
        length_unit="angstrom",
        supported_devices=["cpu"],
        dtype="float64",
    )
    exported = AtomisticModel(scripted.eval(), ModelMetadata(), capabilities)
    assert exported.requested_neighbor_lists() == [neighbor_list_options(CUTOFF)]
    for kind, rows in (("system", 3), ("atom", 12)):
        outputs = {"energy": ModelOutput(unit="eV", sample_kind=kind)}
        options = ModelEvaluationOptions(length_unit="angstrom", outputs=outputs)
        found = exported(make_systems(), options, check_consistency=True)
        assert len(found["energy"].block().samples) == rows


def test_only_requested_outputs_are_returned(network):
    assert list(network(make_systems(), {"charges": ALL["charges"]})) == ["charges"]
    assert network(make_systems(), {"unknown": ModelOutput()}) == {}


@pytest.mark.parametrize("which", ["network", "scripted"])
def test_energy_can_be_differentiated_with_respect_to_the_positions_of_the_caller(
    model, which, request
):
    expected = model(make_systems())["energy"].block().gradient("positions").values[..., 0]
    positions = [each.requires_grad_() for each in make_positions()]
    systems = [make_system(t, r) for t, r in zip(TYPES, positions, strict=True)]
    energy = request.getfixturevalue(which)(systems, {"energy": ALL["energy"]}, None)["energy"]
    gradients = torch.autograd.grad(energy.block().values.sum(), positions)
    torch.testing.assert_close(torch.cat(gradients), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["dipole", "polarizability"])
def test_derivatives_of_tensors_equal_finite_differences(network, name):
    def total(positions: torch.Tensor) -> torch.Tensor:
        return values(network([make_system(TYPES[0], positions)], {name: ALL[name]})[name])[0]

    positions, step = make_positions()[0], 1e-5
    jacobian = torch.autograd.functional.jacobian(total, positions)
    for atom, axis in ((0, 0), (1, 2), (3, 1)):
        moved = torch.zeros_like(positions)
        moved[atom, axis] = step
        numeric = (total(positions + moved) - total(positions - moved)) / (2 * step)
        assert numeric.abs().max() > 1e-3
        torch.testing.assert_close(jacobian[:, atom, axis], numeric, rtol=1e-6, atol=1e-7)


CELL = torch.tensor([[3.1, 0.1, 0.0], [0.0, 2.7, 0.2], [0.3, 0.0, 2.9]], dtype=torch.float64)


def crystal_energy(network, strain: torch.Tensor) -> torch.Tensor:
    system = make_system(TYPES[1], make_positions()[1] @ strain, CELL @ strain)
    return network([system], {"energy": ALL["energy"]})["energy"].block().values.sum()


def test_stress_equals_finite_differences(network):
    strain, step = torch.eye(3, dtype=torch.float64, requires_grad=True), 1e-5
    (stress,) = torch.autograd.grad(crystal_energy(network, strain), strain)
    assert stress.abs().min() > 1e-4
    for row in range(3):
        for axis in range(3):
            change = torch.zeros(3, 3, dtype=torch.float64)
            change[row, axis] = step
            either = [crystal_energy(network, torch.eye(3) + s * change) for s in (1, -1)]
            numeric = (either[0] - either[1]) / (2 * step)
            torch.testing.assert_close(stress[row, axis], numeric, rtol=1e-5, atol=1e-8)


def test_energy_of_a_supercell_is_that_of_its_cells(network):
    once = crystal_energy(network, torch.eye(3))
    positions = make_positions()[1]
    doubled = CELL * torch.tensor([[2.0], [1.0], [1.0]])
    twice = make_system(TYPES[1] * 2, torch.cat([positions, positions + CELL[0]]), doubled)
    energy = network([twice], {"energy": ALL["energy"]})["energy"].block().values.sum()
    torch.testing.assert_close(energy, 2 * once)


@pytest.mark.parametrize("name", TOTALS)
def test_contributions_of_the_atoms_sum_to_the_total(network, name):
    systems = make_systems()
    totals = network(systems, {name: ALL[name]})[name]
    shares = network(systems, {name: ModelOutput(sample_kind="atom")})[name]
    owner = shares[0].samples.column("system").long()
    summed = torch.zeros_like(values(totals)).index_add(0, owner, values(shares))
    torch.testing.assert_close(summed, values(totals))


@pytest.mark.parametrize("name", TARGETS)
def test_selected_atoms_of_two_domains_give_all_rows_or_the_total(network, name):
    systems = make_systems()
    domains = [[[0, 0], [2, 1], [2, 4], [0, 3]], [[0, 1], [0, 2], [1, 0], [1, 1]]]
    domains[1] += [[2, 0], [2, 2], [2, 3], [2, 5]]
    complete = network(systems, {name: ALL[name]})[name]
    summed = torch.zeros_like(values(complete))
    for domain in domains:
        selected = Labels(["system", "atom"], torch.tensor(domain))
        part = network(systems, {name: ALL[name]}, selected)[name]
        rows = complete[0].samples.select(part[0].samples)
        assert len(rows) == len(part[0].samples)
        summed[rows] += values(part)
        if not TARGETS[name].per_atom:  # the first domain has no atom of system 1
            assert len(rows) == len({system for system, _ in domain})
    torch.testing.assert_close(summed, values(complete))
