"""The contents of metatrain's checkpoints."""

import os
import pickle
import sys
from pathlib import Path

import metatensor.torch as mts
import pytest
import torch
from metatensor.torch.learn.nn import Module

from lightning_scaler.interop.metatrain_checkpoint import read_checkpoint

FIXTURE = Path(__file__).parent / "metatrain_fixture"


def test_contents_of_a_scaler_checkpoint():
    checkpoint = read_checkpoint(FIXTURE / "scaler.ckpt")
    assert list(checkpoint.scales) == list(checkpoint.layouts) == ["energy", "forces", "orbitals"]
    assert checkpoint.scales["forces"].keys() == {"full", "per_target", "per_property"}
    assert checkpoint.atomic_types == [1, 6, 8]
    assert checkpoint.additive == ["CompositionModel"]
    assert not checkpoint.nested
    assert checkpoint.hypers["per_structure_targets"] == ["alpha"]
    assert checkpoint.layouts["orbitals"].keys.names == ["o3_lambda", "o3_sigma", "atom_type"]
    assert checkpoint.scales["orbitals"]["full"].keys.names == ["o3_lambda", "o3_sigma"]


def test_contents_of_a_composition_checkpoint():
    checkpoint = read_checkpoint(str(FIXTURE / "composition_model.ckpt"))
    assert list(checkpoint.weights) == ["energy", "orbitals"]
    assert not checkpoint.scales


def test_reading_does_not_import_metatrain(monkeypatch):
    monkeypatch.setitem(sys.modules, "metatrain", None)
    read_checkpoint(FIXTURE / "scaler.ckpt")


def touch(path):
    Path(path).touch()


class Intruder:
    def __init__(self, function, path):
        self.code = function, (path,)

    def __reduce__(self):
        return self.code


def test_no_pickled_code_is_run(tmp_path):
    content = {"metadata": Intruder(touch, str(tmp_path / "made")), "model_state_dict": {}}
    torch.save(content, tmp_path / "scaler.ckpt")
    assert not read_checkpoint(tmp_path / "scaler.ckpt").scales
    # torch does not list the functions of some modules.
    content["metadata"] = Intruder(os.mkdir, str(tmp_path / "made"))
    torch.save(content, tmp_path / "scaler.ckpt")
    with pytest.raises(ValueError, match=r"scaler\.ckpt': expected a checkpoint of metatrain"):
        read_checkpoint(tmp_path / "scaler.ckpt")
    assert not (tmp_path / "made").exists()


def test_other_files_are_refused(tmp_path):
    (tmp_path / "text.ckpt").write_text("energy")
    with open(tmp_path / "pickle.ckpt", "wb") as file:
        pickle.dump({"energy": 1.0}, file)
    torch.jit.script(torch.nn.Identity()).save(tmp_path / "model.pt")
    torch.save([1.0], tmp_path / "list.ckpt")
    for name in ("text.ckpt", "pickle.ckpt", "model.pt", "list.ckpt"):
        with pytest.raises(ValueError, match=f"{name}': expected a checkpoint of metatrain"):
            read_checkpoint(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        read_checkpoint(tmp_path / "none.ckpt")


def test_scales_of_several_models_are_refused():
    energy = read_checkpoint(FIXTURE / "scaler.ckpt").scales["energy"]["full"].save_buffer()
    state = {"first.energy_scaler_buffer": energy, "second.energy_scaler_buffer": energy}
    with pytest.raises(ValueError, match=r"scales of one model, got .*\['first', 'second'\]"):
        read_checkpoint(state)


def test_scales_of_a_wrapped_model_are_found():
    energy = read_checkpoint(FIXTURE / "scaler.ckpt").scales["energy"]["full"].save_buffer()
    inner = {"model_state_dict": {"scaler.energy_scaler_buffer": energy}}
    outer = {"model_state_dict": {}, "wrapped_model_checkpoint": inner}
    assert list(read_checkpoint(outer).scales) == ["energy"]


class Scales(Module):
    """Scales as metatrain's later versions keep them: dicts of TensorMaps, saved by metatensor."""

    def __init__(self, scales):
        super().__init__()
        for name, kind in (
            ("scales", "full"),
            ("per_target_scales", "per_target"),
            ("per_property_scales", "per_property"),
        ):
            by_target = {target: by_kind[kind] for target, by_kind in scales.items()}
            if "register_buffer" in vars(Module):
                self.register_buffer(name, by_target)
            else:  # metatensor-learn 0.5 saves all attributes
                setattr(self, name, by_target)


@pytest.mark.parametrize("nested", [False, True])
def test_scales_in_the_extra_state_are_those_in_buffers(tmp_path, nested):
    expected = read_checkpoint(FIXTURE / "scaler.ckpt")
    module = torch.nn.ModuleDict({"model": Scales(expected.scales)})
    if nested:
        module = torch.nn.ModuleDict({"scaler": module})
    state = module.state_dict()
    assert any(name.endswith("model._extra_state") for name in state)
    torch.save({"model_state_dict": state}, tmp_path / "scaler.ckpt")
    found = read_checkpoint(tmp_path / "scaler.ckpt")
    assert found.scales.keys() == expected.scales.keys()
    for name, by_kind in expected.scales.items():
        for kind, tensor in by_kind.items():
            assert mts.equal(found.scales[name][kind], tensor), (name, kind)


def test_an_extra_state_of_something_else_is_ignored():
    state = {"_extra_state": {"scales": {}}, "other._extra_state": torch.zeros(2)}
    assert not read_checkpoint(state).scales
