"""Tables from plain values.

Imports no other room: the caller passes the values.
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
