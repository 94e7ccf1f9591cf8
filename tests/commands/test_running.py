"""What is taken for a checkpoint before anything is built."""

import pytest
import torch
from launching import checkpoint_of_another_module
from lightning.pytorch.demos.boring_classes import BoringModel

from lightning_scaler.commands.running import check_ckpt_path


def test_a_path_in_the_home_folder(tmp_path, monkeypatch):
    checkpoint_of_another_module(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    check_ckpt_path("~/other.ckpt")
    assert BoringModel.load_from_checkpoint("~/other.ckpt")
    with pytest.raises(FileNotFoundError, match=r"there is no file '~/another\.ckpt'"):
        check_ckpt_path("~/another.ckpt")


@pytest.mark.parametrize("path", ["registry", "registry:model", "Registry:team/model:version:2"])
def test_a_model_of_a_registry(path):
    check_ckpt_path(path)


def test_a_file_with_a_similar_name_is_no_model_of_a_registry():
    with pytest.raises(FileNotFoundError, match="there is no file 'registry_of_models'"):
        check_ckpt_path("registry_of_models")


def test_a_checkpoint_in_the_format_before_pytorch_1_6(tmp_path):
    path = checkpoint_of_another_module(tmp_path)
    checkpoint = torch.load(path, weights_only=True)
    torch.save(checkpoint, path, _use_new_zipfile_serialization=False)
    assert not path.read_bytes().startswith(b"PK")
    check_ckpt_path(path)
    assert BoringModel.load_from_checkpoint(path)
    del checkpoint["pytorch-lightning_version"]
    torch.save(checkpoint, path, _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match="expected a checkpoint of Lightning, got one that is tru"):
        check_ckpt_path(path)
