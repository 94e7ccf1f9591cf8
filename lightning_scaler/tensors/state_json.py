"""States as JSON text and numbered tensors, without pickle."""

import json
from collections.abc import Mapping
from typing import Any

import torch

from .checks import InvalidStateError

TENSOR, BYTES, PAIRS = "$tensor", "$bytes", "$pairs"


def state_to_json(state: Any) -> tuple[str, list[torch.Tensor]]:
    """Write a state as JSON, with its tensors apart.

    Args:
        state: nested dicts, lists and tuples of tensors, numbers, strings, bytes and ``None``.

    Returns:
        The JSON text, with ``{"$tensor": i}`` in the place of tensor ``i``; and the tensors, on the
        CPU.

    Raises:
        TypeError: for anything else, naming the place.

    Example:
        >>> state_to_json({"a": torch.ones(2), "b": None})
        ('{"a":{"$tensor":0},"b":null}', [tensor([1., 1.])])
    """
    tensors: list[torch.Tensor] = []

    def slot(kind: str, tensor: torch.Tensor) -> dict[str, int]:
        tensors.append(tensor)
        return {kind: len(tensors) - 1}

    def plain(where: str, part: Any) -> Any:
        if isinstance(part, torch.Tensor):
            if part.layout != torch.strided or part.is_quantized or part.is_meta:
                raise TypeError(f"{where}: a {_describe(part)} cannot be saved")
            return slot(TENSOR, part.detach().to("cpu").resolve_conj().contiguous())
        if isinstance(part, (bytes, bytearray)):
            return slot(BYTES, torch.tensor(list(part), dtype=torch.uint8, device="cpu"))
        if isinstance(part, Mapping):
            if all(isinstance(key, str) and not key.startswith("$") for key in part):
                return {key: plain(f"{where}[{key!r}]", value) for key, value in part.items()}
            if not all(isinstance(key, (str, int)) for key in part):
                raise TypeError(f"{where}: only strings and integers can be saved as keys")
            return {
                PAIRS: [[key, plain(f"{where}[{key!r}]", value)] for key, value in part.items()]
            }
        if isinstance(part, (list, tuple)):
            return [plain(f"{where}[{i}]", value) for i, value in enumerate(part)]
        if part is None or isinstance(part, (bool, int, float, str)):
            return part
        raise TypeError(
            f"{where}: a value of type {type(part).__name__} cannot be saved, only tensors, "
            "numbers, strings, bytes, and dicts and lists of these"
        )

    structure = plain("the state", state)
    return json.dumps(structure, separators=(",", ":")), tensors


def state_from_json(text: str | bytes, tensors: list[torch.Tensor]) -> Any:
    """The inverse of :func:`state_to_json`; tuples come back as lists.

    Raises:
        InvalidStateError: for a text that is not JSON, or that does not name each tensor once.
    """
    unused = set(range(len(tensors)))

    def take(index: Any) -> torch.Tensor:
        if isinstance(index, bool) or not isinstance(index, int) or index not in unused:
            raise InvalidStateError(f"expected each of {len(tensors)} tensors once, got {index!r}")
        unused.remove(index)
        return tensors[index]

    def restore(part: Any) -> Any:
        if isinstance(part, list):
            return [restore(value) for value in part]
        if not isinstance(part, dict):
            return part
        if part.keys() == {TENSOR}:
            return take(part[TENSOR])
        if part.keys() == {BYTES}:
            return bytes(take(part[BYTES]).flatten().tolist())
        if part.keys() == {PAIRS}:
            return dict(restore(pair) for pair in part[PAIRS])
        return {key: restore(value) for key, value in part.items()}

    try:
        state = restore(json.loads(text))
    except (ValueError, TypeError, RecursionError) as error:
        raise InvalidStateError(f"its structure cannot be read: {error}") from error
    if unused:
        raise InvalidStateError(f"its structure does not name the tensors {sorted(unused)}")
    return state


def _describe(tensor: torch.Tensor) -> str:
    if tensor.is_meta:
        return "tensor on the meta device"
    return "quantized tensor" if tensor.is_quantized else f"tensor of layout {tensor.layout}"
