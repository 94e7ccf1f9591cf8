"""Fitted scales, and errors of a test, as tables."""

import math
from collections.abc import Mapping, Sequence

import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table

from .scaler import Scaler

KINDS = {"structure": "system", "atom": "atom", "pair": "pair"}

# A table of all 89 types of a large data set would hide the rest.
MOST_TYPES = 12


def scales_table(scaler: Scaler) -> Table:
    """The scales of all targets, in the units of the data.

    "system/atom" are extensive targets, told per atom. "RMS" is over all entries as the data have
    them, "residual" once the baseline (and an additive module) is off. Per-property scales stand in
    the order of the blocks, one line for each, then of the properties.
    """
    table = _table("Target scales, in the units of the data")
    for heading in ("Target", "Samples"):
        table.add_column(heading, no_wrap=True)
    for heading in ("RMS", "Residual", "Type", "Scale", "Per property"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, scales in scaler.targets.items():
        kind = KINDS[scales.layout.kind] + ("/atom" if scales.extensive else "")
        residual = f"{scales.rms_after:.4g}" if scales.weights or scales.additive else "–"
        rows = list(enumerate(scales.types.tolist()))
        for row, atomic_type in rows[:MOST_TYPES]:
            head = (name, kind, f"{scales.rms_before:.4g}", residual) if row == 0 else ("",) * 4
            table.add_row(
                *head,
                "all" if atomic_type == -1 else str(atomic_type),
                f"{float(scales.per_target[row]):.4g}",
                _numbers([values[row] for values in scales.per_property.values()], ".3g"),
            )
        if len(rows) > MOST_TYPES:
            table.add_row(*("",) * 4, f"… {len(rows) - MOST_TYPES} more types", "", "")
    return table


def baselines_table(scaler: Scaler) -> Table | None:
    """What comes off each target before scaling, in the units of the data; ``None``: nothing.

    "Explained" is the share of the variance, about the mean of what could have a baseline. The
    contributions of each type stand in the order of the blocks, a line for each, then of the
    properties; a total is their sum over the atoms.
    """
    module = scaler.additive.name if scaler.additive is not None else ""
    table = _table("Baselines, in the units of the data")
    table.add_column("Target", no_wrap=True)
    for heading in ("Explained", "Type", "Contribution"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, scales in scaler.targets.items():
        lines = [(module, "")] if scales.additive else []
        if scales.weights:
            types = scales.composition_types.tolist()
            for row, atomic_type in enumerate(types[:MOST_TYPES]):
                weights = [values[row] for values in scales.weights.values()]
                lines.append((str(atomic_type), _numbers(weights, ".7g")))
            if len(types) > MOST_TYPES:
                lines.append((f"… {len(types) - MOST_TYPES} more types", ""))
        head = (name, _percent(scales.explained))
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


def _numbers(blocks: Sequence[torch.Tensor], form: str) -> str:
    """The numbers of each block on a line of its own; a range where there are many."""
    lines = []
    for values in blocks:
        numbers = values.tolist()
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
