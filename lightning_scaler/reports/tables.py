"""Tables of fitted scales and baselines, and of test errors."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from rich.box import SIMPLE_HEAD
from rich.table import Table

# A table of all 89 types of a large data set would hide the rest.
MOST_TYPES = 12

Columns = Sequence[Sequence[float]]


class ScalesOfTarget(NamedTuple):
    """The scales of one target, in the units of the data set.

    Attributes:
        name: name of the target.
        samples: what a row of it is: ``"system"``, ``"system/atom"`` (per atom), ``"atom"``, …
        rms: RMS of all values as stored.
        residual: RMS after subtracting the baseline; ``None`` without a baseline.
        by_type: for each atomic type (``"all"`` unless the target is per-atom) its scale, and the
            per-property scales of each block.
    """

    name: str
    samples: str
    rms: float
    residual: float | None
    by_type: Sequence[tuple[str, float, Columns]]


class BaselineOfTarget(NamedTuple):
    """The baseline of one target, in the units of the data set.

    Attributes:
        name: name of the target.
        explained: fraction of the variance that the baseline explains.
        module: class name of the additive module, if there is one.
        by_type: for each atomic type the contributions to each block.
    """

    name: str
    explained: float
    module: str | None
    by_type: Sequence[tuple[str, Columns]]


def scales_table(targets: Iterable[ScalesOfTarget]) -> Table:
    """The scales of all targets, in the units of the data set.

    "system/atom" marks extensive targets, whose values are per atom. "RMS" is over all values as
    stored, "Residual" after subtracting the baseline (and an additive module). Per-property scales
    are listed in the order of the blocks, one line for each block.
    """
    table = _table("Target scales, in the units of the data")
    for heading in ("Target", "Samples"):
        table.add_column(heading, no_wrap=True)
    for heading in ("RMS", "Residual", "Type", "Scale", "Per property"):
        table.add_column(heading, justify="right", no_wrap=True)
    for target in targets:
        residual = "–" if target.residual is None else f"{target.residual:.4g}"
        head = (target.name, target.samples, f"{target.rms:.4g}", residual)
        for atomic_type, scale, blocks in target.by_type[:MOST_TYPES]:
            table.add_row(*head, atomic_type, f"{scale:.4g}", _numbers(blocks, ".3g"))
            head = ("",) * 4
        hidden = len(target.by_type) - MOST_TYPES
        if hidden > 0:
            table.add_row(*head, f"… {hidden} more types", "", "")
    return table


def baselines_table(targets: Iterable[BaselineOfTarget]) -> Table | None:
    """What is subtracted from each target before scaling; ``None`` if nothing is.

    "Explained" is the fraction of the variance about the mean. The contributions of each type are
    listed in the order of the blocks, one line for each block; a total is their sum over the atoms.
    """
    table = _table("Baselines, in the units of the data")
    table.add_column("Target", no_wrap=True)
    for heading in ("Explained", "Type", "Contribution"):
        table.add_column(heading, justify="right", no_wrap=True)
    for target in targets:
        lines = [] if target.module is None else [(target.module, "")]
        lines += [(z, _numbers(blocks, ".7g")) for z, blocks in target.by_type[:MOST_TYPES]]
        hidden = len(target.by_type) - MOST_TYPES
        if hidden > 0:
            lines.append((f"… {hidden} more types", ""))
        head = (target.name, _percent(target.explained))
        for line in lines:
            table.add_row(*head, *line)
            head = ("", "")
    return table if table.row_count else None


def errors_table(
    title: str, metrics: Mapping[str, float], units: Mapping[str, str] | None = None
) -> Table:
    """MAE and RMSE of every target in physical units, and relative to its spread.

    Args:
        title: above the table.
        metrics: as logged by the mixin: ``test/energy/rmse_per_atom``, ``test/forces/mae``, …,
            with or without ``/dataloader_idx_0`` behind.
        units: by target, or target and gradient: ``{"energy": "eV", "energy/positions": "eV/Å"}``.
    """
    rows: dict[str, dict[str, float]] = {}
    per_atom: set[str] = set()
    for path, value in metrics.items():
        _, *target, metric = path.split("/dataloader_idx_")[0].split("/")
        name = "/".join(target)
        if metric.endswith("_per_atom"):
            per_atom.add(name)
        rows.setdefault(name, {})[metric.removesuffix("_per_atom")] = value
    table = _table(title)
    for heading in ("Target", "Unit"):
        table.add_column(heading, no_wrap=True)
    for heading in ("MAE", "RMSE", "RMSE / spread"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, row in rows.items():
        if "rmse" not in row and "mae" not in row:
            continue
        unit = (units or {}).get(name, "")
        spread = row.get("relative_rmse")
        table.add_row(
            name,
            f"{unit} / atom" if name in per_atom else unit,
            *(f"{row[metric]:.4g}" if metric in row else "" for metric in ("mae", "rmse")),
            "" if spread is None else f"{100 * spread:.1f} %",
        )
    return table


def _table(title: str) -> Table:
    """An empty table that does not waste the 80 columns of a log."""
    return Table(
        title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False
    )


def _numbers(blocks: Columns, form: str) -> str:
    """The numbers of each block on a line of its own; a range where there are many."""
    lines = []
    for numbers in blocks:
        text = ", ".join(f"{number:{form}}" for number in numbers)
        if len(numbers) > 4:
            text = f"{min(numbers):{form}} … {max(numbers):{form}}"
        lines.append(text)
    return "\n".join(lines)


def _percent(share: float) -> str:
    """A share, with so many digits that it differs from 100 %."""
    left = 100.0 * (1.0 - share)
    digits = 1 if left <= 0.0 else min(max(1, math.ceil(-math.log10(left)) + 1), 10)
    return f"{100.0 * share:.{digits}f} %"
