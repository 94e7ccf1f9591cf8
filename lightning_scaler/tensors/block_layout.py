"""The layout of one block of a target: its components and properties."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from metatensor.torch import Labels, TensorBlock

from .state_checks import InvalidStateError
from .tensormaps import describe_labels


class SavedLabels(NamedTuple):
    """The state of some ``Labels``."""

    names: list[str]
    values: torch.Tensor


class SavedBlock(NamedTuple):
    """The state of the layout of a block, and its key."""

    key: list[int]
    components: list[SavedLabels]
    properties: SavedLabels


@dataclass(frozen=True)
class BlockLayout:
    """Components and properties of one block."""

    components: tuple[Labels, ...]
    properties: Labels

    @classmethod
    def of(cls, block: TensorBlock) -> "BlockLayout":
        """The layout of a block, on the CPU."""
        return cls(
            tuple(component.to("cpu") for component in block.components),
            block.properties.to("cpu"),
        )

    @property
    def n_properties(self) -> int:
        """Number of properties."""
        return len(self.properties)

    def differences(self, other: "BlockLayout") -> tuple[str, str]:
        """How this layout and another differ, in words: the parts of this one, and of the other."""
        pairs = [
            (f"{what} {describe_labels(ours)}", f"{what} {describe_labels(theirs)}")
            for what, ours, theirs in (
                ("components", self.components, other.components),
                ("properties", (self.properties,), (other.properties,)),
            )
            if list(ours) != list(theirs)
        ]
        first, second = zip(*pairs, strict=True)
        return " and ".join(first), " and ".join(second)

    def state(self) -> dict[str, Any]:
        """Components and properties as plain Python objects and tensors."""
        components = [_labels_state(labels) for labels in self.components]
        return {"components": components, "properties": _labels_state(self.properties)}

    @classmethod
    def from_state(cls, state: "SavedBlock") -> "BlockLayout":
        """The inverse of :meth:`state`.

        Raises:
            InvalidStateError: for labels that are not valid.
        """
        components = tuple(_labels(labels) for labels in state.components)
        return cls(components, _labels(state.properties))


def _labels_state(labels: Labels) -> dict[str, Any]:
    return {"names": list(labels.names), "values": labels.values.clone()}


def _labels(saved: SavedLabels) -> Labels:
    if saved.values.dtype not in (torch.int32, torch.int64):
        raise InvalidStateError(f"expected integer labels, got {saved.values.dtype}")
    if not saved.names:
        raise InvalidStateError("expected labels with names, got none")
    try:
        return Labels(list(saved.names), saved.values)
    except (RuntimeError, ValueError) as error:
        raise InvalidStateError(f"labels named {saved.names}: {error}") from error
