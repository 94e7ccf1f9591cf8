"""Fitted scales as a table."""

from rich.table import Table

from .scaler import Scaler
from .scales import TargetScales

KINDS = {"structure": "per structure", "atom": "per atom", "pair": "atom pairs"}

# A table of all 89 types of a large data set would hide the rest.
MOST_TYPES = 12


def scales_table(scaler: Scaler) -> Table:
    """The scales of all targets, in the units of the data.

    Extensive targets are told per atom. "RMS" is over all entries, with the baseline and without.
    """
    table = Table(title="Target scales", title_justify="left")
    for heading in ("Target", "Samples", "RMS", "after baseline", "Type"):
        table.add_column(heading, justify="left" if heading in ("Target", "Samples") else "right")
    table.add_column("Per-target scale", justify="right")
    table.add_column("Per-property scales")
    for name, scales in scaler.targets.items():
        kind = KINDS[scales.layout.kind]
        if scales.extensive:
            kind += ", by atoms"
        after = f"{scales.rms_after:.4g}" if scales.weights else "no baseline"
        rows = list(enumerate(scales.types.tolist()))
        for row, atomic_type in rows[:MOST_TYPES]:
            head = (name, kind, f"{scales.rms_before:.4g}", after) if row == 0 else ("",) * 4
            table.add_row(
                *head,
                "all" if atomic_type == -1 else str(atomic_type),
                f"{float(scales.per_target[row]):.4g}",
                _per_property(scales, row),
            )
        if len(rows) > MOST_TYPES:
            table.add_row(*("",) * 4, f"… {len(rows) - MOST_TYPES} more types", "", "")
        table.add_section()
    return table


def _per_property(scales: TargetScales, row: int) -> str:
    """The scales of one type, a block after the other; a range where there are many."""
    if scales.layout.single_property:
        return "1"
    words = []
    for key, values in scales.per_property.items():
        numbers = values[row].tolist()
        text = ", ".join(f"{number:.3g}" for number in numbers)
        if len(numbers) > 4:
            text = f"{min(numbers):.3g} … {max(numbers):.3g}"
        label = scales.layout.describe(key)
        words.append(text if len(scales.per_property) == 1 else f"({label}) {text}")
    return "; ".join(words)
