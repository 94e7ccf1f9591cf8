"""What the file of a ScaleAccumulator holds."""

from typing import Any, NamedTuple

from ..baselines import AdditiveCoverage, CompositionBaseline, FrozenModule
from ..settings import SystemLabels


class AccumulatorSettings(NamedTuple):
    """The arguments of an accumulator; the code of the additive module is not saved."""

    targets: list[str] | None
    intensive_targets: list[str]
    baseline: CompositionBaseline | None
    additive: FrozenModule | None


class Collected(NamedTuple):
    """What an accumulator has collected; the state of the statistics by target name."""

    system_labels: SystemLabels
    coverage: AdditiveCoverage
    ignored: set[str]
    masked: set[str]
    statistics: dict[str, Any]


class SavedAccumulator(NamedTuple):
    """The settings of an accumulator, and what it has collected."""

    settings: AccumulatorSettings
    collected: Collected
