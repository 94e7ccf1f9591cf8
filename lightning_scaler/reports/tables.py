"""Tables of scales and baselines."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from rich.table import Table

from ..settings import with_atoms
from .printing import add_names, add_numbers, new_table

# Datasets with many types (up to 89) would fill the screen.
MAX_TYPES = 12

SCALE = "Residual: what remains without the baseline. Scale: what the loss divides it by."
BY_PROPERTY = (
    "Of each property: its RMS divided by this scale; a line for each block, such as a degree of a "
    "spherical tensor."
)
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

    "RMS" is that of all values, "RMS of residual" that of what remains after subtracting the
    baseline, including an additive module. Extensive targets are divided by the number of atoms, as
    their unit says. "Error" is the largest standard error of the scales of a line, relative to
    them, if any were fitted to a random sample of the data. Targets with several properties have a
    line for each block, with the scales of its properties relative to that of the target.
    :meth:`Scaler.table` makes this table of a fitted scaler.

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
        Residual: what remains without the baseline. Scale: what
        the loss divides it by.
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
    table = new_table(f"{title}, in the units of the data", "\n".join(captions))
    units = [with_atoms(target.unit, target.extensive) for target in targets]
    show_units = any(units)
    with_errors = any(target.errors for target in targets)
    add_names(table, "Target", "One per", *(["Unit"] if show_units else []))
    add_numbers(table, "RMS", "RMS of\nresidual")
    add_names(table, "Type")
    add_numbers(table, "Scale", *(["Error"] if with_errors else []))
    add_numbers(table, *(["Of each\nproperty"] if several else []))
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
    table = new_table(f"{title}, in the units of the data", caption)
    add_names(table, "Target", *(["Unit"] if show_units else []))
    add_numbers(table, "Variance\nexplained")
    add_names(table, "Type")
    add_numbers(table, "Contribution\nof one atom")
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


def _has_several_properties(target: ScalesOfTarget) -> bool:
    """Whether there is more than one block or property, so that relative scales are not all 1."""
    return any(sum(map(len, blocks)) > 1 for _, _, blocks in target.by_type)


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
