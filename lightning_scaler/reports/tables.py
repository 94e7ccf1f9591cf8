"""Tables of scales, baselines and test errors."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from rich.box import SIMPLE_HEAD
from rich.table import Table

# Datasets with many types (up to 89) would fill the screen.
MAX_TYPES = 12
MAX_DIFFERENCES = 50

RELATIVE_RMSE = (
    "Relative RMSE: divided by the RMS of the target itself, after subtracting the baseline."
)

ValuesByBlock = Sequence[Sequence[float]]


class ScalesOfTarget(NamedTuple):
    """The scales of one target, in the units of the dataset.

    Attributes:
        name: name of the target.
        samples: kind of its samples: ``"system"``, ``"system/atom"`` (extensive), ``"atom"``, …
        rms: RMS of all values before subtracting the baseline.
        residual: RMS after subtracting the baseline; ``None`` without a baseline.
        by_type: atomic type (``"all"`` unless the target is per-atom), per-target scale, and
            per-property scales of each block.
        errors: for scales that were fitted to a random sample of the data the largest standard
            error of the scales of each type, relative to them; NaN if unknown.
    """

    name: str
    samples: str
    rms: float
    residual: float | None
    by_type: Sequence[tuple[str, float, ValuesByBlock]]
    errors: Sequence[float] = ()


class BaselineOfTarget(NamedTuple):
    """The baseline of one target, in the units of the dataset.

    Attributes:
        name: name of the target.
        explained: fraction of the variance that the baseline explains.
        module: class name of the additive module, if there is one.
        by_type: atomic type, and its contributions to the properties of each block.
    """

    name: str
    explained: float
    module: str | None
    by_type: Sequence[tuple[str, ValuesByBlock]]


def scales_table(
    targets: Iterable[ScalesOfTarget],
    title: str = "Target scales",
    caption: str | None = None,
    zeros: Sequence[str] = (),
) -> Table:
    """The scales of all targets, in the units of the dataset.

    "system/atom" marks extensive targets, whose values are divided by the number of atoms. "RMS" is
    that of all values, "Residual" that after subtracting the baseline (including an additive
    module). Each block has a line of per-property scales. "Error" is the largest standard error of
    the scales of a line, relative to them, if any were fitted to a random sample of the data.

    Args:
        targets: the scales of each target.
        title: what the scales are, such as ``"Target scales, restored from the checkpoint"``.
        caption: text under the table.
        zeros: properties whose values are all exactly 0, in words, for a line under the table.
    """
    if zeros:
        line = f"All values are 0, and take the scale of their target: {'; '.join(zeros)}"
        caption = line if caption is None else f"{caption}\n{line}"
    table = _table(f"{title}, in the units of the data", caption)
    for heading in ("Target", "Samples"):
        table.add_column(heading, no_wrap=True)
    targets = list(targets)
    with_errors = any(target.errors for target in targets)
    errors = ["Error"] if with_errors else []
    for heading in ("RMS", "Residual", "Type", "Scale", *errors, "Per property"):
        table.add_column(heading, justify="right", no_wrap=True)
    for target in targets:
        residual = "–" if target.residual is None else f"{target.residual:.4g}"
        head = (target.name, target.samples, f"{target.rms:.4g}", residual)
        for row, (atomic_type, scale, blocks) in enumerate(target.by_type[:MAX_TYPES]):
            error = [_format_error(target.errors[row]) if target.errors else ""] * with_errors
            cells = (f"{scale:.4g}", *error, _format_blocks(blocks, ".3g"))
            table.add_row(*head, atomic_type, *cells)
            head = ("",) * 4
        hidden = len(target.by_type) - MAX_TYPES
        if hidden > 0:
            table.add_row(*head, f"… {hidden} more types")
    return table


def baselines_table(
    targets: Iterable[BaselineOfTarget], title: str = "Baselines", caption: str | None = None
) -> Table | None:
    """The baselines of all targets, in the units of the dataset; ``None`` if there are none.

    "Explained" is the fraction of the variance about the mean. Each block has a line with the
    contribution of one atom of the type to each property.

    Args:
        targets: the baseline of each target.
        title: what the baselines are, such as ``"Baselines, restored from the checkpoint"``.
        caption: text under the table.
    """
    table = _table(f"{title}, in the units of the data", caption)
    table.add_column("Target", no_wrap=True)
    for heading in ("Explained", "Type", "Contribution"):
        table.add_column(heading, justify="right", no_wrap=True)
    for target in targets:
        lines = [] if target.module is None else [(target.module, "")]
        lines += [(z, _format_blocks(blocks, ".7g")) for z, blocks in target.by_type[:MAX_TYPES]]
        hidden = len(target.by_type) - MAX_TYPES
        if hidden > 0:
            lines.append((f"… {hidden} more types", ""))
        head = (target.name, _format_percentage(target.explained))
        for line in lines:
            table.add_row(*head, *line)
            head = ("", "")
    return table if table.row_count else None


def differences_table(
    differences: Sequence[tuple[str, str, tuple[str, str], float | None]],
    headings: tuple[str, str],
) -> Table:
    """What differs between two files.

    Args:
        differences: for each the target, what differs, both values, and the relative difference of
            numbers.
        headings: names of the two files.
    """
    hidden = len(differences) - MAX_DIFFERENCES
    plural = "" if len(differences) == 1 else "s"
    caption = f"… {hidden} more" if hidden > 0 else None
    table = _table(f"{len(differences)} difference{plural}", caption)
    for heading in ("Target", "Value"):
        table.add_column(heading, no_wrap=True)
    for heading in (*headings, "Relative"):
        table.add_column(heading, justify="right", no_wrap=True)
    for target, what, values, relative in differences[:MAX_DIFFERENCES]:
        table.add_row(target, what, *values, "" if relative is None else f"{relative:.1e}")
    return table


def errors_table(
    title: str, metrics: Mapping[str, float], units: Mapping[str, str] | None = None
) -> Table:
    """MAE and RMSE of every target in physical units, and the relative RMSE where it was logged.

    Args:
        title: title of the table.
        metrics: values by name as logged by the mixin: ``test/energy/rmse_per_atom``,
            ``test/forces/mae``, …, with or without the suffix ``/dataloader_idx_0``.
        units: units by target, or by target and gradient:
            ``{"energy": "eV", "energy/positions": "eV/Å"}``.
    """
    rows: dict[str, dict[str, float]] = {}
    per_atom: set[str] = set()
    for path, value in metrics.items():
        _, *target, metric = path.split("/dataloader_idx_")[0].split("/")
        name = "/".join(target)
        if metric.endswith("_per_atom"):
            per_atom.add(name)
        rows.setdefault(name, {})[metric.removesuffix("_per_atom")] = value
    relative = any("relative_rmse" in row for row in rows.values())
    table = _table(title, RELATIVE_RMSE if relative else None)
    for heading in ("Target", "Unit"):
        table.add_column(heading, no_wrap=True)
    for heading in ("MAE", "RMSE", *(["Relative RMSE"] if relative else [])):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, row in rows.items():
        if "rmse" not in row and "mae" not in row:
            continue
        unit = (units or {}).get(name, "")
        cells = [f"{row[metric]:.4g}" if metric in row else "" for metric in ("mae", "rmse")]
        if "relative_rmse" in row:
            cells.append(f"{100 * row['relative_rmse']:.1f} %")
        table.add_row(name, f"{unit} / atom" if name in per_atom else unit, *cells)
    return table


def _table(title: str, caption: str | None) -> Table:
    """An empty table with narrow margins: logs have 80 columns."""
    return Table(
        title=title,
        title_justify="left",
        caption=caption,
        caption_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )


def _format_blocks(blocks: ValuesByBlock, number_format: str) -> str:
    """A line with the values of each block, or their range if there are more than four.

    NaN stands for an unknown value.
    """
    lines = []
    for values in blocks:
        known = [value for value in values if not math.isnan(value)]
        line = ", ".join(
            "–" if math.isnan(value) else f"{value:{number_format}}" for value in values
        )
        if len(values) > 4 and known:
            line = f"{min(known):{number_format}} … {max(known):{number_format}}"
        elif len(values) > 4:
            line = "–"
        lines.append(line)
    return "\n".join(lines)


def _format_error(error: float) -> str:
    """A relative error in percent; 0 for a fixed scale."""
    return "–" if math.isnan(error) else f"{100.0 * error:.2g} %"


def _format_percentage(fraction: float) -> str:
    """A fraction in percent, with enough digits to show that it is below 100 %.

    A baseline that increases the variance, perhaps a billionfold, explains none of it.
    """
    if math.isnan(fraction):
        return "–"
    if fraction < 0.0:
        return "none"
    missing = 100.0 * (1.0 - fraction)
    digits = 1 if missing <= 0.0 else min(max(1, math.ceil(-math.log10(missing)) + 1), 10)
    return f"{100.0 * fraction:.{digits}f} %"
