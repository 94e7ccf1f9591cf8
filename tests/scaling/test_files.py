"""Files of scalers and accumulators: what they hold, how they are written, damaged ones."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch
from builders import Springs, atom_samples, atom_target, fit, structure_target, system
from damaged_files import damaged

from lightning_scaler import CompositionBaseline, ScaleAccumulator, Scaler
from lightning_scaler.tensors import InvalidStateError, digest

SYSTEMS = [system(8), system(1, 8, 1), system(6, 8), system(1, 6, 1)]
TARGETS = {
    "energy": structure_target([-75.0, -76.4, -113.3, -39.1]),
    "charges": atom_target(
        [0.5, 0.1, -0.2, 0.3, 0.4, -0.6, 0.7, -0.8, 0.9], atom_samples(1, 3, 2, 3)
    ),
}
OLD_FILE = Path(__file__).parents[1] / "compatibility" / "scaler_state_2.pt"


def fitted() -> Scaler:
    return fit(SYSTEMS, TARGETS, baseline=CompositionBaseline())


def accumulator(rows: range = range(4), **options) -> ScaleAccumulator:
    """Statistics of some of the systems."""
    options = {"baseline": CompositionBaseline(), "system_labels": "position", **options}
    collected = ScaleAccumulator(**options)
    for row in rows:
        first = sum(len(s) for s in SYSTEMS[:row])
        n_atoms = len(SYSTEMS[row])
        charges = TARGETS["charges"][0].values[first : first + n_atoms, 0].tolist()
        energy = TARGETS["energy"][0].values[row].tolist()
        collected.update(
            [SYSTEMS[row]],
            {
                "energy": structure_target(energy),
                "charges": atom_target(charges, atom_samples(n_atoms)),
            },
        )
    return collected


SAVED = {"Scaler": (fitted, Scaler.load), "ScaleAccumulator": (accumulator, ScaleAccumulator.load)}
both_kinds = pytest.mark.parametrize("kind", SAVED)


def file_of(kind: str, folder: Path) -> Path:
    path = folder / "saved.safetensors"
    SAVED[kind][0]().save(path)
    return path


# What is in a file


@both_kinds
def test_a_file_is_one_safetensors_file_with_its_format_in_the_metadata(kind, tmp_path):
    with safetensors.safe_open(file_of(kind, tmp_path), "pt") as file:
        metadata, names = file.metadata(), list(file.keys())
        tensors = [file.get_tensor(str(i)) for i in range(len(names))]
    assert sorted(names, key=int) == [str(i) for i in range(len(names))]
    assert metadata.keys() == {"format", "version", "kind", "structure", "sha256"}
    assert (metadata["format"], metadata["version"]) == ("lightning_scaler", "1")
    assert metadata["kind"] == kind
    assert "$tensor" in json.dumps(json.loads(metadata["structure"]))
    # The checksum is of the structure and of every tensor with its dtype and shape.
    whole = hashlib.sha256()

    def add(part: bytes) -> None:
        whole.update(len(part).to_bytes(8, "little") + part)

    add(b"sequence of 2")
    add(repr(metadata["structure"]).encode())
    add(f"sequence of {len(tensors)}".encode())
    for tensor in tensors:
        add(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        add(tensor.numpy().tobytes())
    assert metadata["sha256"] == whole.hexdigest()


def test_accumulators_saved_by_several_jobs_give_the_scales_of_one(tmp_path):
    for name, rows in {"a": range(2), "b": range(2, 3), "c": range(3, 4), "none": range(0)}.items():
        accumulator(rows).save(tmp_path / name)
    merged = ScaleAccumulator.load(tmp_path / "a")
    for name in ("b", "none", "c"):
        merged.merge(ScaleAccumulator.load(tmp_path / name))
    ours, whole = merged.compute().state(), accumulator().compute().state()
    for name in TARGETS:
        for part in ("per_target", "composition_types"):
            torch.testing.assert_close(
                ours["targets"][name][part], whole["targets"][name][part], rtol=1e-12, atol=0.0
            )
        for (_, values), (_, expected) in zip(
            ours["targets"][name]["weights"], whole["targets"][name]["weights"], strict=True
        ):
            torch.testing.assert_close(values, expected, rtol=1e-12, atol=0.0)


def test_a_loaded_accumulator_is_the_saved_one(tmp_path):
    """Its settings too; statistics to the bit."""
    options = {
        "targets": ["energy", "charges"],
        "intensive_targets": ["energy"],
        "baseline": CompositionBaseline({"energy": {1: -0.5, 6: -38, 8: -75}}),
        "additive": Springs(k=0.75),
    }
    saved = accumulator(**options)
    saved.save(tmp_path / "statistics")
    loaded = ScaleAccumulator.load(tmp_path / "statistics", additive=Springs(k=0.0))
    assert digest(loaded.state()) == digest(saved.state())
    assert loaded.baseline == saved.baseline
    assert loaded.intensive_targets == {"energy"}
    assert loaded.targets == ("energy", "charges")
    assert loaded.additive.state() == saved.additive.state()
    assert digest(loaded.compute().state()) == digest(saved.compute().state())
    # It goes on, with the saved weights of the module.
    saved.update(SYSTEMS, TARGETS)
    loaded.update(SYSTEMS, TARGETS)
    assert digest(loaded.state()) == digest(saved.state())


def test_accumulators_with_other_settings_do_not_merge_after_loading(tmp_path):
    accumulator(intensive_targets=["energy"]).save(tmp_path / "statistics")
    with pytest.raises(ValueError, match=r"same settings.*'intensive_targets': \['energy'\]"):
        accumulator().merge(ScaleAccumulator.load(tmp_path / "statistics"))


@pytest.mark.filterwarnings("ignore:subtracting the baseline makes")
def test_the_code_of_an_additive_module_of_another_shape_is_an_error(tmp_path):
    class Wide(Springs):
        def __init__(self, n):
            super().__init__()
            self.extra = torch.nn.Parameter(torch.zeros(n))

    fit(SYSTEMS, TARGETS, additive=Wide(2)).save(tmp_path / "scaler")
    with pytest.raises(
        InvalidStateError, match=r"module Wide: its fitted weights .* as in the fit"
    ):
        Scaler.load(tmp_path / "scaler", additive=Wide(3))


# Other files


@both_kinds
def test_a_missing_file_and_a_folder_are_the_usual_errors(kind, tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing"):
        SAVED[kind][1](tmp_path / "nothing")
    with pytest.raises(IsADirectoryError):
        SAVED[kind][1](tmp_path)


def test_a_file_of_the_other_kind_is_an_error_that_names_both(tmp_path):
    with pytest.raises(InvalidStateError, match=r"Scaler.save has written, got .*ScaleAccumulator"):
        Scaler.load(file_of("ScaleAccumulator", tmp_path))
    with pytest.raises(InvalidStateError, match=r"ScaleAccumulator.save .* holds a 'Scaler'"):
        ScaleAccumulator.load(file_of("Scaler", tmp_path))


OTHERS = {
    "list": lambda path: torch.save([1.0], path),
    "tensor": lambda path: torch.save(torch.ones(3), path),
    "state dict": lambda path: torch.save({"weight": torch.ones(3)}, path),
    "text": lambda path: path.write_text("scales"),
    "nothing": lambda path: path.write_bytes(b""),
    "safetensors": lambda path: safetensors.torch.save_file({"0": torch.ones(3)}, path),
    "safetensors of others": lambda path: safetensors.torch.save_file(
        {"0": torch.ones(3)}, path, {"format": "pt"}
    ),
}


@both_kinds
@pytest.mark.parametrize("other", OTHERS)
def test_a_file_of_something_else_is_an_error_that_names_it(kind, other, tmp_path):
    path = tmp_path / "other.file"
    OTHERS[other](path)
    with pytest.raises(InvalidStateError, match=r"file '.*other.file': "):
        SAVED[kind][1](path)


class Evil:
    def __reduce__(self):
        return os.mkdir, ("evil",)


def test_pickled_code_does_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"version": 2, "settings": Evil(), "targets": {}, "additive": None}, "evil.pt")
    with pytest.raises(InvalidStateError, match=r"file 'evil.pt': truncated, damaged, or not of"):
        Scaler.load("evil.pt")
    assert sorted(os.listdir()) == ["evil.pt"]


def test_a_file_of_a_later_version_is_an_error(tmp_path):
    path = file_of("Scaler", tmp_path)
    with safetensors.safe_open(path, "pt") as file:
        metadata = {**file.metadata(), "version": "2"}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    safetensors.torch.save_file(tensors, path, metadata)
    with pytest.raises(InvalidStateError, match=r"version 1, got version '2'; update"):
        Scaler.load(path)


# Damaged files


@both_kinds
@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.7, 0.99])
def test_a_truncated_file_is_an_error_that_names_it(kind, share, tmp_path):
    path = file_of(kind, tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(InvalidStateError, match=r"file '.*saved.safetensors': .*truncated"):
        SAVED[kind][1](path)


@both_kinds
def test_a_flipped_bit_in_a_number_is_an_error(kind, tmp_path):
    path = damaged(file_of(kind, tmp_path))
    with pytest.raises(InvalidStateError, match="damaged: its checksum does not match"):
        SAVED[kind][1](path)


def test_a_flipped_bit_in_a_file_of_version_0_1_0_is_an_error(tmp_path):
    with zipfile.ZipFile(OLD_FILE) as archive:
        record = max(archive.infolist(), key=lambda info: info.file_size)
        start = record.header_offset + 200
    content = bytearray(OLD_FILE.read_bytes())
    content[start] ^= 1
    (tmp_path / "old.pt").write_bytes(content)
    with pytest.raises(InvalidStateError, match=r"old.pt': (damaged|truncated)"):
        Scaler.load(tmp_path / "old.pt")


def test_a_truncated_file_of_version_0_1_0_is_an_error_that_names_it(tmp_path):
    (tmp_path / "old.pt").write_bytes(OLD_FILE.read_bytes()[:20_000])
    with pytest.raises(InvalidStateError, match=r"old.pt': truncated, damaged"):
        Scaler.load(tmp_path / "old.pt")


# Writing

LIMITED = """
import resource, signal, sys, torch
from lightning_scaler import Scaler
scaler = Scaler.load(sys.argv[1])
# The kernel kills a process that writes more than this number of bytes to a file.
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
signal.signal(signal.SIGXFSZ, getattr(signal, sys.argv[2]))
resource.setrlimit(resource.RLIMIT_FSIZE, (512, 512))
scaler.save(sys.argv[1])
"""


@pytest.mark.slow
def test_a_process_killed_while_it_writes_leaves_the_old_file(tmp_path):
    path = file_of("Scaler", tmp_path)
    before = path.read_bytes()
    command = [sys.executable, "-c", LIMITED, str(path), "SIG_DFL"]
    killed = subprocess.run(command, check=False)
    assert killed.returncode == -signal.SIGXFSZ
    assert path.read_bytes() == before
    assert Scaler.load(path).fitted
    # The unfinished one, which is as long as the limit.
    (unfinished,) = set(tmp_path.iterdir()) - {path}
    assert len(unfinished.read_bytes()) == 512


@pytest.mark.slow
def test_a_disk_that_is_full_leaves_the_old_file_and_no_other(tmp_path):
    path = file_of("Scaler", tmp_path)
    before = path.read_bytes()
    command = [sys.executable, "-c", LIMITED, str(path), "SIG_IGN"]
    failed = subprocess.run(command, check=False, capture_output=True, text=True)
    assert "OSError: [Errno 27] File too large" in failed.stderr
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.filterwarnings("ignore:subtracting the baseline makes")
def test_a_state_that_cannot_be_saved_leaves_the_old_file_and_no_other(tmp_path):
    class Locked(Springs):
        def __init__(self):
            super().__init__()
            self.table = torch.eye(2).to_sparse()

        def get_extra_state(self):
            return self.table

        def set_extra_state(self, state):
            self.table = state

    path = file_of("Scaler", tmp_path)
    before = path.read_bytes()
    with pytest.raises(TypeError, match=r"'additive'.*tensor of layout .*cannot be saved"):
        fit(SYSTEMS, TARGETS, additive=Locked()).save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_stays_a_link(tmp_path):
    path = file_of("Scaler", tmp_path)
    (tmp_path / "latest").symlink_to(path)
    fit(SYSTEMS, {"charges": TARGETS["charges"]}).save(tmp_path / "latest")
    assert (tmp_path / "latest").is_symlink()
    assert list(Scaler.load(path).targets) == ["charges"]
