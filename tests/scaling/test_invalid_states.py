"""States that contradict themselves are refused before anything is changed."""

import math

import pytest
import torch
from builders import Springs, atom_samples, atom_target, fit, structure_target, system

from lightning_scaler import CompositionBaseline, Scaler
from lightning_scaler.tensors import InvalidStateError, digest, save_state, state_to_tensor

SYSTEMS = [system(8), system(1, 8, 1), system(6, 8), system(1, 6, 1)]
TARGETS = {
    "energy": structure_target([-75.0, -76.4, -113.3, -39.1]),
    "charges": atom_target(
        [0.5, 0.1, -0.2, 0.3, 0.4, -0.6, 0.7, -0.8, 0.9], atom_samples(1, 3, 2, 3)
    ),
}


def fitted(factor=1.0):
    fixed = {"charges": {1: factor, 6: 2.0, 8: 3.0, 9: 0.5}}
    springs = Springs(names=("energy",))
    return fit(
        SYSTEMS, TARGETS, baseline=CompositionBaseline(), additive=springs, fixed_scales=fixed
    )


def of(target, **values):
    """Set fields of a target."""
    return lambda state: state["targets"][target].update(values)


def number(value, target="charges", name="per_target", index=0):
    """Set one number of a tensor, or of the tensor of the first block."""

    def change(state):
        tensor = state["targets"][target][name]
        tensor = tensor[0][1] if isinstance(tensor, list) else tensor
        tensor.view(-1)[index] = value

    return change


def cast(target, name, dtype):
    def change(state):
        state["targets"][target][name] = state["targets"][target][name].to(dtype)

    return change


def drop(*path):
    def change(state):
        for name in path[:-1]:
            state = state[name]
        del state[path[-1]]

    return change


FIELDS = (
    *("layout", "extensive", "types", "per_target", "per_property", "fixed", "given_types"),
    *("composition_types", "weights", "fixed_weights", "rms_before", "rms_after"),
    *("additive", "explained"),
)

# Attributes that have another name in a state.
ATTRIBUTES = {
    "given_types": "fixed_only_types",
    "composition_types": "baseline_types",
    "explained": "explained_variance",
}

FAULTS = {
    "NaN scale": (number(math.nan), "'charges': per_target: expected positive scales, got .*nan"),
    "zero scale": (number(0.0), r"'charges': per_target: expected positive scales, got \[0.0\]"),
    "negative scale": (number(-2.0), r"per_target: expected positive scales, got \[-2.0\]"),
    "infinite scale": (number(math.inf), r"per_target: expected finite numbers, got \[inf\]"),
    "NaN for unseen types": (number(math.nan, index=3), "per_target: expected positive scales"),
    "NaN property scale": (
        number(math.nan, name="per_property"),
        r"per_property: \(0,\): expected positive scales, got \[nan\]",
    ),
    "zero property scale": (number(0.0, name="per_property"), r"per_property: .* got \[0.0\]"),
    "float16": (cast("energy", "per_target", torch.float16), "torch.float64, got torch.float16"),
    "float32": (cast("energy", "per_target", torch.float32), "torch.float64, got torch.float32"),
    "types as floats": (cast("charges", "types", torch.float64), "torch.int64, got torch.float64"),
    "infinite weight": (number(math.inf, "energy", "weights"), r"weights: \(0,\): .* got \[inf\]"),
    "wrong length": (
        of("charges", per_target=torch.ones(4).double()),
        r"per_target: expected the shape \(n_rows\) = \(6,\), got \(4,\)",
    ),
    "wrong number of properties": (
        of("charges", per_property=[[[0], torch.ones(6, 2).double()]]),
        r"per_property: \(0,\): .* \(n_rows, n_properties\) = \(6, 1\), got \(6, 2\)",
    ),
    "wrong number of weights": (
        of("energy", weights=[[[0], torch.ones(2, 1).double()]]),
        r"weights: \(0,\): .* = \(3, 1\), got \(2, 1\)",
    ),
    "weights of no block": (
        of("energy", weights=[[[1], torch.ones(3, 1).double()]]),
        r"weights: \(1,\): the target does not have this block",
    ),
    "no property scales": (of("energy", per_property=[]), r"expected the blocks \[\(0,\)\], got"),
    "types not sorted": (
        of("charges", types=torch.tensor([6, 1, 8])),
        r"types: expected sorted types, got \[6, 1, 8\]",
    ),
    "types of a per-structure target": (
        of("energy", types=torch.tensor([1])),
        r"'energy': types: expected \[-1\], got \[1\]",
    ),
    "negative fixed scale": (of("energy", fixed=-1.0), "fixed: expected positive numbers, got -1"),
    "fixed scale as text": (of("energy", fixed="1"), "fixed: expected a dict, got '1'"),
    "fixed scales of types, per structure": (of("energy", fixed={1: 1.0}), "not per-atom"),
    "RMS as text": (of("energy", rms_before="1"), "rms_before: expected a number, got '1'"),
    "RMS as a dict": (of("energy", rms_before={}), r"rms_before: expected a number, got \{\}"),
    "extensive as a number": (of("energy", extensive=1), "extensive: expected True or False"),
    "negative mean square": (
        of("energy", mean_squares={"": -1.0}),
        r"'energy': mean_squares: expected numbers of at least 0 for \[''\], got \{'': -1.0\}",
    ),
    "mean square of another term": (
        of("energy", mean_squares={"positions": 2.0}),
        r"'energy': mean_squares: .* got \{'positions': 2.0\}",
    ),
    "unknown weights without weights": (
        of("energy", weights=[], unknown=[[[0], torch.zeros(3, 1, dtype=torch.bool)]]),
        r"'energy': unknown: expected some of the blocks with weights, \[\], got \[\(0,\)\]",
    ),
    "fractions of an extensive target": (
        of("energy", composition="fractions"),
        "'energy': composition: expected one that suits the target, got 'fractions'",
    ),
    "weights without a composition": (
        of("energy", composition="none"),
        "'energy': composition: expected one that suits the target, got 'none'",
    ),
    "negative loss weight": (
        lambda s: s["settings"].update(loss_weights={"energy": -4.0}),
        "settings: loss_weights of the term 'energy': expected a number of at least 0, got -4",
    ),
    "unknown field": (of("energy", colour="red"), "'energy': unknown fields: colour"),
    "unknown setting": (lambda s: s["settings"].update(epochs=3), "settings: unknown .* epochs"),
    "wrong setting": (
        lambda s: s["settings"].update(unseen_types="guess"),
        r"settings: unseen_types: expected one of \['error', .*\], got 'guess'",
    ),
    "setting of another type": (
        lambda s: s["settings"].update(enabled="false"),
        "settings: enabled: expected True or False, got 'false'",
    ),
    "no settings": (drop("settings"), "missing fields: settings"),
    "no targets": (drop("targets"), "missing fields: targets"),
    "no version": (drop("version"), "expected the state of a Scaler"),
    "version as text": (lambda s: s.update(version="3"), "got version '3'"),
    "no additive module": (
        lambda s: s.update(additive=None),
        "target 'energy': expected the additive module that was subtracted from it, got none",
    ),
    "additive module without weights": (drop("additive", "weights"), "missing fields: weights"),
    "weights without a baseline": (
        lambda s: s["settings"].update(baseline="none"),
        "'energy': expected no baseline weights under baseline='none'",
    ),
    "target as a list": (lambda s: s["targets"].update(energy=[]), "'energy': expected a dict"),
    "name that is a number": (lambda s: s["targets"].update({1: {}}), "targets: expected a string"),
    "unknown kind of samples": (
        lambda s: s["targets"]["energy"]["layout"].update(kind="cell"),
        r"'energy': layout: kind: expected one of .*, got 'cell'",
    ),
    "repeated property": (
        lambda s: s["targets"]["energy"]["layout"]["blocks"][0]["properties"].update(
            values=torch.tensor([[0], [0]])
        ),
        "'energy': layout: labels named",
    ),
    **{
        f"without {name}": (
            drop("targets", "energy", name),
            f"target 'energy': missing fields: {ATTRIBUTES.get(name, name)}",
        )
        for name in FIELDS
    },
}


def from_dict(scaler, state, folder):
    scaler.set_extra_state(state)


def from_tensor(scaler, state, folder):
    holder = torch.nn.ModuleDict({"scaler": scaler})
    holder.load_state_dict({"scaler._extra_state": state_to_tensor(state)})


def from_file(scaler, state, folder):
    save_state(folder / "scaler", "Scaler", state)
    Scaler.load(folder / "scaler")


@pytest.mark.parametrize("load", [from_dict, from_tensor, from_file])
@pytest.mark.parametrize("fault", FAULTS)
def test_an_invalid_state_is_an_error_that_says_where_and_keeps_the_scales(fault, load, tmp_path):
    change, message = FAULTS[fault]
    state, scaler = fitted().state(), fitted(3.0)
    before = digest(scaler.state())
    change(state)
    with pytest.raises(InvalidStateError, match=message):
        load(scaler, state, tmp_path)
    assert digest(scaler.state()) == before


def test_the_unchanged_state_is_accepted():
    scaler = fitted(3.0)
    from_dict(scaler, fitted().state(), None)
    assert digest(scaler.state()) == digest(fitted().state())


@pytest.mark.parametrize("state", [[], 3, "state", None, {}, {"weight": torch.ones(1)}])
def test_something_else_is_an_error(state):
    with pytest.raises(InvalidStateError, match="expected the state of a Scaler, got a"):
        fitted().set_extra_state(state)


def test_a_state_is_not_shared_with_the_scaler():
    first, state = Scaler(), fitted().state()
    first.set_extra_state(state)
    before = digest(first.state())
    state["targets"]["energy"]["per_target"].fill_(7.0)
    first.state()["targets"]["energy"]["per_target"].fill_(7.0)
    first.get_extra_state().zero_()
    assert digest(first.state()) == before
