"""The settings of a ScaleAccumulator, and the contents of its file."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import torch

from ..baselines import AdditiveCoverage, CompositionBaseline, FrozenModule
from ..plain_tensors import Declaration
from ..settings import SystemLabels
from ..statistics import TargetStatistics
from ..tensors import InvalidStateError, digest, from_state, load_state, save_state, to_state
from .data_parts import DataPart
from .random_sample import RandomSample


class AccumulatorSettings(NamedTuple):
    """The arguments of an accumulator; the code of the additive module is not saved."""

    targets: list[str] | None
    intensive_targets: list[str]
    baseline: CompositionBaseline | None
    additive: FrozenModule | None
    declaration: Declaration | None
    units: dict[str, str]

    def arguments(self) -> dict[str, Any]:
        """Arguments that give another accumulator these settings."""
        declared = self.declaration
        return {
            "targets": self.targets if declared is None else declared.targets,
            "intensive_targets": self.intensive_targets,
            "baseline": self.baseline,
            "additive": self.additive,
            "batch": None if declared is None else declared.batch,
            "units": self.units,
        }

    def compared(self, with_weights: bool) -> dict[str, Any]:
        """The settings that must be equal in merged accumulators.

        Args:
            with_weights: whether the weights of the additive module are among them.
        """
        additive = self.additive and self.additive.name
        if self.additive is not None and with_weights:
            additive = f"{additive} with weights {digest(self.additive.state())[:8]}"
        declared = self.declaration
        return {
            "targets": self.targets and sorted(self.targets),
            "intensive_targets": self.intensive_targets,
            "baseline": self.baseline,
            "additive": additive,
            "declared targets": declared and declared.without_units.state()["targets"],
        }

    def state(self) -> dict[str, Any]:
        """The settings as plain Python objects and tensors."""
        state = {
            "targets": self.targets,
            "intensive_targets": self.intensive_targets,
            "baseline": self.baseline and asdict(self.baseline),
            "additive": self.additive and self.additive.state(),
            "units": self.units,
        }
        if self.declaration is not None:
            state["declaration"] = self.declaration.state()
        return state


class Collected(NamedTuple):
    """The data of an accumulator; ``statistics`` has their state by target name."""

    system_labels: SystemLabels
    coverage: AdditiveCoverage
    ignored: set[str]
    masked: set[str]
    statistics: dict[str, Any]
    sample: RandomSample | None = None


class SavedAccumulator(NamedTuple):
    """The settings and the data of an accumulator, and where the data are from."""

    settings: AccumulatorSettings
    collected: Collected
    parts: tuple[DataPart, ...]


# What files of earlier versions do not have.
_LATER: dict[tuple[str, str], Any] = {
    ("settings", "declaration"): None,
    ("settings", "units"): {},
    ("collected", "sample"): None,
}


def save_accumulator(
    path: str | os.PathLike[str],
    settings: AccumulatorSettings,
    collected: dict[str, Any],
    parts: Sequence[DataPart],
) -> None:
    """Write the state of an accumulator to a file."""
    content = {"settings": settings.state(), "collected": collected, "parts": to_state(parts)}
    save_state(path, "ScaleAccumulator", content)


def load_content(path: str | os.PathLike[str]) -> Any:
    """What a file of an accumulator holds, with what earlier versions did not have."""
    content = load_state(path, "ScaleAccumulator")
    if not isinstance(content, dict):
        return content
    for (part, name), value in _LATER.items():
        if isinstance(content.get(part), dict):
            content[part].setdefault(name, value)
    return {"parts": [], **content}


def read_saved(content: Any, additive: torch.nn.Module | None) -> SavedAccumulator:
    """The parts of :func:`load_content`.

    Args:
        content: what a file holds.
        additive: code of the additive module, if there was one.
    """
    saved: SavedAccumulator = from_state(SavedAccumulator, content)
    frozen = saved.settings.additive
    if frozen is not None and additive is not None and frozen.needs_module(additive):
        frozen.attach_module(additive)
    return saved


def check_errors(sample: RandomSample, statistics: Mapping[str, TargetStatistics]) -> None:
    """Check that loaded errors are of the scales of loaded statistics."""
    for name, one in statistics.items():
        n_types = one.types.numel() if one.layout.sample_kind == "atom" else 1
        found = sample.errors.get(name)
        if found is None or found.numel() != n_types:
            raise InvalidStateError(f"sample: expected {n_types} errors of the target '{name}'")
