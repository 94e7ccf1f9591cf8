"""Tables from plain values, and printing them.

Imports no other room: the caller passes the values.
"""

from .printing import print_tables, print_text
from .tables import (
    BaselineOfTarget,
    ScalesOfTarget,
    baselines_table,
    differences_table,
    errors_table,
    scales_table,
)

__all__ = [
    "BaselineOfTarget",
    "ScalesOfTarget",
    "baselines_table",
    "differences_table",
    "errors_table",
    "print_tables",
    "print_text",
    "scales_table",
]
