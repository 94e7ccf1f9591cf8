"""Declarations in Python and YAML, their errors, and their state."""

import pytest
from omegaconf import OmegaConf

from lightning_scaler import PerAtom, PerStructure, ScaleAccumulator
from lightning_scaler.plain_tensors import Declaration, GradientTensor

IN_PYTHON = {
    "energy": PerStructure(
        tensor="U0",
        prediction=("out", 0),
        unit="eV",
        gradients={
            "positions": "-forces",
            "strain": GradientTensor("stress", prediction="+s", volume="cell"),
        },
    ),
    "gap": PerStructure(("y", 4), intensive=True),
    "dipole": PerStructure(components="xyz", intensive=True),
    "e_atom": PerStructure(per_atom=True),
    "free": PerStructure(
        gradients={
            "positions": GradientTensor("-f", prediction=False),
            "strain": GradientTensor("stress_of_free", volume=False),
        }
    ),
    "charges": PerAtom(properties=2),
    "moments": PerAtom(components={"spherical": 1}),
}
IN_YAML = """
energy:
  per: structure
  tensor: U0
  prediction: [out, 0]
  unit: eV
  gradients:
    positions: -forces
    strain: {tensor: stress, prediction: +s, volume: cell}
gap: {per: structure, tensor: [y, 4], intensive: true}
dipole: {per: structure, components: xyz, intensive: true}
e_atom: {per: structure, per_atom: true}
free:
  per: structure
  gradients:
    positions: {tensor: -f, prediction: false}
    strain: {tensor: stress_of_free, volume: false}
charges: {per: atom, properties: 2}
moments: {per: atom, components: {spherical: 1}}
"""
BATCH = {"types": "z", "structure": ["graph", "idx"]}


def test_yaml_declares_the_same_as_python():
    config = OmegaConf.create(IN_YAML)
    from_python = Declaration.parse(IN_PYTHON, BATCH)
    assert Declaration.parse(config, OmegaConf.create(BATCH)) == from_python
    assert Declaration.parse(OmegaConf.to_container(config), BATCH) == from_python
    assert from_python.intensive_targets == ["gap", "dipole"]


def test_a_declaration_comes_back_from_its_state():
    declaration = Declaration.parse(IN_PYTHON, BATCH)
    assert Declaration.from_state(declaration.state()) == declaration


def test_a_declared_target_shows_what_is_not_default():
    assert repr(PerStructure()) == "PerStructure()"
    assert repr(IN_PYTHON["gap"]) == "PerStructure(tensor=['y', 4], intensive=True)"


def target(**arguments):
    return {"t": {"per": "structure", **arguments}}


REFUSED = {
    "no kind": (
        {"t": {}},
        ValueError,
        "targets, 't': expected 'per': 'structure' or 'per': 'atom'",
    ),
    "other kind": ({"t": {"per": "edge"}}, ValueError, "got 'edge'"),
    "a name": ({"t": "energy"}, TypeError, "targets, 't': expected PerStructure"),
    "class": ({"t": PerAtom}, TypeError, r"targets, 't': write PerAtom\(\), with its brackets"),
    "empty": ({}, ValueError, "expected at least one declared target"),
    "argument": (target(tensr="a"), ValueError, "no argument 'tensr'; did you mean 'tensor'"),
    "gradients of atoms": (
        {"t": {"per": "atom", "gradients": {}}},
        ValueError,
        "PerAtom has no argument 'gradients'",
    ),
    "address": (target(tensor=1.5), TypeError, r"'t': PerStructure\(tensor=…\): expected the addr"),
    "components": (target(components="zyx"), ValueError, "expected None, 'xyz', 'matrix'"),
    "degree": (target(components={"spherical": -1}), ValueError, "components=….: expected None"),
    "properties": (target(properties=0), ValueError, "expected the number of properties"),
    "unit": (target(unit=1), TypeError, "unit=….: expected a string"),
    "gradient": (
        target(gradients={"forces": "forces"}),
        ValueError,
        r"expected the parameters \['positions', 'strain'\], got 'forces'; forces are minus the",
    ),
    "gradients": (target(gradients="-forces"), TypeError, "expected addresses by parameter"),
    "gradient argument": (
        target(gradients={"strain": {"tensor": "s", "vol": "V"}}),
        ValueError,
        "unknown argument 'vol'; did you mean 'volume'",
    ),
    "gradient address": (
        target(gradients={"strain": {"volume": "V"}}),
        ValueError,
        "expected the address 'tensor'",
    ),
    "volume of forces": (
        target(gradients={"positions": {"tensor": "f", "volume": "V"}}),
        ValueError,
        "a volume belongs to a stress",
    ),
    "flag": (target(intensive="no"), TypeError, "intensive=….: expected True or False"),
    "both flags": (target(intensive=True, per_atom=True), ValueError, "leave intensive=True out"),
    "same address": (
        {**target(tensor="E"), "E": {"per": "structure"}},
        ValueError,
        "targets: 't' and 'E' are both declared at 'E'",
    ),
}


@pytest.mark.parametrize(("targets", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_other_declarations_are_refused(targets, error, message):
    with pytest.raises(error, match=message):
        ScaleAccumulator(targets)


@pytest.mark.parametrize(
    ("batch", "error", "message"),
    [
        ({"type": "z"}, ValueError, "batch: unknown name 'type'; did you mean 'types'"),
        ({"types": None}, TypeError, "batch, 'types': expected the address"),
        ("z", TypeError, "batch: expected a mapping such as"),
    ],
)
def test_other_addresses_of_the_batch_are_refused(batch, error, message):
    with pytest.raises(error, match=message):
        ScaleAccumulator(target(), batch=batch)


def test_addresses_of_the_batch_need_declared_targets():
    with pytest.raises(ValueError, match="batch: addresses are for declared targets"):
        ScaleAccumulator(["energy"], batch={"types": "z"})
