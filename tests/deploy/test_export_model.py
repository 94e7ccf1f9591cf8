"""What ``export`` writes, leaves alone and refuses."""

# ruff: noqa: UP006, UP035, UP045 (metatomic compares the annotations of `forward` with its own)

import copy
import os
from typing import Dict, List, Optional

import numpy as np
import pytest
import torch
from builders import atom_samples, atom_target, fit, structure_target, system
from deployable import SmallNetwork, add_neighbors, molecules
from metatensor.torch import Labels, TensorBlock, TensorMap
from metatomic.torch import (
    ModelEvaluationOptions,
    ModelMetadata,
    ModelOutput,
    System,
    load_atomistic_model,
    read_model_metadata,
)

from lightning_scaler import CompositionBaseline, PhysicalModel, ScaleAccumulator, Scaler, export

UNITS = {"length_unit": "angstrom", "interaction_range": 4.0}


WATERS = [system(1, 8, 1), system(1, 8, 1)]
DATA = {
    "energy": structure_target([-76.0, -76.4], name="property"),
    "charges": atom_target([0.3, -0.6, 0.4, 0.2, -0.5, 0.3], atom_samples(3, 3), "property"),
}


def water_scaler(weights=((1, -0.5), (8, -74.0))):
    """Scales of energies and charges of water."""
    return fit(WATERS, DATA, baseline=CompositionBaseline({"energy": dict(weights)}))


def exported(path, scaler=None, network=None, outputs=None, **settings):
    network, scaler = network or SmallNetwork(), scaler or water_scaler()
    outputs = outputs or {"energy": "eV"}
    export(network, scaler, path / "model.pt", outputs=outputs, **{**UNITS, **settings})
    return load_atomistic_model(str(path / "model.pt"))


def test_capabilities(trained):
    capabilities = load_atomistic_model(str(trained.path)).capabilities()
    assert capabilities.atomic_types == [1, 6, 8]
    assert capabilities.dtype == "float64"
    assert capabilities.length_unit == "angstrom"
    assert capabilities.interaction_range == 4.0
    assert capabilities.supported_devices == ["cuda", "cpu"]
    found = {name: (of.unit, of.sample_kind) for name, of in capabilities.outputs.items()}
    assert found.pop("charges") == found["charge"]  # metatomic's own, for old engines
    assert found == {
        "energy": ("kcal/mol", "atom"),  # per atom and in total
        "charge": ("e", "atom"),
        "lightning_scaler::polarizability": ("bohr^3", "atom"),
    }


def test_metadata(tmp_path):
    exported(tmp_path)
    assert read_model_metadata(str(tmp_path / "model.pt")).name == "SmallNetwork"
    exported(tmp_path, metadata=ModelMetadata(name="water", authors=["A. Author"]))
    metadata = read_model_metadata(str(tmp_path / "model.pt"))
    assert (metadata.name, metadata.authors) == ("water", ["A. Author"])
    with pytest.raises(TypeError, match=r"expected a ModelMetadata .*got \{'name': 'water'\}"):
        exported(tmp_path, metadata={"name": "water"})


def test_the_live_module_is_not_changed(tmp_path):
    network, scaler = SmallNetwork(torch.float32).train(), water_scaler()
    before = copy.deepcopy(network.state_dict()), scaler.get_extra_state()
    exported(tmp_path, scaler, network)
    assert network.training
    assert network.weights.requires_grad
    assert network.options.length_unit == ""
    assert torch.equal(network.state_dict()["weights"], before[0]["weights"])
    assert torch.equal(scaler.get_extra_state(), before[1])


def test_the_properties_of_standard_quantities_get_their_names(tmp_path):
    """metatomic refuses other names where it checks the outputs."""
    model = exported(tmp_path, outputs={"energy": "eV", "charges": "e"})
    systems = add_neighbors(molecules((1, 8, 1)), model)
    outputs = {"energy": ModelOutput(), "charge": ModelOutput(sample_kind="atom")}
    found = model(systems, ModelEvaluationOptions("A", outputs), check_consistency=True)
    assert {name: of.block().properties.names for name, of in found.items()} == {
        "energy": ["energy"],
        "charge": ["charge"],
    }


def test_atomic_types_can_be_limited(tmp_path):
    assert exported(tmp_path, atomic_types=["O"]).capabilities().atomic_types == [8]


@pytest.mark.slow
def test_types_without_a_baseline_are_left_out_with_a_warning(tmp_path):
    scaler = water_scaler([(1, -0.5), (6, -38.0), (8, -74.0)])
    assert exported(tmp_path, scaler).capabilities().atomic_types == [1, 6, 8]
    with pytest.warns(UserWarning, match=r"leaves out the atomic types \[6\].*'charges', 'energy'"):
        model = exported(tmp_path, scaler, outputs={"energy": "eV", "charges": "e"})
    assert model.capabilities().atomic_types == [1, 8]


def test_types_with_an_unknown_weight_are_left_out_with_a_warning(tmp_path):
    """Carbon occurs only where the energy is missing."""
    systems, energies = [*WATERS, system(6, 8)], structure_target([-76.0, -76.4, torch.nan])
    with pytest.warns(UserWarning, match=r"their baseline is unknown: .*types \[6\]"):
        scaler = fit(systems, {"energy": energies}, baseline="composition")
    with pytest.warns(UserWarning, match=r"leaves out the atomic types \[6\].*\['energy'\]"):
        model = exported(tmp_path, scaler)
    assert model.capabilities().atomic_types == [1, 8]


def test_types_must_be_given_where_the_scales_do_not_depend_on_them(tmp_path):
    scaler = fit(WATERS, {"energy": DATA["energy"]})
    with pytest.raises(ValueError, match=r"\['energy'\] are the same for all atomic types; give"):
        exported(tmp_path, scaler)
    model = exported(tmp_path, scaler, atomic_types=["H", "O"])
    assert model.capabilities().atomic_types == [1, 8]


class WithGradient(torch.nn.Module):
    """Gives explicit gradients, which nobody requested."""

    def __init__(self) -> None:
        super().__init__()
        self.network = SmallNetwork()

    def forward(
        self,
        systems: List[System],
        outputs: Dict[str, ModelOutput],
        selected_atoms: Optional[Labels] = None,
    ) -> Dict[str, TensorMap]:
        energy = self.network(systems, outputs, selected_atoms)["energy"]
        block = energy.block().copy()
        samples = Labels(["sample", "atom"], torch.tensor([[0, 1]]))
        xyz = Labels("xyz", torch.arange(3).unsqueeze(1))
        values = torch.ones([1, 3, 1], dtype=block.values.dtype)
        block.add_gradient("positions", TensorBlock(values, samples, [xyz], block.properties))
        return {"energy": TensorMap(energy.keys, [block])}


def test_gradients_of_the_network_are_left_to_the_autograd_of_engines(tmp_path):
    model = exported(tmp_path, network=WithGradient())
    systems = add_neighbors(molecules((1, 8, 1)), model)
    options = ModelEvaluationOptions("A", {"energy": ModelOutput()})
    assert model(systems, options, True)["energy"].block().gradients_list() == []


# What is refused, with the way out.


class Unscriptable(SmallNetwork):
    """Finds an attribute by a name that is made when it runs."""

    def forward(
        self,
        systems: List[System],
        outputs: Dict[str, ModelOutput],
        selected_atoms: Optional[Labels] = None,
    ) -> Dict[str, TensorMap]:
        return {name: getattr(self, "table_" + name) for name in outputs}


class UnscriptableToo(Unscriptable):
    """Another class, since TorchScript names the line once for each."""


class Unsaveable(torch.nn.Module):
    """Calls a static method of a TorchScript class."""

    def forward(
        self,
        systems: List[System],
        outputs: Dict[str, ModelOutput],
        selected_atoms: Optional[Labels] = None,
    ) -> Dict[str, TensorMap]:
        return {"energy": TensorMap(Labels.single(), [])}


class TotalsOnly(torch.nn.Module):
    """Gives total energies, whatever is requested."""

    def __init__(self) -> None:
        super().__init__()
        self.network = SmallNetwork()
        self.total = {"energy": ModelOutput()}

    def forward(
        self,
        systems: List[System],
        outputs: Dict[str, ModelOutput],
        selected_atoms: Optional[Labels] = None,
    ) -> Dict[str, TensorMap]:
        return self.network(systems, self.total, selected_atoms)


def test_a_network_that_torchscript_does_not_take(tmp_path):
    with pytest.raises(RuntimeError, match="Unscriptable does not compile") as error:
        exported(tmp_path, network=Unscriptable())
    assert 'getattr(self, "table_" + name)' in str(error.value)  # the line
    assert "PhysicalModel" in str(error.value)
    assert not list(tmp_path.iterdir())
    # TorchScript complains of the first attempt when it is asked again.
    with pytest.raises(RuntimeError, match=r"Unscriptable does not compile .* in a new process"):
        exported(tmp_path, network=Unscriptable())


def test_a_network_that_cannot_be_saved(tmp_path):
    with pytest.raises(RuntimeError, match=r"Labels.single\(\)"):
        exported(tmp_path, network=Unsaveable(), interaction_range=0.0)


class WithLambda(SmallNetwork):
    """Has a construct that the parser of TorchScript does not know."""

    def forward(
        self,
        systems: List[System],
        outputs: Dict[str, ModelOutput],
        selected_atoms: Optional[Labels] = None,
    ) -> Dict[str, TensorMap]:
        return dict(map(lambda name: (name, self.table), outputs))


def test_a_network_with_a_construct_that_torchscript_does_not_know(tmp_path):
    with pytest.raises(RuntimeError, match=r"(?s)WithLambda does not compile.*Lambda.*PhysicalM"):
        exported(tmp_path, network=WithLambda())


@pytest.mark.parametrize(
    ("wrapper", "inner"),
    [(torch.compile, "_orig_mod"), (torch.optim.swa_utils.AveragedModel, "module")],
)
def test_the_network_inside_a_wrapper_is_asked_for(wrapper, inner, tmp_path):
    with pytest.raises(TypeError, match=f"around a SmallNetwork, .*; pass network.{inner}"):
        export(wrapper(SmallNetwork()), water_scaler(), tmp_path / "a.pt", outputs={}, **UNITS)


class InTorchScript(SmallNetwork):
    """A class of its own: TorchScript keeps the types of classes for the whole process."""


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_a_network_that_is_in_torchscript_already(tmp_path):
    network = InTorchScript()
    options, energies = ModelEvaluationOptions("A", {"energy": ModelOutput()}), []
    for one in (torch.jit.script(network), SmallNetwork()):
        model = exported(tmp_path, network=one)
        systems = add_neighbors(molecules((1, 8, 1)), model)
        energies.append(model(systems, options, True)["energy"].block().values)
    assert torch.equal(*energies)
    assert network.weights.requires_grad


def test_a_lightning_module_is_not_a_network(trained, tmp_path):
    with pytest.raises(TypeError, match=r"LightningModule Net, .*export\(model.network"):
        exported(tmp_path, trained.module.scaler, trained.module)
    with pytest.raises(TypeError, match="expected the network"):
        exported(tmp_path, network=lambda systems: {})


def test_the_network_inside_several_wrappers_and_a_physical_model_is_asked_for(tmp_path):
    network = torch.optim.swa_utils.AveragedModel(torch.compile(SmallNetwork()))
    with pytest.raises(TypeError, match=r"a SmallNetwork, .*; pass network\.module\._orig_mod$"):
        exported(tmp_path, network=network)
    with pytest.raises(TypeError, match=r"got PhysicalModel around a SmallN.*; pass network\.netw"):
        exported(tmp_path, network=PhysicalModel(SmallNetwork(), water_scaler()))


@pytest.mark.parametrize("use", [export, PhysicalModel])
def test_network_and_scaler_of_another_type(use, tmp_path):
    settings = {} if use is PhysicalModel else {"path": tmp_path / "a.pt", "outputs": {}, **UNITS}
    network, scaler = SmallNetwork(), water_scaler()
    for other in (network, None, ScaleAccumulator(), scaler.state_dict(), "scaler.safetensors"):
        with pytest.raises(
            TypeError, match=r"expected the network and then its scaler, got .* pass"
        ):
            use(scaler, other, **settings)
    for other in (SmallNetwork, network.state_dict(), "network.pt", None, scaler):
        with pytest.raises(TypeError, match=r"expected the network, .*; pass a module with its w"):
            use(other, scaler, **settings)


@pytest.mark.parametrize(
    ("argument", "values", "message"),
    [
        (
            "interaction_range",
            ["5", None, True, [5.0], torch.ones(2)],
            "expected at least 4, the l",
        ),
        ("length_unit", [None, 1, b"A", ["A"]], "expected a unit of length, such as 'angstrom'"),
        ("atomic_types", ["HO", "18", 8, torch.tensor(8)], r"expected a list of .*\['H', 8\], got"),
        ("outputs", ["energy", [1], [["energy", "eV"]], {"energy"}], "expected the unit of each"),
        ("path", [None, 1, b"a.pt", ["a.pt"]], "file to write, such as 'model.pt', got"),
        ("metadata", ["water", {}], r"expected a ModelMetadata .*ModelMetadata\(name='water'\)"),
    ],
)
def test_arguments_of_another_type(argument, values, message, tmp_path):
    settings = {"path": tmp_path / "model.pt", "outputs": {"energy": "eV"}, **UNITS}
    for value in values:
        with pytest.raises(
            TypeError, match=message if argument == "path" else f"{argument}: {message}"
        ):
            export(SmallNetwork(), water_scaler(), **{**settings, argument: value})
    assert not list(tmp_path.iterdir())


def test_numbers_of_numpy_and_torch_and_units_with_signs_are_taken(tmp_path):
    capabilities = exported(
        tmp_path,
        atomic_types=torch.tensor([1, 8]),
        interaction_range=torch.tensor(5.0),
        length_unit="Å",
        outputs={"energy": "kJ mol⁻¹"},
    ).capabilities()
    assert (capabilities.atomic_types, capabilities.interaction_range) == ([1, 8], 5.0)
    assert (capabilities.length_unit, capabilities.outputs["energy"].unit) == ("A", "kJ*mol^-1")
    capabilities = exported(tmp_path, interaction_range=np.float32(5.0)).capabilities()
    assert capabilities.interaction_range == 5.0


@pytest.mark.parametrize("use", [export, PhysicalModel])
def test_a_scaler_that_was_never_fitted(use, tmp_path):
    settings = {} if use is PhysicalModel else {"path": tmp_path / "a.pt", "outputs": {}, **UNITS}
    with pytest.raises(RuntimeError, match=r"expected a fitted scaler.*train with TargetScaler"):
        use(SmallNetwork(), Scaler(), **settings)


def test_a_range_shorter_than_the_cutoff(tmp_path):
    with pytest.raises(ValueError, match=r"expected at least 4, the longest cutoff.*got 3\.9"):
        exported(tmp_path, interaction_range=3.9)


@pytest.mark.parametrize("unit", ["", "eV", "furlong"])
def test_a_length_unit_that_is_none(unit, tmp_path):
    with pytest.raises(ValueError, match=f"length_unit: expected a unit of length.*got '{unit}'"):
        exported(tmp_path, length_unit=unit)


def test_a_prediction_that_is_missing_and_one_of_the_wrong_kind(tmp_path):
    model = exported(tmp_path, network=TotalsOnly(), outputs={"energy": "eV", "charges": "e"})
    systems = add_neighbors(molecules((1, 8, 1)), model)
    options = ModelEvaluationOptions("A", {"charge": ModelOutput(sample_kind="atom")})
    with pytest.raises(torch.jit.Error, match="no prediction of the target 'charges'"):
        model(systems, options, check_consistency=False)
    options = ModelEvaluationOptions("A", {"energy": ModelOutput(sample_kind="atom")})
    with pytest.raises(torch.jit.Error, match="'energy': values per atom were requested"):
        model(systems, options, check_consistency=False)


def test_a_file_that_cannot_be_written_stays(tmp_path):
    exported(tmp_path)
    before = (tmp_path / "model.pt").read_bytes()
    with pytest.raises(RuntimeError, match="UnscriptableToo does not compile"):
        exported(tmp_path, network=UnscriptableToo())
    assert (tmp_path / "model.pt").read_bytes() == before
    assert os.listdir(tmp_path) == ["model.pt"]
    with pytest.raises(FileNotFoundError, match=r"nowhere/model\.pt"):
        exported(tmp_path / "nowhere")
    (tmp_path / "folder" / "model.pt").mkdir(parents=True)
    with pytest.raises(IsADirectoryError, match=r"folder/model\.pt"):
        exported(tmp_path / "folder")
