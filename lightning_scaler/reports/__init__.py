"""Tables of plain rows and numbers.

Imports no other room: the caller passes the rows.
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
