import math

import pytest
import torch
from builders import (
    atom_samples,
    atom_target,
    atomic_basis,
    fit,
    forces,
    labels,
    pair_target,
    spherical,
    structure_target,
    system,
)

import lightning_scaler.settings.checks
from lightning_scaler import PerAtom, PerStructure, ScaleAccumulator, Scaler

SYSTEMS = [system(8), system(1, 1, 8)]


def fitted():
    """Energies per atom of 3 and 5, RMS sqrt(17); charges with RMS sqrt(5/2) for H and 3 for O."""
    charges = atom_target([3.0, -1.0, 2.0, 3.0], atom_samples(1, 3))
    targets = {"energy": structure_target([3.0, 15.0]), "charges": charges}
    return fit(SYSTEMS, targets)


def test_plot_draws_the_scales_of_every_target():
    figure, (numbers, charges) = fitted().plot(units={"energy": "eV", "charges": "e"})
    before, after = numbers.lines
    # There is no baseline, so the scale is the RMS of the data.
    assert before.get_xdata().tolist() == pytest.approx([math.sqrt(17.0)])
    assert after.get_xdata().tolist() == pytest.approx([math.sqrt(17.0)])
    (line,) = charges.lines
    assert line.get_ydata().tolist() == pytest.approx([math.sqrt(2.5), 3.0])
    assert [text.get_text() for text in charges.get_xticklabels()] == ["H", "O"]
    assert charges.get_ylabel() == "scale (e)"
    assert figure.axes == [numbers, charges]


def test_plot_of_one_target_returns_its_axes():
    scaler = fitted()
    figure, axes = scaler.plot(["charges"])
    assert figure.axes == [axes]
    assert axes.get_title("left") == "charges"
    assert scaler.plot(["energy"], ax=axes.inset_axes([0, 0, 1, 1]))[0] is figure


def test_plot_draws_the_numbers_of_the_public_tensormaps():
    torch.manual_seed(0)
    samples = atom_samples(1, 3)
    density = spherical({0: torch.randn(4, 1, 4), 2: torch.randn(4, 5, 3)}, samples)
    scaler = fit(SYSTEMS, {"density": density})
    _, axes = scaler.plot()
    public = torch.cat([block.values.T for block in scaler.scales["density"].blocks()])
    drawn = torch.from_numpy(axes.images[0].get_array().filled(math.nan))
    torch.testing.assert_close(drawn, public, rtol=0.0, atol=0.0)
    rows = [text.get_text() for text in axes.get_yticklabels()]
    assert rows[0] == "λ=0, property=0"
    assert rows[-1] == "λ=2, property=2"


def test_blocks_of_other_types_are_left_empty():
    basis = atomic_basis(
        {(0, 1): [[[1.0, 2.0]]] * 2, (0, 8): [[[3.0, 4.0]]] * 2},
        {1: [[1, 0], [1, 1]], 8: [[0, 0], [1, 2]]},
    )
    _, axes = fit(SYSTEMS, {"basis": basis}).plot()
    drawn = [line.get_ydata().tolist() for line in axes.lines]
    expected = [[1.0, math.nan], [2.0, math.nan], [math.nan, 3.0], [math.nan, 4.0]]
    torch.testing.assert_close(torch.tensor(drawn), torch.tensor(expected), equal_nan=True)
    legend = [text.get_text() for text in axes.get_legend().get_texts()]
    assert legend == ["H, n=0", "H, n=1", "O, n=0", "O, n=1"]


def test_types_that_are_no_atomic_numbers_keep_their_numbers():
    _, axes = fit([system(0, 1)], {"charges": atom_target([1.0, 2.0], atom_samples(2))}).plot()
    assert [text.get_text() for text in axes.get_xticklabels()] == ["0", "1"]


def test_units_are_those_of_the_declaration():
    batch = {
        "z": torch.tensor([8, 1, 1]),
        "n_atoms": torch.tensor([3]),
        "energy": torch.tensor([-3.0]),
        "charges": torch.tensor([-0.8, 0.4, 0.4]),
    }
    targets = {"energy": PerStructure(unit="eV"), "charges": PerAtom()}
    accumulator = ScaleAccumulator(targets=targets)
    accumulator.update(batch)
    scaler = accumulator.compute()
    assert scaler.units == {"energy": "eV"}
    _, (numbers, charges) = scaler.plot()
    assert [text.get_text() for text in numbers.get_yticklabels()] == ["energy (eV/atom)"]
    assert charges.get_ylabel() == "scale"


def test_atom_pairs_are_left_out():
    pair = pair_target([1.0], [[0, 0, 1, 0, 0, 0]])
    scaler = fit([system(1, 8)], {"hopping": pair, "forces": forces([[1.0, 2.0, 3.0]] * 2, 2)})
    figure, axes = scaler.plot()
    assert figure.axes == [axes]
    assert axes.get_title("left") == "forces"
    with pytest.raises(ValueError, match=r"got only atom pairs or no property: \['hopping'\]"):
        scaler.plot(["hopping"])


def test_what_cannot_be_drawn_is_an_error():
    with pytest.raises(ValueError, match="expected targets with scales, got none"):
        Scaler().plot()
    with pytest.raises(ValueError, match="'enrgy', which the data do not have; did you mean"):
        fitted().plot(["enrgy"])
    with pytest.raises(TypeError, match="targets: expected a list of names, got the string"):
        fitted().plot("energy")
    message = r"units names the target 'charge', .*'charges'\? known: \['charges', 'energy'\]"
    with pytest.raises(ValueError, match=message):
        fitted().plot(units={"charge": "e"})


def test_without_matplotlib_one_line_names_the_extra(monkeypatch):
    scaler = fitted()
    monkeypatch.setattr(lightning_scaler.settings.checks, "find_spec", lambda name: None)
    with pytest.raises(
        ModuleNotFoundError,
        match=r"^No module named 'matplotlib'; plots need the extra 'plot': pip install "
        r"'lightning-scaler\[plot\]'$",
    ):
        scaler.plot()


def test_labels_of_one_block_are_the_names_of_its_properties():
    structures = labels("system", [0, 1])
    values = torch.tensor([[[1.0, 2.0, 3.0]]] * 2, dtype=torch.float64)
    moments = spherical({0: values}, structures, name="moment")
    _, axes = fit(SYSTEMS, {"moments": moments}).plot()
    rows = [text.get_text() for text in axes.get_yticklabels()]
    assert rows == ["moment=0", "moment=1", "moment=2"]
