"""Tables drawn from plain rows and numbers.

Imports no other room: whoever wants a table hands over the rows.
"""

from .tables import (
    BaselineOfTarget,
    ScalesOfTarget,
    baselines_table,
    errors_table,
    scales_table,
)

__all__ = [
    "BaselineOfTarget",
    "ScalesOfTarget",
    "baselines_table",
    "errors_table",
    "scales_table",
]
