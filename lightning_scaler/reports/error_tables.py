"""Tables of test errors, and of what differs between two files."""

from collections.abc import Mapping, Sequence

from rich.table import Table

from ..settings import with_atoms
from .printing import add_names, add_numbers, new_table

MAX_DIFFERENCES = 50

RELATIVE_RMSE = (
    "Relative RMSE: divided by the RMS of the target itself, after subtracting the baseline."
)
FORCES = "/positions: the gradient with respect to the positions, minus the forces."
GRADIENTS = ("positions", "strain")


def errors_table(
    title: str, metrics: Mapping[str, float], units: Mapping[str, str] | None = None
) -> Table:
    """MAE and RMSE of every target in physical units, and the relative RMSE where it was logged.

    Args:
        title: title of the table.
        metrics: values by name as logged by the mixin: ``test/energy/rmse_per_atom``,
            ``test/forces/mae``, …, with or without the suffix ``/dataloader_idx_0``, as in
            ``trainer.callback_metrics`` and in the result of ``trainer.test``.
        units: units by target, or by target and gradient, such as ``scaler.units``:
            ``{"energy": "eV", "energy/positions": "eV/Å"}``. Blocks have the unit of their target.

    Example:
        >>> from lightning_scaler import print_tables
        >>> errors = {"test/energy/mae_per_atom": 0.0123, "test/energy/rmse_per_atom": 0.02}
        >>> print_tables(errors_table("Test errors", errors, {"energy": "eV"}))
        Test errors
        <BLANKLINE>
         Target  Unit        MAE  RMSE
         ─────────────────────────────
         energy  eV/atom  0.0123  0.02
        <BLANKLINE>
    """
    rows: dict[str, dict[str, float]] = {}
    per_atom: set[str] = set()
    for path, value in metrics.items():
        _, *target, metric = path.split("/dataloader_idx_")[0].split("/")
        name = "/".join(target)
        if metric.endswith("_per_atom"):
            per_atom.add(name)
        rows.setdefault(name, {})[metric.removesuffix("_per_atom")] = value
    rows = {name: row for name, row in rows.items() if "rmse" in row or "mae" in row}
    relative = any("relative_rmse" in row for row in rows.values())
    captions = [RELATIVE_RMSE] if relative else []
    captions += [FORCES] if any(name.endswith("/positions") for name in rows) else []
    table = new_table(title, "\n".join(captions) or None)
    add_names(table, "Target", "Unit")
    add_numbers(table, "MAE", "RMSE", *(["Relative RMSE"] if relative else []))
    # Names of targets are logged with a slash in place of colons.
    logged = {name.replace("::", "/"): unit for name, unit in (units or {}).items()}
    for name, row in rows.items():
        cells = [f"{row[metric]:.4g}" if metric in row else "" for metric in ("mae", "rmse")]
        if "relative_rmse" in row:
            cells.append(f"{100 * row['relative_rmse']:.1f} %")
        table.add_row(name, with_atoms(_unit_of(name, logged), name in per_atom), *cells)
    return table


def differences_table(
    differences: Sequence[tuple[str, str, tuple[str, str], float | None, str]],
    headings: tuple[str, str],
) -> Table:
    """What differs between two files.

    Args:
        differences: for each the target, what differs, both values, the relative difference of
            numbers, and their unit; ``""`` if it is not known.
        headings: names of the two files.
    """
    hidden = len(differences) - MAX_DIFFERENCES
    plural = "" if len(differences) == 1 else "s"
    caption = f"… {hidden} more" if hidden > 0 else None
    shown = differences[:MAX_DIFFERENCES]
    show_units = any(unit for *_, unit in shown)
    table = new_table(f"{len(differences)} difference{plural}", caption)
    add_names(table, "Target", "Value", *(["Unit"] if show_units else []))
    add_numbers(table, *headings, "Relative")
    for target, what, values, relative, unit in shown:
        cells = [target, what, *([unit] if show_units else []), *values]
        table.add_row(*cells, "" if relative is None else f"{relative:.1e}")
    return table


def _unit_of(name: str, units: Mapping[str, str]) -> str:
    """The unit of a target, of a gradient, or of the target that a block belongs to."""
    target, _, part = name.rpartition("/")
    return units.get(name, units.get(target, "") if part not in GRADIENTS else "")
