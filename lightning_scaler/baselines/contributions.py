"""What an additive module has given to the targets of a fit, the same in every batch."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..tensors import TargetLayout
from .frozen_module import Contribution

BlockOfTarget = tuple[str, tuple[int, ...]]


@dataclass
class AdditiveCoverage:
    """What an additive module has given so far.

    Attributes:
        given: names of the targets that it gave something to, fitted or not.
        blocks: whether it gave something to a block of a target that is fitted.
        lacking: targets and gradients of theirs that it does not give.
    """

    given: set[str] = field(default_factory=set)
    blocks: dict[BlockOfTarget, bool] = field(default_factory=dict)
    lacking: set[tuple[str, str]] = field(default_factory=set)

    @classmethod
    def of_batch(
        cls,
        given: Iterable[str],
        layouts: Mapping[str, TargetLayout],
        parts: Mapping[str, Sequence[Contribution | None]],
    ) -> "AdditiveCoverage":
        """Read one batch.

        Args:
            given: names of the targets that the module gave something to.
            layouts: of the targets that are fitted and in the batch.
            parts: for each of them, and each of its blocks, what the module gave.
        """
        seen = cls(set(given))
        for name, layout in layouts.items():
            of_blocks = parts.get(name) or [None] * len(layout.blocks)
            for key, part in zip(layout.blocks, of_blocks, strict=True):
                seen.blocks[name, key] = part is not None
                if part is not None:
                    seen.lacking |= {(name, parameter) for parameter in part.lacking}
        return seen

    def check(
        self, other: "AdditiveCoverage", module: str, layouts: Mapping[str, TargetLayout]
    ) -> None:
        """Refuse data of which the module gave something to other blocks than here.

        Raises:
            ValueError: naming the module, the target and the block.
        """
        for (name, key), has in other.blocks.items():
            had = self.blocks.get((name, key), has)
            if had != has:
                raise ValueError(
                    f"additive module {module}, target '{name}', block "
                    f"({layouts[name].describe(key)}): expected contributions in every batch that "
                    f"has the block or in none, got "
                    f"{'none after some' if had else 'some after none'}"
                )

    def merge(self, other: "AdditiveCoverage") -> None:
        """Take over what has been given elsewhere; see :meth:`check`."""
        self.given |= other.given
        self.blocks.update(other.blocks)
        self.lacking |= other.lacking

    def to(self, name: str) -> bool:
        """Whether something was given to any block of a target."""
        return any(has for (target, _), has in self.blocks.items() if target == name)

    def check_used(self, module: str, targets: Iterable[str]) -> None:
        """Refuse a module of which nothing was used.

        Raises:
            ValueError: if it gave nothing to the targets, or only blocks that they do not have.
        """
        targets = sorted(targets)
        for name in targets:
            if name in self.given and not self.to(name):
                raise ValueError(
                    f"additive module {module}: expected contributions to blocks of the target "
                    f"'{name}', got blocks with other keys only"
                )
        if not self.given:
            raise ValueError(
                f"the additive module {module} gave no contribution to any of the targets "
                f"{targets}; name its outputs as the targets are named"
            )

    def state(self) -> dict[str, Any]:
        """Plain Python objects."""
        return {
            "given": sorted(self.given),
            "blocks": [(name, list(key), has) for (name, key), has in self.blocks.items()],
            "lacking": sorted(self.lacking),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "AdditiveCoverage":
        """The inverse of :meth:`state`."""
        blocks = {(name, tuple(key)): has for name, key, has in state["blocks"]}
        return cls(set(state["given"]), blocks, {(n, p) for n, p in state["lacking"]})
