"""What a target looks like: its kind of samples, its blocks, and whether data agree with it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import compress
from typing import Any, Literal

import torch
from metatensor.torch import Labels, TensorBlock, TensorMap

from .labels import have_layouts
from .tensormaps import check_gradients, describe, dtype_of

Key = tuple[int, ...]
SampleKind = Literal["structure", "atom", "pair"]
Invariance = Literal["scalar", "trace"] | None

CPU = torch.device("cpu")

SAMPLE_NAMES: dict[tuple[str, ...], SampleKind] = {
    ("system",): "structure",
    ("system", "atom"): "atom",
    (
        "system",
        "first_atom",
        "second_atom",
        "cell_shift_a",
        "cell_shift_b",
        "cell_shift_c",
    ): "pair",
}


@dataclass(frozen=True)
class BlockLayout:
    """Components and properties of one block."""

    components: tuple[Labels, ...]
    properties: Labels

    @classmethod
    def of(cls, block: TensorBlock) -> "BlockLayout":
        """Read the layout of a block; it is kept on the CPU."""
        return cls(
            tuple(component.to("cpu") for component in block.components),
            block.properties.to("cpu"),
        )

    @property
    def n_properties(self) -> int:
        """Number of properties."""
        return len(self.properties)


@dataclass(frozen=True)
class TargetLayout:
    """Sample kind, keys and blocks of a target, as a union over all the data seen.

    A batch may lack some of the blocks; one that has other components or properties under the
    same key is an error.

    Attributes:
        name: of the target.
        kind: ``"structure"``, ``"atom"`` or ``"pair"``.
        key_names: names of the keys.
        blocks: the layout of each block under its key, in the order of first appearance.
        gradients: names of the gradients that some block has, sorted.
    """

    name: str
    kind: SampleKind
    key_names: tuple[str, ...]
    blocks: dict[tuple[int, ...], BlockLayout] = field(default_factory=dict)
    gradients: tuple[str, ...] = ()

    @classmethod
    def of(cls, name: str, tensor: TensorMap) -> "TargetLayout":
        """Read and check the layout of a target.

        Raises:
            ValueError: for sample names other than those of per-structure, per-atom and atom-pair
                targets, blocks whose sample names differ, or values that are not real floats.
            NotImplementedError: for gradients of gradients.
        """
        check_gradients(name, tensor)
        dtype = dtype_of(tensor)
        if not dtype.is_floating_point:
            raise ValueError(
                f"target '{name}': expected real floating point values, got {dtype}; "
                "convert it with TensorMap.to(torch.float64), or "
                "leave it out by naming the others in targets=[...]"
            )
        samples = tuple(tensor.sample_names) if len(tensor.keys) else ("system",)
        if samples not in SAMPLE_NAMES:
            raise ValueError(
                f"target '{name}': expected samples named {[list(s) for s in SAMPLE_NAMES]} (per "
                f"structure, per atom, or atom pairs), got {list(samples)}"
            )
        gradients = {parameter for block in tensor.blocks() for parameter in block.gradients_list()}
        key_names, kind = tuple(tensor.keys.names), SAMPLE_NAMES[samples]
        layout = cls(name, kind, key_names, gradients=tuple(sorted(gradients)))
        for row, key in enumerate(tensor.keys.values.tolist()):
            layout.blocks[tuple(key)] = BlockLayout.of(tensor.block_by_id(row))
        return layout

    def without_rows(self, device: torch.device) -> TensorMap:
        """A TensorMap of this layout without any sample."""
        if device not in self._without_rows:
            self._without_rows[device] = self._without_rows[CPU].to(device=device)
        return self._without_rows[device]

    @cached_property
    def _without_rows(self) -> dict[torch.device, TensorMap]:
        names = next(names for names, kind in SAMPLE_NAMES.items() if kind == self.kind)
        samples = Labels(list(names), torch.empty((0, len(names)), dtype=torch.int64))
        blocks = [
            TensorBlock(
                torch.empty((0, *(len(labels) for labels in of.components), of.n_properties)),
                samples,
                list(of.components),
                of.properties,
            )
            for of in self.blocks.values()
        ]
        return {CPU: TensorMap(self.keys(), blocks)}

    def union(self, other: "TargetLayout") -> "TargetLayout":
        """The layout that holds the blocks of both.

        Raises:
            ValueError: if the same name has other samples, key names, components or properties.
        """
        if (self.kind, self.key_names) != (other.kind, other.key_names):
            raise ValueError(
                f"target '{self.name}': expected {self.kind} samples and keys named "
                f"{list(self.key_names)} as before, got {other.kind} samples and keys named "
                f"{list(other.key_names)}"
            )
        gradients = tuple(sorted({*self.gradients, *other.gradients}))
        if self.blocks.keys() == other.blocks.keys() and all(
            _same(self.blocks[key], other.blocks[key]) for key in self.blocks
        ):
            return self if gradients == self.gradients else replace(self, gradients=gradients)
        blocks = dict(self.blocks)
        for key, block in other.blocks.items():
            if key in blocks and not _same(blocks[key], block):
                raise ValueError(
                    f"target '{self.name}', block ({self.describe(key)}): expected components "
                    f"{list(blocks[key].components)} and properties {blocks[key].properties} as "
                    f"before, got {list(block.components)} and {block.properties}"
                )
            blocks.setdefault(key, block)
        return replace(self, blocks=blocks, gradients=gradients)

    @property
    def single_property(self) -> bool:
        """Whether there is exactly one block with exactly one property."""
        return len(self.blocks) == 1 and next(iter(self.blocks.values())).n_properties == 1

    def describe(self, key: tuple[int, ...]) -> str:
        """A key in words: ``"o3_lambda=2, o3_sigma=1"``."""
        return ", ".join(f"{name}={value}" for name, value in zip(self.key_names, key, strict=True))

    def describe_property(self, key: tuple[int, ...], row: int) -> str:
        """A property of a block in words."""
        return (
            f"block ({self.describe(key)}), property ({describe(self.blocks[key].properties, row)})"
        )

    def keys(self) -> Labels:
        """The keys of all blocks as ``Labels``."""
        return Labels(
            list(self.key_names),
            torch.tensor(list(self.blocks), dtype=torch.int64).reshape(-1, len(self.key_names)),
        )

    def invariance(self, key: tuple[int, ...]) -> Invariance:
        """ScaleKind part of a block a baseline may be taken from.

        ``"scalar"``: the block itself does not change under rotation and inversion;
        ``"trace"``: the diagonal of a rank-2 spherical block with equal ``o3_lambda_1`` and
        ``o3_lambda_2``; ``None``: no part of it (Cartesian blocks share the key ``_``).
        """
        block, values = self.blocks[key], dict(zip(self.key_names, key, strict=True))
        if self.kind == "pair" or block.n_properties == 0:
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

    def state(self) -> dict[str, Any]:
        """The layout as plain Python objects and tensors (``torch.load(weights_only=True)``)."""
        return {
            "kind": self.kind,
            "key_names": list(self.key_names),
            "gradients": list(self.gradients),
            "blocks": [
                {
                    "key": list(key),
                    "components": [_labels_state(labels) for labels in block.components],
                    "properties": _labels_state(block.properties),
                }
                for key, block in self.blocks.items()
            ],
        }

    @classmethod
    def from_state(cls, name: str, state: dict[str, Any]) -> "TargetLayout":
        """The inverse of :meth:`state`."""
        blocks = {
            tuple(block["key"]): BlockLayout(
                tuple(_labels(labels) for labels in block["components"]),
                _labels(block["properties"]),
            )
            for block in state["blocks"]
        }
        key_names, gradients = tuple(state["key_names"]), tuple(state["gradients"])
        return cls(name, state["kind"], key_names, blocks, gradients)


def names_with_layout(
    layouts: Mapping[str, TargetLayout],
    tensors: Mapping[str, TensorMap],
    device: torch.device | None = None,
) -> frozenset[str]:
    """Names of the tensors that have just the blocks of their layout, and nothing to complain of.

    A hundred times faster than :meth:`TargetLayout.of` and :meth:`TargetLayout.union`, which say
    what is different.

    Args:
        layouts: by name; tensors of other names are left out.
        tensors: on one device, or some of them are taken to differ.
        device: the one; asking a TensorMap for it costs as much as all comparisons of a small one.
    """
    names = [name for name in tensors if name in layouts]
    if not names:
        return frozenset()
    chosen = [tensors[name] for name in names]
    device = device or chosen[0].device
    likes = [layouts[name].without_rows(device) for name in names]
    found = have_layouts(chosen, likes, [list(layouts[name].gradients) for name in names])
    return frozenset(compress(names, found))


def _same(first: BlockLayout, second: BlockLayout) -> bool:
    return (
        len(first.components) == len(second.components)
        and first.properties == second.properties
        and all(a == b for a, b in zip(first.components, second.components, strict=True))
    )


def _labels_state(labels: Labels) -> dict[str, Any]:
    return {"names": list(labels.names), "values": labels.values.clone()}


def _labels(state: dict[str, Any]) -> Labels:
    return Labels(list(state["names"]), state["values"])
