"""The layout of a target: its sample kind, keys, components and properties."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple

import torch
from metatensor.torch import Labels, TensorMap

from ..settings import name_of_type
from .block_layout import BlockLayout, SavedBlock
from .dataclass_state import from_state
from .state_checks import InvalidStateError, state_of
from .tensormaps import check_gradients, describe, dtype_of

Key = tuple[int, ...]
SampleKind = Literal["structure", "atom", "pair"]
Invariance = Literal["scalar", "trace"] | None

CPU = torch.device("cpu")

SAMPLE_NAMES: dict[SampleKind, list[str]] = {
    "structure": ["system"],
    "atom": ["system", "atom"],
    "pair": [
        "system",
        "first_atom",
        "second_atom",
        "cell_shift_a",
        "cell_shift_b",
        "cell_shift_c",
    ],
}

# What a TensorMap is to its layout, for messages: "target 'energy'", "prediction of 'energy'".
TARGET, PREDICTION = "target", "prediction of"
KINDS = {"structure": "per-structure", "atom": "per-atom", "pair": "atom-pair"}


@dataclass(frozen=True)
class TargetLayout:
    """Sample kind, keys and blocks of a target, as a union over all data seen.

    A batch may have only some of the blocks; other components or properties under the same key are
    an error.

    Attributes:
        name: name of the target.
        sample_kind: ``"structure"``, ``"atom"`` or ``"pair"``.
        key_names: names of the keys.
        blocks: layout of each block by key, in order of first appearance.
        gradients: parameters of the gradients that some block has, sorted.
    """

    name: str
    sample_kind: SampleKind
    key_names: tuple[str, ...]
    blocks: dict[Key, BlockLayout] = field(default_factory=dict)
    gradients: tuple[str, ...] = ()

    @classmethod
    def of(cls, name: str, tensor: TensorMap, what: str = TARGET) -> "TargetLayout":
        """Read and check the layout of a target.

        Args:
            name: name of the target.
            tensor: values of the target.
            what: ``TARGET`` or ``PREDICTION``, for messages.

        Raises:
            ValueError: for sample names other than those of per-structure, per-atom and atom-pair
                targets, blocks with different sample names, or values that are not real floats.
            NotImplementedError: for gradients of gradients.
        """
        check_gradients(name, tensor)
        dtype = dtype_of(tensor)
        if not dtype.is_floating_point:
            mask = "" if dtype != torch.bool else ", name it '<target>_mask' if it is a mask"
            raise ValueError(
                f"{what} '{name}': expected real floating point values, got {dtype}; "
                f"convert it with TensorMap.to(torch.float64){mask}, or "
                "leave it out by naming the others in targets=[...]"
            )
        keys, blocks = tensor.keys, tensor.blocks()
        samples = tensor.sample_names if blocks else ["system"]
        kind = next((kind for kind, names in SAMPLE_NAMES.items() if names == samples), None)
        if kind is None:
            raise ValueError(
                f"{what} '{name}': expected samples named {list(SAMPLE_NAMES.values())} (per "
                f"structure, per atom, or atom pairs), got {samples}"
            )
        gradients = {parameter for block in blocks for parameter in block.gradients_list()}
        by_key = zip(map(tuple, keys.values.tolist()), blocks, strict=True)
        return cls(
            name,
            kind,
            tuple(keys.names),
            {key: BlockLayout.of(block) for key, block in by_key},
            tuple(sorted(gradients)),
        )

    def union(
        self, other: "TargetLayout", what: str = TARGET, source: str = "earlier batches"
    ) -> "TargetLayout":
        """The layout with the blocks of both.

        Args:
            other: another layout of the target.
            what: what the other is the layout of, ``TARGET`` or ``PREDICTION``, for messages.
            source: where this layout comes from, for messages.

        Raises:
            ValueError: if samples, key names, components or properties differ.
        """
        if self.sample_kind != other.sample_kind:
            raise ValueError(
                f"{what} '{self.name}': expected {self._samples}, as in {source}, got "
                f"{other._samples}{self._way_to_sum(other, what)}"
            )
        if self.key_names != other.key_names:
            raise ValueError(
                f"{what} '{self.name}': expected keys named {list(self.key_names)}, as in "
                f"{source}, got {list(other.key_names)}"
            )
        for key in self.blocks.keys() & other.blocks.keys():
            block, new = self.blocks[key], other.blocks[key]
            if block != new:
                expected, got = block.differences(new)
                raise ValueError(
                    f"{what} '{self.name}', block ({self.describe(key)}): expected {expected}, as "
                    f"in {source}, got {got}"
                )
        gradients = tuple(sorted({*self.gradients, *other.gradients}))
        if other.blocks.keys() <= self.blocks.keys() and gradients == self.gradients:
            return self
        return replace(self, blocks={**self.blocks, **other.blocks}, gradients=gradients)

    @property
    def _samples(self) -> str:
        return f"{KINDS[self.sample_kind]} samples (named {SAMPLE_NAMES[self.sample_kind]})"

    def _way_to_sum(self, other: "TargetLayout", what: str) -> str:
        if what != PREDICTION or (self.sample_kind, other.sample_kind) != ("structure", "atom"):
            return ""
        return (
            "; sum over the atoms, as in metatensor.torch.sum_over_samples(prediction, ['atom']), "
            "or take the mean over them if the target is intensive"
        )

    @property
    def single_property(self) -> bool:
        """Whether there is exactly one block with exactly one property."""
        return len(self.blocks) == 1 and next(iter(self.blocks.values())).n_properties == 1

    def describe(self, key: Key) -> str:
        """A key in words: ``"o3_lambda=2, o3_sigma=1"``."""
        return ", ".join(f"{name}={value}" for name, value in zip(self.key_names, key, strict=True))

    def describe_property(self, key: Key, index: int) -> str:
        """A property of a block in words."""
        properties = describe(self.blocks[key].properties, index)
        return f"block ({self.describe(key)}), property ({properties})"

    def describe_properties(
        self, chosen: Mapping[Key, torch.Tensor], types: torch.Tensor
    ) -> list[str]:
        """Some properties of some types in words.

        Args:
            chosen: for each block whether a property of a type is meant, bool
                ``(n_types, n_properties)``.
            types: atomic types; -1 unless the target is per-atom.
        """
        words = []
        for key, of_block in chosen.items():
            for row, column in of_block.nonzero().tolist():
                atomic_type = int(types[row])
                suffix = "" if atomic_type == -1 else f", type {name_of_type(atomic_type)}"
                words.append(self.describe_property(key, column) + suffix)
        return words

    def keys(self) -> Labels:
        """The keys of all blocks as ``Labels``."""
        return Labels(
            list(self.key_names),
            torch.tensor(list(self.blocks), dtype=torch.int64).reshape(-1, len(self.key_names)),
        )

    def invariance(self, key: Key) -> Invariance:
        """The part of a block that may have a baseline.

        ``"scalar"``: the whole block, which is invariant under rotation and inversion;
        ``"trace"``: the diagonal of a rank-2 spherical block with equal ``o3_lambda_1`` and
        ``o3_lambda_2``; ``None``: no part (Cartesian blocks share the key ``_`` with scalars).
        """
        block, values = self.blocks[key], dict(zip(self.key_names, key, strict=True))
        if self.sample_kind == "pair" or block.n_properties == 0:
            return None
        if self.key_names == ("_",):
            return "scalar" if not block.components else None
        if "o3_lambda" in values:
            invariant = (values["o3_lambda"], values.get("o3_sigma", 1)) == (0, 1)
            return "scalar" if invariant and len(block.components) <= 1 else None
        if "o3_lambda_1" in values and len(block.components) == 2:
            same = values["o3_lambda_1"] == values["o3_lambda_2"]
            proper = values.get("o3_sigma_1", 1) == 1 and values.get("o3_sigma_2", 1) == 1
            return "trace" if same and proper else None
        return None

    @property
    def sample_names(self) -> list[str]:
        """The names of the samples."""
        return SAMPLE_NAMES[self.sample_kind]

    def labels(self, device: torch.device) -> list[list[Labels]]:
        """The keys; then, for each block, its properties and its components."""
        if device not in self._labels:
            self._labels[device] = [[one.to(device) for one in part] for part in self._labels[CPU]]
        return self._labels[device]

    @cached_property
    def _labels(self) -> dict[torch.device, list[list[Labels]]]:
        of_blocks = [[block.properties, *block.components] for block in self.blocks.values()]
        return {CPU: [[self.keys()], *of_blocks]}

    def state(self) -> dict[str, Any]:
        """The layout as plain Python objects and tensors (``torch.load(weights_only=True)``)."""
        return {
            "kind": self.sample_kind,
            "key_names": list(self.key_names),
            "gradients": list(self.gradients),
            "blocks": [{"key": list(key), **block.state()} for key, block in self.blocks.items()],
        }

    @classmethod
    def from_state(cls, name: str, state: Any) -> "TargetLayout":
        """The inverse of :meth:`state`.

        Raises:
            InvalidStateError: for a state that is not that of a layout.
        """
        with state_of("layout"):
            saved = from_state(_SavedLayout, state)
            blocks: dict[Key, BlockLayout] = {}
            for block in saved.blocks:
                key = tuple(block.key)
                if len(key) != len(saved.key_names) or key in blocks:
                    raise InvalidStateError(
                        f"expected different keys named {saved.key_names}, got the key {block.key}"
                    )
                blocks[key] = BlockLayout.from_state(block)
        key_names, gradients = tuple(saved.key_names), tuple(saved.gradients)
        return cls(name, saved.kind, key_names, blocks, gradients)


class _SavedLayout(NamedTuple):
    kind: SampleKind
    key_names: list[str]
    gradients: list[str]
    blocks: list[SavedBlock]
