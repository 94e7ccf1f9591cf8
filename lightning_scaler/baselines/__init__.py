"""What is subtracted from targets before they are scaled: a composition, an additive module.

Imports ``settings``, ``tensors``, ``batches`` and ``statistics``. :class:`ZBL` is imported on first
use, because it needs the extra ``zbl``.
"""

from typing import TYPE_CHECKING, Any

from ..settings import check_installed
from .choice import BaselineSetting, parse_baseline
from .composition import (
    Composition,
    CompositionBaseline,
    CompositionWeights,
    correct_weights,
)
from .contributions import (
    AdditiveCoverage,
    Contribution,
    align_contributions,
    gradient_contributions,
)
from .frozen_module import FrozenModule, class_name, freeze

if TYPE_CHECKING:
    from .zbl import ZBL

__all__ = [
    "ZBL",
    "AdditiveCoverage",
    "BaselineSetting",
    "Composition",
    "CompositionBaseline",
    "CompositionWeights",
    "Contribution",
    "FrozenModule",
    "align_contributions",
    "class_name",
    "correct_weights",
    "freeze",
    "gradient_contributions",
    "parse_baseline",
]


def __getattr__(name: str) -> Any:
    if name != "ZBL":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    check_installed("ZBL and its neighbor lists", "zbl", ["vesin"])
    from .zbl import ZBL

    return ZBL
