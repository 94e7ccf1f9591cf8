"""The contents of metatrain's checkpoints."""

import os
import pickle
import sys
from pathlib import Path

import pytest
import torch

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
