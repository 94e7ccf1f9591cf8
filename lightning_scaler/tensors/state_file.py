"""A state as one safetensors file of numbered tensors, told from checkpoints and other files."""

import errno
import json
import os
import pickletools
import re
import secrets
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import safetensors.torch
import torch

from .state import digest, state_from_json, state_to_json
from .state_checks import InvalidStateError, state_of

FORMAT = "lightning_scaler"
VERSION = 1
N_LENGTH = 8
# What reading a damaged zip file raises.
DAMAGED = (
    *(zipfile.BadZipFile, UnpicklingError, EOFError, OSError, ArithmeticError),
    *(AttributeError, LookupError, RuntimeError, TypeError, ValueError),
)

StrPath = str | os.PathLike[str]


def save_state(path: StrPath, kind: str, state: Any) -> None:
    """Write a state to one file, which is either complete or not there.

    The metadata hold format, version, kind, the structure of the state as JSON, and a checksum of
    the structure and the tensors.

    Args:
        path: file to write; one that exists is replaced when the new one is complete.
        kind: what the state describes, a class name.
        state: nested dicts, lists and tuples of tensors, numbers, strings, bytes and ``None``.

    Raises:
        TypeError: for anything else in the state.
    """
    structure, tensors = state_to_json(state)
    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "kind": kind,
        "structure": structure,
        "sha256": _checksum(structure, tensors),
    }
    # Copies, because tensors that share memory are refused.
    numbered = {str(i): tensor.clone() for i, tensor in enumerate(tensors)}
    with replacing(path) as temporary:
        temporary.write_bytes(safetensors.torch.save(numbered, metadata))


def load_state(path: StrPath, kind: str) -> Any:
    """Read a state that :func:`save_state` wrote, or that ``torch.save`` wrote for version 0.1.0.

    Args:
        path: file to read; no pickled code runs.
        kind: what the state must describe.

    Raises:
        OSError: if there is no such file, or it cannot be read.
        InvalidStateError: naming the file, if it is damaged, truncated or something else.
    """
    content = Path(path).read_bytes()
    with state_of(f"file '{os.fspath(path)}'"):
        if content.startswith(b"PK"):
            return _load_zip(path, kind)
        return _decode(content, kind)


def saved_kind(path: StrPath) -> str:
    """What a file describes, a class name, without reading its tensors.

    Raises:
        OSError: if there is no such file, or it cannot be read.
        InvalidStateError: naming the file, if :func:`save_state` has not written it.
    """
    content = Path(path).read_bytes()
    with state_of(f"file '{os.fspath(path)}'"):
        return "Scaler" if content.startswith(b"PK") else str(_metadata(content).get("kind"))


def check_checkpoint(path: StrPath) -> None:
    """Check that a file is a checkpoint of Lightning; no pickled code runs.

    Raises:
        OSError: if there is no such file, or it cannot be read.
        ValueError: naming the file, and what it is instead.
    """
    with Path(path).open("rb") as file:
        start = file.read(N_LENGTH)
    if _is_checkpoint(path):
        return
    found = "one that is truncated, damaged, or of another format"
    if not start:
        found = "an empty one"
    elif zipfile.is_zipfile(path):
        found = "one with something else, such as weights alone, or a model from export"
    elif not start.startswith(b"PK"):
        with suppress(InvalidStateError):
            found = f"one that {saved_kind(path)}.save has written"
    raise ValueError(
        f"file '{os.fspath(path)}': expected a checkpoint of Lightning, got {found}; checkpoints "
        "are what ModelCheckpoint and trainer.save_checkpoint write"
    )


@contextmanager
def loading_weights(path: StrPath, way_out: str) -> Iterator[None]:
    """Say of weights of another module where they came from; PyTorch lists their names.

    Args:
        path: checkpoint that is read.
        way_out: what may be wrong, for the message.

    Raises:
        ValueError: naming the checkpoint, if its weights are those of another module.
    """
    try:
        yield
    except Exception as error:
        # Some errors contain the text of another, in which line breaks are written as \\n.
        pattern = r"Error\(s\) in loading state_dict for (\w+):(?:\\n|\\t|\s)*(.{1,150})"
        reason = re.search(pattern, str(error))
        if reason is None:
            raise
        raise ValueError(
            f"file '{os.fspath(path)}': expected the weights of {reason[1]}, got those of another "
            f"module, or of one with other sizes ({reason[2]}…); {way_out}"
        ) from error


def check_writable(path: StrPath) -> None:
    """Check that a file can be written; nothing is left behind.

    Raises:
        OSError: naming the file, if its folder is missing or read-only, or it is a folder.
        TypeError: for anything but a path.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"expected the path of a file to write, such as 'model.pt', got {path!r}")
    _new_file_beside(Path(os.path.realpath(path)), os.fspath(path)).unlink()


@contextmanager
def replacing(path: StrPath) -> Iterator[Path]:
    """A new file that takes the place of ``path`` once it is complete.

    Args:
        path: file to write; one that exists is kept if there is any error.

    Yields:
        An empty temporary file to write to, in the same folder (only there a file can be renamed in
        one step).

    Raises:
        OSError: at once, if no file can be written there.
    """
    path = Path(os.path.realpath(path))
    temporary = _new_file_beside(path, str(path))
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _new_file_beside(path: Path, name: str) -> Path:
    """An empty temporary file in the same folder; errors call the file ``name``."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), name)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        temporary.touch(exist_ok=False)
    except OSError as error:
        raise type(error)(error.errno, error.strerror, name) from None
    return temporary


def _metadata(content: bytes, expected: str = "lightning_scaler") -> dict[str, Any]:
    """The metadata of a file of any kind.

    Raises:
        InvalidStateError: if it has none, saying that a file written by ``expected`` was expected.
    """
    end = N_LENGTH + int.from_bytes(content[:N_LENGTH], "little")
    try:
        metadata: dict[str, Any] = json.loads(content[N_LENGTH:end])["__metadata__"]
        found = metadata["format"]
    except (LookupError, TypeError, ValueError) as error:
        raise InvalidStateError(
            f"expected a file that {expected} has written, got one that is truncated, damaged, or "
            "of another format"
        ) from error
    if found != FORMAT:
        raise InvalidStateError(
            f"expected a file that {expected} has written, got one of the format {found!r} that "
            f"holds a {metadata.get('kind')!r}"
        )
    return metadata


def _decode(content: bytes, kind: str) -> Any:
    metadata = _metadata(content, f"{kind}.save")
    if metadata.get("kind") != kind:
        raise InvalidStateError(
            f"expected a file that {kind}.save has written, got one that holds a "
            f"{metadata.get('kind')!r}"
        )
    if metadata.get("version") != str(VERSION):
        raise InvalidStateError(
            f"expected a file of version {VERSION}, got version {metadata.get('version')!r}; "
            "update lightning_scaler to read it"
        )
    try:
        numbered = safetensors.torch.load(content)
        tensors = [numbered[str(i)] for i in range(len(numbered))]
        structure, checksum = metadata["structure"], metadata["sha256"]
    except (LookupError, TypeError, ValueError, safetensors.SafetensorError) as error:
        raise InvalidStateError(f"truncated or damaged: {error}") from error
    if checksum != _checksum(structure, tensors):
        raise InvalidStateError("damaged: its checksum does not match its content")
    return state_from_json(structure, tensors)


def _is_checkpoint(path: StrPath) -> bool:
    """Whether a file has the names that every checkpoint of Lightning has."""
    try:
        found = set(_pickled_arguments(path))
    except DAMAGED:
        return False
    return {"state_dict", "pytorch-lightning_version"} <= found


def _pickled_arguments(path: StrPath) -> Iterator[Any]:
    """Strings and numbers in a file of ``torch.save``; nothing is unpickled."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            (name,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
            yield from (argument for _, argument, _ in pickletools.genops(archive.read(name)))
    else:  # before PyTorch 1.6: three pickles that describe the file, then that of the object
        with Path(path).open("rb") as file:
            for _ in range(4):
                yield from (argument for _, argument, _ in pickletools.genops(file))


def _load_zip(path: StrPath, kind: str) -> Any:
    if _is_checkpoint(path):
        raise InvalidStateError(
            f"expected a file that {kind}.save has written, got a checkpoint of Lightning; load "
            "its module, which has the scaler: Net.load_from_checkpoint(…).fitted_scaler.save(…)"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is None:
            return torch.load(path, map_location="cpu", weights_only=True)
    except DAMAGED as error:
        reason = str(error).partition("\n")[0]
        if "weights_only" in str(error):  # which torch advises to switch off
            reason = "it has pickled code, which is not run"
        raise InvalidStateError(f"truncated, damaged, or not of a Scaler: {reason}") from error
    raise InvalidStateError(f"damaged: the checksum of its record '{damaged}' is wrong")


def _checksum(structure: str, tensors: list[torch.Tensor]) -> str:
    return digest([structure, tensors])
