"""Tables and pictures from plain values, and printing tables.

Imports ``settings``: the caller passes the values. Pictures need matplotlib, which is imported when
one is drawn.
"""

from .axes import check_matplotlib, write_png
from .data_pictures import DrawnTerm, MissingValues, draw_distributions, draw_terms
from .error_tables import differences_table, errors_table
from .printing import print_tables, print_text, write_tables
from .scales_picture import DrawnScales, draw_scales
from .tables import (
    BaselineOfTarget,
    ScalesOfTarget,
    baselines_table,
    scales_table,
)

__all__ = [
    "BaselineOfTarget",
    "DrawnScales",
    "DrawnTerm",
    "MissingValues",
    "ScalesOfTarget",
    "baselines_table",
    "check_matplotlib",
    "differences_table",
    "draw_distributions",
    "draw_scales",
    "draw_terms",
    "errors_table",
    "print_tables",
    "print_text",
    "scales_table",
    "write_png",
    "write_tables",
]
