"""Warnings about data that are rarely meant to be as they are, and how they are hidden."""

import re
import warnings

import pytest
import torch
from builders import atom_samples, atom_target, block, mask_of, single, structure_target, system

from lightning_scaler import CompositionBaseline, ScaleAccumulator
from lightning_scaler.fitting.data_warnings import is_intensive_by_name

NAN = float("nan")


def energies(size, seed=0):
    return structure_target(torch.randn(size, generator=torch.Generator().manual_seed(seed)))


def molecules(n_water, n_rare, rare=78):
    """Water, and some molecules with one or two atoms of another type."""
    return [system(1, 8, 1)] * n_water + [system(rare, 1, rare)] * n_rare


def accumulated(systems, targets, masks=None, baseline=None, **settings):
    accumulator = ScaleAccumulator(baseline=baseline, **settings)
    accumulator.update(systems, targets, masks)
    return accumulator


def few(n_water=120, n_rare=3, **options):
    systems = molecules(n_water, n_rare)
    of = {"energy": energies(len(systems))}
    return accumulated(systems, of, baseline=CompositionBaseline(), **options)


def messages(compute):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        compute()
    return [str(w.message) for w in caught if w.category is UserWarning]


def test_types_in_few_structures_are_named_with_their_symbols():
    (message,) = messages(few().compute)
    assert message.startswith(
        "few samples of some atomic types: target 'energy', Pt (78) in 3 structures; what is "
    )


@pytest.mark.parametrize(
    ("n_water", "n_rare", "warned"), [(120, 9, True), (120, 10, False), (95, 2, False)]
)
def test_ten_samples_are_enough_and_small_data_are_a_trial(n_water, n_rare, warned):
    """With 95 + 2 structures, no type is in as many as 100."""
    assert bool(messages(few(n_water, n_rare).compute)) == warned


def test_structures_are_counted_over_batches_accumulators_and_files(tmp_path):
    one, two = few(60, 4), few(60, 5)
    one.save(tmp_path / "one")
    merged = ScaleAccumulator.load(tmp_path / "one")
    merged.merge(two)
    assert "Pt (78) in 9 structures" in messages(merged.compute)[0]
    merged.merge(few(0, 1))
    assert not messages(merged.compute)


def test_a_file_without_these_numbers_gives_no_false_alarm(tmp_path):
    old = few(120, 3)
    state = old.state()
    statistics = state["statistics"]["energy"]
    del statistics["structures"]
    for _, of_block in statistics["blocks"]:
        del of_block["missing"]
    merged = old.fresh()
    merged.merge_state(state)
    assert not messages(merged.compute)
    merged.merge(few(120, 3))
    assert not messages(merged.compute)


def test_types_with_few_labelled_atoms_are_named():
    # 120 waters and 6 atoms of fluorine, of which 4 have a charge.
    systems = [system(1, 8, 1)] * 120 + [system(9)] * 6
    charges = torch.randn(366, generator=torch.Generator().manual_seed(0))
    charges[-2:] = NAN
    target = atom_target(charges, atom_samples(*map(len, systems)))
    (message,) = messages(accumulated(systems, {"q": target}).compute)
    assert "target 'q', F (9) in 4 atoms;" in message


def test_numbers_that_are_fixed_are_not_uncertain():
    fixed = CompositionBaseline(fixed={"energy": {78: -3.0}})
    systems = molecules(120, 3)
    of = {"energy": energies(len(systems))}
    assert not messages(accumulated(systems, of, baseline=fixed).compute)
    # Without a baseline, the scale of an energy does not depend on types.
    assert not messages(accumulated(systems, of).compute)
    n_atoms = sum(map(len, systems))
    charges = {"q": atom_target(torch.randn(n_atoms), atom_samples(*map(len, systems)))}
    accumulator = accumulated(systems, charges)
    assert messages(accumulator.compute)
    assert not messages(lambda: accumulator.compute({"q": {78: 0.5}}))
    assert not messages(lambda: accumulator.compute({"q": 0.5}))


def test_a_refit_says_it_of_new_types_alone():
    scaler = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scaler = few().compute()
    assert not messages(lambda: few().refit(scaler, "types"))
    systems = molecules(120, 3, rare=79)
    gold = accumulated(systems, {"energy": energies(len(systems))}, baseline=CompositionBaseline())
    (message,) = messages(lambda: gold.refit(scaler, "types"))
    assert "Au (79) in 3 structures" in message
    assert messages(lambda: few().refit(scaler, "baseline"))


WATERS = [system(1, 8, 1)] * 100


def with_missing(n_missing, size=100):
    values = torch.randn(size, generator=torch.Generator().manual_seed(1))
    values[:n_missing] = NAN
    return structure_target(values)


@pytest.mark.parametrize(("n_missing", "warned"), [(51, True), (50, False), (0, False)])
def test_more_than_half_of_the_values(n_missing, warned):
    found = messages(accumulated(WATERS, {"energy": with_missing(n_missing)}).compute)
    assert bool(found) == warned
    if warned:
        assert found[0].startswith(
            "more than half of the values are missing: target 'energy', 51 %; if this is not"
        )


def test_values_may_be_missing_by_a_mask_and_over_batches():
    energy = energies(100)
    masks = {"energy": mask_of(energy, [[i >= 80 for i in range(100)]])}
    accumulator = accumulated(WATERS, {"energy": energy}, masks)
    assert "80 %" in messages(accumulator.compute)[0]
    accumulator.update(WATERS, {"energy": energy})  # 80 of 200
    assert not messages(accumulator.compute)
    for _ in range(2):
        accumulator.update(WATERS, {"energy": with_missing(75)})
    assert "58 %" in messages(accumulator.compute)[0]  # 230 of 400


def test_the_property_is_named_where_there_are_several():
    values = torch.randn(100, 2)
    values[:70, 1] = NAN
    of_structures = structure_target(torch.randn(100)).block().samples
    target = {"two": single(block(values, of_structures))}
    (message,) = messages(accumulated(WATERS, target).compute)
    assert "target 'two', block (_=0), property (property=1) 70 %;" in message


def test_padded_properties_of_some_types_are_not_missing():
    """Hydrogen has no second property; two thirds of the atoms are hydrogen."""
    values = torch.randn(300, 2)
    values[torch.arange(300) % 3 != 1, 1] = NAN
    target = {"n": single(block(values, atom_samples(*[3] * 100)))}
    assert not messages(accumulated(WATERS, target).compute)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gap", True),
        ("gaps", True),
        ("mtt::gap", True),
        ("homo_lumo_gap", True),
        ("HOMO", True),
        ("eLumo", True),
        ("dipole_moment", True),
        ("mtt::dft-dipole/xyz", True),
        ("bandgap", True),
        ("energy", False),
        ("U0", False),
        ("mtt::U0", False),
        ("mtt::energy", False),
        ("homology", False),
        ("gapless", False),
        ("heterodipolar", False),
        ("energy_GAP", False),  # the Gaussian approximation potential
        ("σ", False),
        ("", False),
    ],
)
def test_names_are_read_word_by_word(name, expected):
    assert is_intensive_by_name(name) == expected


def test_a_gap_among_extensive_targets_is_asked_about():
    targets = {name: energies(100, seed) for seed, name in enumerate(("energy", "gap"))}
    (message,) = messages(accumulated(WATERS, targets).compute)
    assert message.startswith(
        "extensive targets with names that are usually intensive: ['gap'], which are divided by "
    )
    (way_out,) = re.findall(r"intensive_targets=\[.*?\]", message)
    settings = eval(f"dict({way_out})")
    assert not messages(accumulated(WATERS, targets, **settings).compute)


def test_a_per_atom_target_is_not_divided_and_not_asked_about():
    target = {"dipole": atom_target(torch.randn(300), atom_samples(*[3] * 100))}
    assert not messages(accumulated(WATERS, target).compute)


@pytest.mark.parametrize(
    "accumulator",
    [
        few(),
        accumulated(WATERS, {"energy": with_missing(60)}),
        accumulated(WATERS, {"gap": energies(100)}),
    ],
    ids=["few samples", "missing values", "intensive"],
)
def test_the_line_in_the_message_hides_the_warning(accumulator):
    (message,) = messages(accumulator.compute)
    (line,) = re.findall(r"To hide this: (warnings\.filterwarnings\(.*\))$", message)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        exec(line)
        accumulator.compute()
    assert not caught
