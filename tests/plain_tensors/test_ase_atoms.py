"""Targets in lists of ASE ``Atoms``."""

import ase
import numpy as np
import pytest
import torch
from ase.calculators.singlepoint import SinglePointCalculator
from builders import fit, structure_target, system
from metatomic.torch import System

from lightning_scaler import ZBL, PerAtom, PerStructure, PhysicalModel, ScaleAccumulator
from lightning_scaler.plain_tensors import Declaration, DeclaredBatch


def atoms(symbols, info=None, arrays=None, **results):
    one = ase.Atoms(symbols, positions=np.zeros((len(ase.Atoms(symbols)), 3)), cell=[2, 3, 4])
    one.info |= info or {}
    for name, values in (arrays or {}).items():
        one.arrays[name] = np.asarray(values)
    if results:
        one.calc = SinglePointCalculator(one, **results)
    return one


def targets(batch, **declared):
    return DeclaredBatch(batch, Declaration.parse(declared, None)).targets()


def test_values_come_from_info_arrays_and_the_calculator():
    batch = [
        atoms(
            "OH", info={"gap": 5.0}, arrays={"q": [0.1, -0.1]}, energy=-10.0, forces=np.ones((2, 3))
        ),
        atoms("H", info={"gap": 7.0}, arrays={"q": [0.3]}, energy=-1.0, forces=[[2.0, 0.0, 0.0]]),
    ]
    found = targets(
        batch,
        energy=PerStructure(gradients={"positions": "-forces"}),
        gap=PerStructure(intensive=True),
        charges=PerAtom(tensor=("arrays", "q")),
    )
    energy = found["energy"].block()
    assert energy.values.tolist() == [[-10.0], [-1.0]]
    assert energy.values.dtype == torch.float64
    assert energy.gradient("positions").values[..., 0].tolist() == [[-1.0] * 3] * 2 + [[-2.0, 0, 0]]
    assert found["gap"].block().values.tolist() == [[5.0], [7.0]]
    assert found["charges"].block().values.tolist() == [[0.1], [-0.1], [0.3]]


def test_an_additive_module_receives_systems_with_positions_and_cell():
    """The repulsion of a water molecule and of a chain of hydrogen, as for the same systems."""
    water = ase.Atoms("OHH", [[0, 0, 0], [0.8, 0.3, 0], [-0.7, 0.2, 0.1]])
    chain = ase.Atoms("H", [[0.1, 0.2, 0.3]], cell=[0.5, 7, 9], pbc=[True, False, False])
    frames = [water, chain]
    systems = [
        system(8, 1, 1, positions=torch.tensor(water.positions)),
        System(
            torch.tensor([1]),
            torch.tensor(chain.positions),
            torch.tensor([[0.5, 0, 0], [0, 0, 0], [0, 0, 0]]).double(),
            torch.tensor([True, False, False]),
        ),
    ]
    energies = [70.0, 15.0]
    for frame, energy in zip(frames, energies, strict=True):
        frame.info["energy"] = energy
    of_atoms = ScaleAccumulator({"energy": PerStructure()}, additive=ZBL())
    of_atoms.update(frames)
    scaler = of_atoms.compute()
    expected = fit(systems, {"energy": structure_target(energies)}, additive=ZBL())
    scale = scaler.targets["energy"].per_target
    assert torch.equal(scale, expected.targets["energy"].per_target)
    repulsion = ZBL()(systems, ["energy"])["energy"].block().values[:, 0]
    assert repulsion.min() > 1.0
    residuals = (torch.tensor(energies).double() - repulsion) / torch.tensor([3.0, 1.0])
    torch.testing.assert_close(scale[0], residuals.square().mean().sqrt())

    class Zero(torch.nn.Module):
        def forward(self, frames):
            return {"energy": torch.zeros(len(frames)).double()}

    predicted = PhysicalModel(Zero(), scaler)(frames)["energy"]
    torch.testing.assert_close(predicted, repulsion)


def test_structures_without_a_value_have_missing_values():
    batch = [atoms("OH", energy=-10.0, forces=np.ones((2, 3))), atoms("HH", energy=-2.0)]
    energy = targets(batch, energy=PerStructure(gradients={"positions": "-forces"}))["energy"]
    gradient = energy.block().gradient("positions").values[..., 0]
    assert gradient[:2].tolist() == [[-1.0] * 3] * 2
    assert bool(gradient[2:].isnan().all())
    assert targets([atoms("H")], energy=PerStructure()) == {}


def test_stress_in_the_order_of_voigt_is_a_gradient_with_the_volume_of_the_cell():
    # xx, yy, zz, yz, xz, xy in a cell of 2 x 3 x 4 = 24 Å³.
    batch = [atoms("H", energy=-1.0, stress=np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]))]
    declared = PerStructure(gradients={"strain": {"tensor": "stress", "volume": "cell"}})
    strain = targets(batch, energy=declared)["energy"].block().gradient("strain")
    expected = [[24.0, 144.0, 120.0], [144.0, 48.0, 96.0], [120.0, 96.0, 72.0]]
    torch.testing.assert_close(
        strain.values[0, ..., 0], torch.tensor(expected).double(), rtol=1e-15, atol=0
    )


def test_a_name_with_the_same_values_twice_is_one_target_also_where_they_are_missing():
    dipole = [np.nan, 1.0, 2.0]
    batch = [atoms("H", info={"dipole": dipole}, dipole=np.array(dipole))]
    values = targets(batch, dipole=PerStructure(components="xyz"))["dipole"].block().values
    np.testing.assert_array_equal(values.flatten().numpy(), dipole)


def test_a_name_with_two_values_is_refused_and_an_address_decides():
    batch = [atoms("H", info={"energy": -2.0}, energy=-1.0)]
    message = r"'energy': the Atoms have different values at \('info', 'energy'\) and \('calc'"
    with pytest.raises(ValueError, match=message):
        targets(batch, energy=PerStructure())
    for address, value in ((("info", "energy"), -2.0), (("calc", "results", "energy"), -1.0)):
        found = targets(batch, energy=PerStructure(tensor=address))
        assert found["energy"].block().values.tolist() == [[value]]
    same = [atoms("H", info={"energy": -1.0}, energy=-1.0)]
    assert targets(same, energy=PerStructure())["energy"].block().values.tolist() == [[-1.0]]


def test_values_of_different_shapes_are_refused():
    batch = [atoms("H", info={"mu": np.ones(3)}), atoms("H", info={"mu": np.ones(2)})]
    message = r"'mu' of structure 1 of the batch: expected the shape \(3,\), got \(2,\)$"
    with pytest.raises(ValueError, match=message):
        targets(batch, mu=PerStructure(components="xyz"))


def test_values_per_atom_that_are_declared_per_structure_are_named_as_such():
    batch = [atoms("H", arrays={"q": [0.0]}), atoms("OH", arrays={"q": [0.1, -0.1]})]
    message = r"expected the shape \(1,\), got \(2,\); if it has a row for each atom, declare"
    with pytest.raises(ValueError, match=message):
        targets(batch, q=PerStructure())


def test_one_structure_is_not_a_batch():
    with pytest.raises(TypeError, match="got one structure of ASE; a batch is a list of Atoms"):
        targets(atoms("OH", energy=-1.0), energy=PerStructure())
