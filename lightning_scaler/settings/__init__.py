"""What users set, read and checked; the words that messages have in common.

Imports the standard library alone: the commands read settings before torch is imported.
"""

from .checks import (
    check_choice,
    check_installed,
    check_names,
    did_you_mean,
    kind_of,
    list_of_names,
    list_or_count,
    number,
    warn_on_rank_zero,
    way_to_hide,
)
from .chemical_symbols import (
    CHEMICAL_SYMBOLS,
    Numbers,
    atomic_type,
    label_types,
    name_of_type,
)
from .settings import (
    Against,
    FixedScale,
    RefitPart,
    Settings,
    SystemLabels,
    UnseenTypes,
    check_arguments,
    check_refit,
    parse_fixed_baseline,
    parse_fixed_scales,
    parse_loss_weights,
)
from .units import join_units, parse_units, plain_unit, same_unit, with_atoms

__all__ = [
    "CHEMICAL_SYMBOLS",
    "Against",
    "FixedScale",
    "Numbers",
    "RefitPart",
    "Settings",
    "SystemLabels",
    "UnseenTypes",
    "atomic_type",
    "check_arguments",
    "check_choice",
    "check_installed",
    "check_names",
    "check_refit",
    "did_you_mean",
    "join_units",
    "kind_of",
    "label_types",
    "list_of_names",
    "list_or_count",
    "name_of_type",
    "number",
    "parse_fixed_baseline",
    "parse_fixed_scales",
    "parse_loss_weights",
    "parse_units",
    "plain_unit",
    "same_unit",
    "warn_on_rank_zero",
    "way_to_hide",
    "with_atoms",
]
