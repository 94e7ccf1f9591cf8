"""The contents of a file of a ScaleAccumulator."""

from typing import Any, NamedTuple

from ..baselines import AdditiveCoverage, CompositionBaseline, FrozenModule
from ..plain_tensors import Declaration
from ..settings import SystemLabels
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
