"""The picture of the scales: of each type and property, on log axes."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from .axes import (
    COLOURS,
    FONT_SIZE,
    GREY,
    LINE,
    MARKERS,
    label_rows,
    new_figure,
    set_log_axis,
    shorten,
    style,
    unit_of,
    width_of_labels,
    with_unit,
    write_numbers,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# A per-atom target with more properties is a heat map.
MAX_MARKERS = len(MARKERS)
# More types are labelled on two lines in turn.
MAX_TYPES_ON_A_LINE = 36
# Inches of a title, tick labels and the label of an axis; and of any number of rows, at most.
MARGIN, MAX_ROWS_HEIGHT = 0.85, 14.0


class DrawnScales(NamedTuple):
    """The scales of one target, in the units of the dataset.

    Attributes:
        name: name of the target.
        types: labels of the atomic types; empty unless the target is per-atom.
        properties: label of each property of each block; one for a single property.
        values: for each property the scale of each type (one scale unless the target is per-atom);
            NaN where a type does not have the property.
        rms: RMS of all values before subtracting the baseline.
        extensive: whether values are divided by the number of atoms.
    """

    name: str
    types: Sequence[str]
    properties: Sequence[str]
    values: Sequence[Sequence[float]]
    rms: float
    extensive: bool = False

    @property
    def is_one_number(self) -> bool:
        """Whether there is one scale."""
        return not self.types and len(self.properties) == 1


def draw_scales(
    targets: Sequence[DrawnScales],
    units: Mapping[str, str] | None = None,
    ax: "Axes | None" = None,
) -> "tuple[Figure, Any]":
    """Draw the scales of each type and property, on log axes.

    Per-structure targets with one property share axes, with a row for each. Every other target has
    its own: with a row for each property if it is per-structure, otherwise with the atomic types
    side by side and a marker for each property, or a heat map if there are many.

    Args:
        targets: scales of each target, at least one.
        units: units by target name.
        ax: axes to draw into; default: a new figure.

    Returns:
        The figure, and its axes (a list if there are several).

    Raises:
        ValueError: if ``ax`` is given for targets that do not share axes.
    """
    single = [target for target in targets if target.is_one_number]
    groups = ([single] if single else []) + [[t] for t in targets if not t.is_one_number]
    if ax is not None:
        if len(groups) > 1:
            raise ValueError(
                "ax: expected one target, or per-structure targets with one property, got "
                f"{[target.name for target in targets]}; name one of them, or leave ax out"
            )
        _draw(groups[0], units or {}, ax)
        return ax.figure, ax  # type: ignore[return-value]
    heights = [_height(group) for group in groups]
    figure = new_figure(max(map(_width, groups)), [height + MARGIN for height in heights])
    axes = list(figure.axes)
    for group, panel, height in zip(groups, axes, heights, strict=True):
        _draw(group, units or {}, panel, height)
    return figure, axes[0] if len(axes) == 1 else axes


def _width(group: Sequence[DrawnScales]) -> float:
    """Inches that the axes of some targets need, with their labels."""
    target = group[0]
    if not target.types:
        labels = target.properties if len(group) == 1 else [t.name for t in group]
        return 4.8 + width_of_labels(map(shorten, labels))
    n_types = len(target.types)
    return max(5.5, 1.2 + n_types * (0.2 if n_types <= MAX_TYPES_ON_A_LINE else 0.125))


def _height(group: Sequence[DrawnScales]) -> float:
    """Inches that the axes of some targets need, without their title and labels."""
    target = group[0]
    if target.is_one_number:
        return 1.4 * LINE * len(group)
    if target.types and len(target.properties) <= MAX_MARKERS:
        return 1.5
    return max(1.0, min(LINE * len(target.properties), MAX_ROWS_HEIGHT))


def _draw(
    group: Sequence[DrawnScales],
    units: Mapping[str, str],
    axes: "Axes",
    height: float | None = None,
) -> None:
    """Draw targets that share axes, whose height in inches is given if it is still to change."""
    target = group[0]
    if target.is_one_number:
        _draw_numbers(group, units, axes, height)
        return
    unit = unit_of(units, target.name, target.extensive)
    if not target.types:
        _draw_properties(target, with_unit("scale", unit), axes, height)
    elif len(target.properties) <= MAX_MARKERS:
        _draw_types(target, with_unit("scale", unit), axes)
    else:
        _draw_heat_map(target, with_unit("scale", unit), axes, height)


def _draw_numbers(
    targets: Sequence[DrawnScales], units: Mapping[str, str], axes: "Axes", height: float | None
) -> None:
    """Per-structure targets with one property: RMS of the data and scale, a row for each."""
    rows = range(len(targets))
    before, scales = [t.rms for t in targets], [t.values[0][0] for t in targets]
    axes.hlines(rows, before, scales, color=GREY, linewidth=1.0, zorder=1)
    # A target without a baseline has both at the same place.
    axes.plot(
        before, rows, "o", color=COLOURS[1], markerfacecolor="white", markersize=8, label="RMS"
    )
    axes.plot(scales, rows, "o", color=COLOURS[0], markersize=5, label="scale")
    set_log_axis(axes.xaxis, [*before, *scales])
    names = [with_unit(shorten(t.name, 24), unit_of(units, t.name, t.extensive)) for t in targets]
    label_rows(axes, names, height)
    write_numbers([f"{scale:.3g}" for scale in scales], axes)
    axes.set_xlabel("RMS of the data, and scale, in the unit of each target")
    axes.grid(axis="x", color="0.9", linewidth=0.6)
    style(axes, "Per structure")
    axes.legend(
        fontsize=FONT_SIZE, frameon=False, loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2
    )


def _draw_properties(target: DrawnScales, label: str, axes: "Axes", height: float | None) -> None:
    """A per-structure target with several properties, a row for each."""
    scales = [values[0] for values in target.values]
    rows = range(len(scales))
    axes.plot(scales, rows, "o", color=COLOURS[0], markersize=4)
    set_log_axis(axes.xaxis, scales)
    label_rows(axes, [shorten(label) for label in target.properties], height)
    axes.set_xlabel(label)
    axes.grid(color="0.9", linewidth=0.6)
    style(axes, target.name)


def _draw_types(target: DrawnScales, label: str, axes: "Axes") -> None:
    """A per-atom target with a few properties, with a marker for each at every type."""
    columns = range(len(target.types))
    for i, (name, scales) in enumerate(zip(target.properties, target.values, strict=True)):
        axes.plot(
            columns, scales, MARKERS[i], color=COLOURS[i], markersize=4.5, label=shorten(name, 24)
        )
    set_log_axis(axes.yaxis, [scale for scales in target.values for scale in scales])
    _label_types(axes, target.types)
    axes.set_ylabel(label)
    axes.grid(axis="x", which="both", color="0.9", linewidth=0.6)
    axes.grid(axis="y", color="0.9", linewidth=0.6)
    style(axes, target.name)
    if len(target.properties) > 1:
        axes.legend(fontsize=FONT_SIZE, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.03))


def _draw_heat_map(target: DrawnScales, label: str, axes: "Axes", height: float | None) -> None:
    """A per-atom target with many properties: rows, and the types side by side."""
    from matplotlib.colors import LogNorm

    known = [v for values in target.values for v in values if v > 0.0 and math.isfinite(v)] or [1.0]
    # One decade at least, so that nearly equal scales look nearly equal.
    middle = math.sqrt(min(known) * max(known))
    limits = min(*known, middle / 10**0.5), max(*known, middle * 10**0.5)
    norm = LogNorm(*limits)
    # Its lightness grows steadily, in grey and for colour-blind readers too.
    image = axes.imshow(target.values, cmap="viridis", norm=norm, aspect="auto")
    axes.set_facecolor("0.85")  # where a type does not have the property
    _label_types(axes, target.types)
    label_rows(axes, [shorten(label) for label in target.properties], height)
    axes.set(xlim=(-0.5, len(target.types) - 0.5), ylim=(len(target.properties) - 0.5, -0.5))
    style(axes, target.name)
    colours = axes.figure.colorbar(image, ax=axes, pad=0.01, aspect=30)
    set_log_axis(colours.ax.yaxis, limits)
    colours.ax.set_ylim(limits)
    colours.set_label(label, fontsize=FONT_SIZE)
    colours.ax.tick_params(labelsize=FONT_SIZE)


def _label_types(axes: "Axes", types: Sequence[str]) -> None:
    """Label the columns 0, 1, 2, … by atomic type; many of them on two lines in turn."""
    columns = range(len(types))
    step = 1 if len(types) <= MAX_TYPES_ON_A_LINE else 2
    axes.set_xticks(columns[::step], types[::step])
    if step == 2:
        axes.set_xticks(columns[1::2], types[1::2], minor=True)
        axes.tick_params(axis="x", which="minor", labelsize=FONT_SIZE, length=13)
    axes.set_xlim(-0.6, len(types) - 0.4)
    axes.set_xlabel("atomic type")
