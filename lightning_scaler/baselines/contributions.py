"""The contributions of an additive module, aligned with targets, and the targets that have them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from metatensor.torch import TensorBlock, TensorMap
from torch import Tensor

from ..batches import Atoms, SystemIndexing, relabel_by_position
from ..tensors import (
    Key,
    TargetLayout,
    describe,
    find_gradient_rows,
    find_rows,
    from_state,
    scripted_gradients_of_blocks,
    take_rows,
)


class Contribution(NamedTuple):
    """Contributions to one block of a target.

    Attributes:
        values: contributions to the values, in their shape.
        gradients: contributions to the gradients, in their shapes, by parameter.
        missing_gradients: parameters of the gradients without contributions.
    """

    values: Tensor
    gradients: dict[str, Tensor]
    missing_gradients: tuple[str, ...] = ()


def align_contributions(
    outputs: Mapping[str, TensorMap],
    tensors: Mapping[str, TensorMap],
    atoms: Atoms,
    indexing: SystemIndexing,
) -> dict[str, list[Contribution | None]]:
    """The output of an additive module in the blocks and rows of some targets.

    Args:
        outputs: output of the module by target name.
        tensors: targets, or predictions in physical units, by name.
        atoms: atoms of the batch.
        indexing: meaning of the ``system`` labels of the targets.

    Returns:
        By target name, the contribution to each block; ``None`` for a block without one.

    Raises:
        ValueError: for other key names, components or properties than those of the target, or rows
            of the target without a contribution.
    """
    return {
        name: align_target(name, outputs[name], relabel_by_position(name, tensor, indexing, atoms))
        for name, tensor in tensors.items()
        if name in outputs
    }


def align_target(name: str, output: TensorMap, target: TensorMap) -> list[Contribution | None]:
    """Contributions in the blocks, rows and device of one target.

    A single property matches a single property, whatever its label.

    Args:
        name: name of the target, for messages.
        output: output of an additive module.
        target: target with positions in the batch as ``system`` labels.
    """
    if output.keys.names != target.keys.names:
        raise ValueError(
            f"target '{name}': expected contributions with keys named {target.keys.names}, got "
            f"{output.keys.names}"
        )
    output = output.to(device=target.device)
    contributions: list[Contribution | None] = []
    for index, block in enumerate(target.blocks()):
        where = f"target '{name}', block ({describe(target.keys, index)})"
        position = output.keys.position(target.keys.entry(index))
        contributions.append(
            None if position is None else _align_block(where, output.block_by_id(position), block)
        )
    return contributions


def _align_block(where: str, output: TensorBlock, target: TensorBlock) -> Contribution:
    same_properties = output.properties == target.properties or (
        len(output.properties) == len(target.properties) == 1
    )
    if not same_properties or output.components != target.components:
        raise ValueError(
            f"{where}: expected contributions with components {target.components} and properties "
            f"{target.properties}, got {output.components} and {output.properties}"
        )
    what = "contribution"
    rows = find_rows(where, output.samples, target.samples, target.samples.values, what)
    gradients, missing = {}, []
    for parameter in target.gradients_list():
        if parameter not in output.gradients_list():
            missing.append(parameter)
            continue
        gradient, wanted = output.gradient(parameter), target.gradient(parameter)
        where_gradient = f"{where}, gradient '{parameter}'"
        if gradient.components != wanted.components:
            raise ValueError(
                f"{where_gradient}: expected contributions with components "
                f"{wanted.components}, got {gradient.components}"
            )
        gradient_rows = find_gradient_rows(
            where_gradient, gradient.samples, wanted.samples, rows, what
        )
        gradients[parameter] = take_rows(gradient.values, gradient_rows)
    return Contribution(take_rows(output.values, rows), gradients, tuple(missing))


def gradient_contributions(
    tensor: TensorMap, contributions: Sequence[Contribution | None] | None
) -> list[Tensor | None]:
    """The contribution to every gradient, in the order of blocks and parameters.

    Args:
        tensor: target.
        contributions: contributions to each of its blocks, if there are any.

    Returns:
        An empty list without contributions.
    """
    gradients: list[Tensor | None] = []
    if contributions is not None:
        for i, parameter in zip(*scripted_gradients_of_blocks(tensor), strict=True):
            contribution = contributions[i]
            of_block = {} if contribution is None else contribution.gradients
            gradients.append(of_block.get(parameter))
    return gradients


@dataclass
class AdditiveCoverage:
    """The targets and blocks that an additive module contributes to, over all batches.

    Attributes:
        outputs: names of the targets in the module's output, fitted or not.
        blocks: for each target and block, whether the module contributes to it.
        missing_gradients: targets and parameters of the gradients without contributions.
    """

    outputs: set[str] = field(default_factory=set)
    blocks: dict[tuple[str, Key], bool] = field(default_factory=dict)
    missing_gradients: set[tuple[str, str]] = field(default_factory=set)

    @classmethod
    def of_batch(
        cls,
        outputs: Iterable[str],
        layouts: Mapping[str, TargetLayout],
        contributions: Mapping[str, Sequence[Contribution | None]],
    ) -> "AdditiveCoverage":
        """The coverage of one batch.

        Args:
            outputs: names of the targets in the module's output.
            layouts: layouts of the fitted targets of the batch.
            contributions: contributions to each block of these targets.
        """
        coverage = cls(set(outputs))
        for name, layout in layouts.items():
            by_block = contributions.get(name) or [None] * len(layout.blocks)
            for key, contribution in zip(layout.blocks, by_block, strict=True):
                coverage.blocks[name, key] = contribution is not None
                if contribution is not None:
                    missing = contribution.missing_gradients
                    coverage.missing_gradients |= {(name, parameter) for parameter in missing}
        return coverage

    def check(
        self, other: "AdditiveCoverage", module: str, layouts: Mapping[str, TargetLayout]
    ) -> None:
        """Refuse a block that has contributions in one of the two coverages only.

        Raises:
            ValueError: naming the module, the target and the block.
        """
        for (name, key), covered in other.blocks.items():
            before = self.blocks.get((name, key), covered)
            if before != covered:
                raise ValueError(
                    f"additive module {module}, target '{name}', block "
                    f"({layouts[name].describe(key)}): expected contributions in every batch that "
                    f"has the block or in none, got "
                    f"{'none after some' if before else 'some after none'}"
                )

    def merge(self, other: "AdditiveCoverage") -> None:
        """Add another coverage, in place; see :meth:`check`."""
        self.outputs |= other.outputs
        self.blocks.update(other.blocks)
        self.missing_gradients |= other.missing_gradients

    def covers(self, name: str) -> bool:
        """Whether the module contributes to any block of a target."""
        return any(covered for (target, _), covered in self.blocks.items() if target == name)

    def check_used(self, module: str, targets: Iterable[str]) -> None:
        """Refuse a module whose output was never used.

        Raises:
            ValueError: if it contributes to no target, or only to blocks that are not in a target.
        """
        targets = sorted(targets)
        for name in targets:
            if name in self.outputs and not self.covers(name):
                raise ValueError(
                    f"additive module {module}: expected contributions to blocks of the target "
                    f"'{name}', got blocks with other keys only"
                )
        if not self.outputs:
            raise ValueError(
                f"the additive module {module} gave no contribution to any of the targets "
                f"{targets}; name its outputs as the targets are named"
            )

    def state(self) -> dict[str, Any]:
        """The coverage as plain Python objects."""
        return {
            "outputs": sorted(self.outputs),
            "blocks": [(name, list(key), covered) for (name, key), covered in self.blocks.items()],
            "missing_gradients": sorted(self.missing_gradients),
        }

    @classmethod
    def from_state(cls, state: Any) -> "AdditiveCoverage":
        """The inverse of :meth:`state`.

        Raises:
            InvalidStateError: for a state that is not that of a coverage.
        """
        saved = from_state(_SavedCoverage, state)
        blocks = {(name, key): covered for name, key, covered in saved.blocks}
        return cls(saved.outputs, blocks, saved.missing_gradients)


class _SavedCoverage(NamedTuple):
    outputs: set[str]
    blocks: list[tuple[str, Key, bool]]
    missing_gradients: set[tuple[str, str]]
