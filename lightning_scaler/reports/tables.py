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
SCALE = "Residual: what the baseline leaves over. Scale: what the loss divides it by."
BY_PROPERTY = (
    "Of each property: its RMS divided by this scale; a line for each block, such as a degree of a "
    "spherical tensor."
)
FORCES = "/positions: the gradient with respect to the positions, minus the forces."
GRADIENTS = ("positions", "strain")

ValuesByBlock = Sequence[Sequence[float]]


class ScalesOfTarget(NamedTuple):
    """The scales of one target, in the units of the dataset.

    Attributes:
        name: name of the target.
        samples: what there is one value for: ``"structure"``, ``"atom"`` or ``"pair"``.
        rms: RMS of all values before subtracting the baseline.
        residual: RMS after subtracting the baseline; ``None`` without a baseline.
        by_type: atomic type (``"all"`` unless the target is per-atom), per-target scale, and
            per-property scales of each block.
        errors: for scales that were fitted to a random sample of the data the largest standard
            error of the scales of each type, relative to them; NaN if unknown.
        extensive: whether the values are divided by the number of atoms.
        unit: unit of the values in the data; ``""`` if it is not known.
    """

    name: str
    samples: str
    rms: float
    residual: float | None
    by_type: Sequence[tuple[str, float, ValuesByBlock]]
    errors: Sequence[float] = ()
    extensive: bool = False
    unit: str = ""


class BaselineOfTarget(NamedTuple):
    """The baseline of one target, in the units of the dataset.

    Attributes:
        name: name of the target.
        explained: fraction of the variance that the baseline explains.
        module: class name of the additive module, if there is one.
        by_type: atomic type, and its contributions to the properties of each block.
        unit: unit of the values in the data; ``""`` if it is not known.
    """

    name: str
    explained: float
    module: str | None
    by_type: Sequence[tuple[str, ValuesByBlock]]
    unit: str = ""


def scales_table(
    targets: Iterable[ScalesOfTarget],
    title: str = "Target scales",
    caption: str | None = None,
    zeros: Sequence[str] = (),
) -> Table:
    """The scales of all targets, in the units of the dataset.

    "RMS" is that of all values, "RMS of residual" that of what the baseline (including an additive
    module) leaves over. Extensive targets are divided by the number of atoms, as their unit says.
    "Error" is the largest standard error of the scales of a line, relative to them, if any were
    fitted to a random sample of the data. Targets with several properties have a line for each
    block, with the scales of its properties relative to that of the target. :meth:`Scaler.table`
    makes this table of a fitted scaler.

    Args:
        targets: the scales of each target.
        title: what the scales are, such as ``"Target scales, restored from the checkpoint"``.
        caption: text under the table.
        zeros: properties whose values are all exactly 0, in words, for a line under the table.

    Example:
        >>> from lightning_scaler import ScalesOfTarget, print_tables
        >>> of_types = [("all", 0.42, [[1.0]])]
        >>> energy = ScalesOfTarget(
        ...     "energy", "structure", 917.0, 0.42, of_types, extensive=True, unit="eV"
        ... )
        >>> charges = ScalesOfTarget(
        ...     "charges", "atom", 0.26, None, [("H (1)", 0.06, [[1.0]]), ("O (8)", 0.14, [[1.0]])]
        ... )
        >>> print_tables(scales_table([energy, charges]))
        Target scales, in the units of the data
        <BLANKLINE>
                                              RMS of
         Target   One per    Unit      RMS  residual  Type   Scale
         ─────────────────────────────────────────────────────────
         energy   structure  eV/atom   917      0.42  all     0.42
         charges  atom                0.26         –  H (1)   0.06
                                                      O (8)   0.14
        <BLANKLINE>
        Residual: what the baseline leaves over. Scale: what the
        loss divides it by.
        <BLANKLINE>
    """
    targets = list(targets)
    several = any(_has_several_properties(target) for target in targets)
    captions = [SCALE] + [BY_PROPERTY] * several
    if zeros:
        captions.append(
            "All values of these are 0, so they take the scale of their target: " + "; ".join(zeros)
        )
    captions += [caption] if caption is not None else []
    table = _table(f"{title}, in the units of the data", "\n".join(captions))
    units = [with_atoms(target.unit, target.extensive) for target in targets]
    show_units = any(units)
    for heading in ("Target", "One per", *(["Unit"] if show_units else [])):
        table.add_column(heading, no_wrap=True)
    with_errors = any(target.errors for target in targets)
    table.add_column("RMS", justify="right", no_wrap=True)
    table.add_column("RMS of\nresidual", justify="right", no_wrap=True)
    table.add_column("Type", no_wrap=True)
    for heading in ("Scale", *(["Error"] if with_errors else [])):
        table.add_column(heading, justify="right", no_wrap=True)
    if several:
        table.add_column("Of each\nproperty", justify="right", no_wrap=True)
    for target, unit in zip(targets, units, strict=True):
        residual = "–" if target.residual is None else f"{target.residual:.4g}"
        head = [target.name, target.samples, *([unit] if show_units else [])]
        head += [f"{target.rms:.4g}", residual]
        for i, (atomic_type, scale, blocks) in enumerate(target.by_type[:MAX_TYPES]):
            row = [*head, atomic_type, f"{scale:.4g}"]
            if with_errors:
                row.append(_format_error(target.errors[i]) if target.errors else "")
            if several:
                shown = _has_several_properties(target)
                row.append(_format_blocks(blocks, ".3g") if shown else "")
            table.add_row(*row)
            head = [""] * len(head)
        hidden = len(target.by_type) - MAX_TYPES
        if hidden > 0:
            table.add_row(*head, f"… {hidden} more types")
    return table


def baselines_table(
    targets: Iterable[BaselineOfTarget], title: str = "Baselines", caption: str | None = None
) -> Table | None:
    """The baselines of all targets, in the units of the dataset; ``None`` if there are none.

    "Variance explained" is a fraction of the variance about the mean. Each block has a line with
    the contribution of one atom of the type to each property.

    Args:
        targets: the baseline of each target.
        title: what the baselines are, such as ``"Baselines, restored from the checkpoint"``.
        caption: text under the table.
    """
    targets = list(targets)
    show_units = any(target.unit for target in targets)
    table = _table(f"{title}, in the units of the data", caption)
    for heading in ("Target", *(["Unit"] if show_units else [])):
        table.add_column(heading, no_wrap=True)
    table.add_column("Variance\nexplained", justify="right", no_wrap=True)
    table.add_column("Type", no_wrap=True)
    table.add_column("Contribution\nof one atom", justify="right", no_wrap=True)
    for target in targets:
        lines = [] if target.module is None else [(target.module, "")]
        lines += [(z, _format_blocks(blocks, ".7g")) for z, blocks in target.by_type[:MAX_TYPES]]
        hidden = len(target.by_type) - MAX_TYPES
        if hidden > 0:
            lines.append((f"… {hidden} more types", ""))
        head = [target.name, *([target.unit] if show_units else [])]
        head.append(_format_percentage(target.explained))
        for line in lines:
            table.add_row(*head, *line)
            head = [""] * len(head)
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
    table = _table(title, "\n".join(captions) or None)
    for heading in ("Target", "Unit"):
        table.add_column(heading, no_wrap=True)
    for heading in ("MAE", "RMSE", *(["Relative RMSE"] if relative else [])):
        table.add_column(heading, justify="right", no_wrap=True)
    # Names of targets are logged with a slash for their colons.
    logged = {name.replace("::", "/"): unit for name, unit in (units or {}).items()}
    for name, row in rows.items():
        cells = [f"{row[metric]:.4g}" if metric in row else "" for metric in ("mae", "rmse")]
        if "relative_rmse" in row:
            cells.append(f"{100 * row['relative_rmse']:.1f} %")
        table.add_row(name, with_atoms(_unit_of(name, logged), name in per_atom), *cells)
    return table


def _unit_of(name: str, units: Mapping[str, str]) -> str:
    """The unit of a target, of a gradient, or of the target that a block belongs to."""
    target, _, part = name.rpartition("/")
    return units.get(name, units.get(target, "") if part not in GRADIENTS else "")


def with_atoms(unit: str, per_atom: bool) -> str:
    """The unit of values that are divided by the number of atoms."""
    if not per_atom or unit.endswith("atom"):
        return unit
    return f"{unit}/atom" if unit else "per atom"


def _has_several_properties(target: ScalesOfTarget) -> bool:
    """Whether there is more than one block or property, so that relative scales are not all 1."""
    return any(sum(map(len, blocks)) > 1 for _, _, blocks in target.by_type)


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
