"""Fitted numbers as settings of NequIP, MACE, fairchem and DeePMD."""

import ast
import math
import re
import shlex
from dataclasses import replace

import pytest
import torch
import yaml
from builders import (
    Springs,
    atom_samples,
    atom_target,
    cartesian,
    fit,
    structure_target,
    system,
)

from lightning_scaler import CompositionBaseline
from lightning_scaler.interop import settings_for

SYSTEMS = [system(1, 8), system(8), system(1, 1, 8), system(1, 1)]
# Energies of exactly -1 per hydrogen and -70 per oxygen, and residuals that are not theirs.
RESIDUALS = [0.3, -0.2, -0.1, 0.05]
COUNTS = [(1, 1), (0, 1), (2, 1), (2, 0)]
ENERGIES = [-1.0 * h - 70.0 * o + r for (h, o), r in zip(COUNTS, RESIDUALS, strict=True)]
GRADIENTS = [
    [[1.0, 0.0, -2.0], [0.5, 0.0, 0.0]],
    [[0.0, 3.0, 0.0]],
    [[0.0, 0.0, 0.0], [1.0, 1.0, 1.0], [0.0, 0.0, 2.0]],
    [[0.25, 0.0, 0.0], [-0.25, 0.0, 0.0]],
]
COMPONENTS = [x for structure in GRADIENTS for atom in structure for x in atom]
FORCE_RMS = math.sqrt(math.fsum(x * x for x in COMPONENTS) / len(COMPONENTS))
FIXED = {"energy": {"H": -1.0, "O": -70.0}}
CODES = ("nequip", "mace", "fairchem", "deepmd")


def energies(gradients=True):
    gradient = {"positions": GRADIENTS} if gradients else None
    return structure_target(ENERGIES, gradient=gradient)


def fitted(targets=None, **options):
    options = {"baseline": CompositionBaseline(FIXED), **options}
    return fit(SYSTEMS, targets or {"energy": energies()}, **options)


def numbers(code, text):
    """Energies of hydrogen and oxygen, and the scale, as the other code reads them."""
    body = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    if code == "nequip":
        config = yaml.safe_load(body)
        assert config["model_type_names"] == ["H", "O"]
        return tuple(config["per_type_energy_shifts"]), config["per_type_energy_scales"]
    if code == "mace":
        options = dict(word.lstrip("-").split("=", 1) for word in shlex.split(body))
        assert float(options["mean"]) == 0.0
        e0s = ast.literal_eval(options["E0s"])
        return (e0s[1], e0s[8]), float(options["std"])
    if code == "fairchem":
        config = yaml.safe_load(body)
        (references,) = config["element_references"]["element_references"]["_args_"]
        assert config["normalizer"]["mean"] == 0.0
        assert len(references) == 9
        assert references[0] == references[2] == 0.0
        return (references[1], references[8]), config["normalizer"]["rmsd"]
    assert "# type_map: [H, O]" in text
    values = [float(word) for word in shlex.split(body)[5:]]
    return tuple(values), None


@pytest.mark.parametrize("code", CODES)
def test_energies_are_the_baseline_and_the_scale_is_the_rms_of_the_forces(code):
    found, scale = numbers(code, settings_for(code, fitted()))
    assert found == (-1.0, -70.0)
    if code != "deepmd":
        assert scale == pytest.approx(FORCE_RMS, rel=1e-15)


def test_the_scale_of_the_energy_does_not_matter():
    _, scale = numbers("mace", settings_for("mace", fitted(fixed_scales={"energy": 7.0})))
    assert scale == pytest.approx(FORCE_RMS, rel=1e-15)


def test_forces_that_are_a_target_of_their_own_give_the_same_scale():
    values = torch.tensor(COMPONENTS, dtype=torch.float64).reshape(-1, 3, 1)
    forces = atom_target(values, atom_samples(2, 1, 3, 2), components=cartesian())
    scaler = fitted({"energy": energies(gradients=False), "forces": forces})
    for code in ("nequip", "mace", "fairchem"):
        assert numbers(code, settings_for(code, scaler))[1] == pytest.approx(FORCE_RMS, rel=1e-15)


@pytest.mark.parametrize(
    "options",
    [
        {"enabled": False},
        {"fixed_scales": {"forces": 0.3}},
        {"fixed_scales": {"forces": {"H": 0.3}}},
    ],
    ids=["every scale is 1", "fixed", "fixed for a type"],
)
def test_the_rms_of_the_forces_is_that_of_the_data_whatever_scales_are_used(options):
    values = torch.tensor(COMPONENTS, dtype=torch.float64).reshape(-1, 3, 1)
    forces = atom_target(values, atom_samples(2, 1, 3, 2), components=cartesian())
    scaler = fitted({"energy": energies(gradients=False), "forces": forces}, **options)
    _, scale = numbers("mace", settings_for("mace", scaler))
    assert scale == pytest.approx(FORCE_RMS, rel=1e-15)


def test_forces_with_a_fixed_scale_have_no_rms_without_a_data_pass():
    """One batch was read for its layout, and the mean squares are unknown."""
    values = torch.tensor(COMPONENTS, dtype=torch.float64).reshape(-1, 3, 1)
    forces = atom_target(values, atom_samples(2, 1, 3, 2), components=cartesian())
    targets = {"energy": energies(gradients=False), "forces": forces}
    scaler = fitted(targets, fixed_scales={"forces": 0.3})
    scaler.targets["forces"] = replace(scaler.targets["forces"], mean_squares={})
    with pytest.raises(ValueError, match="the fit had none"):
        settings_for("mace", scaler)


@pytest.mark.parametrize("code", ["nequip", "mace", "fairchem"])
def test_an_rms_of_energies_is_not_given_out_as_one_of_forces(code):
    scaler = fitted({"energy": energies(gradients=False)})
    with pytest.raises(ValueError, match=r"the fit had none, .* which is another quantity"):
        settings_for(code, scaler)
    # DeePMD has no scale.
    assert "change-bias" in settings_for("deepmd", scaler)


@pytest.mark.parametrize(
    ("scaler", "message"),
    [
        (lambda: fitted(baseline=None), "got no baseline; fit with baseline='composition'"),
        (
            lambda: fitted(intensive_targets=["energy"]),
            "got fractions of an intensive target",
        ),
        (lambda: fitted(additive=Springs(k=1e-3)), "an additive module was subtracted first"),
        (
            lambda: fitted(
                {"energy": structure_target([[[1.0] * 1] * 3] * 4, components=cartesian())},
                baseline=CompositionBaseline(),
            ),
            "got no baseline",
        ),
    ],
    ids=["no baseline", "intensive", "additive", "vector"],
)
@pytest.mark.filterwarnings("ignore:subtracting the baseline makes")
def test_numbers_that_do_not_correspond_are_refused(scaler, message):
    for code in CODES:
        with pytest.raises(ValueError, match=re.escape(message)):
            settings_for(code, scaler())


def test_types_that_are_not_atomic_numbers_are_refused():
    targets = {"energy": structure_target([-1.0, -2.5])}
    scaler = fit([system(0), system(0, 0)], targets, baseline=CompositionBaseline())
    with pytest.raises(ValueError, match=r"expected atomic numbers as types, got \[0\]"):
        settings_for("deepmd", scaler)


@pytest.mark.filterwarnings("ignore:these data are zero", "ignore:some atomic types have no data")
def test_a_type_with_an_unknown_energy_is_refused():
    nan = torch.nan
    targets = {"energy": structure_target([nan, -70.0, nan, nan])}
    scaler = fit(SYSTEMS, targets, baseline=CompositionBaseline())
    with pytest.raises(ValueError, match=r"the baseline of the types \[1\] is unknown"):
        settings_for("deepmd", scaler)


def test_other_names_are_refused():
    with pytest.raises(ValueError, match=r"code: expected one of \['nequip', 'mace'"):
        settings_for("allegro", fitted())
    with pytest.raises(ValueError, match="did you mean 'energy'"):
        settings_for("mace", fitted(), "enrgy")
