"""Targets in lists of ASE ``Atoms``."""

import ase
import numpy as np
import pytest
import torch
from ase.calculators.singlepoint import SinglePointCalculator

from lightning_scaler import PerAtom, PerStructure
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
