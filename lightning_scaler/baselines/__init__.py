"""What is subtracted from targets before they are scaled: a composition, an additive module.

Imports ``tensors``, ``batches`` and ``statistics``. :class:`ZBL` is imported on first use, because
it needs the extra ``zbl``.
"""

from typing import TYPE_CHECKING, Any

from .composition import CompositionBaseline
from .contributions import AdditiveCoverage
from .frozen_module import Contribution, FrozenModule, class_name, contributions, frozen

if TYPE_CHECKING:
    from .zbl import ZBL

__all__ = [
    "ZBL",
    "AdditiveCoverage",
    "CompositionBaseline",
    "Contribution",
    "FrozenModule",
    "class_name",
    "contributions",
    "frozen",
]


def __getattr__(name: str) -> Any:
    if name != "ZBL":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .zbl import ZBL

    return ZBL
