"""The pictures of the data of a fit: distributions, missing values, mean squares."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from .axes import (
    COLOURS,
    DASHES,
    FONT_SIZE,
    GREY,
    LINE,
    label_rows,
    new_figure,
    set_log_axis,
    shorten,
    style,
    width_of_labels,
    with_unit,
    write_numbers,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

N_BINS = 50
# Fraction of the values at each end that is not drawn: single values would hide all others.
TAIL = 0.002
# Types with a line of their own, those with the most values.
MAX_LINES = 4
MAX_TERMS = 16


class DrawnTerm(NamedTuple):
    """The values of a target, or of one of its gradients, in a sample of the data.

    Attributes:
        name: name of the target, or of the target and the gradient, ``energy/positions``.
        before: values in the units of the data, by atomic type for per-atom targets, otherwise
            under ``""``; without missing values.
        after: the same values in loss space.
    """

    name: str
    before: Mapping[str, Sequence[float]]
    after: Mapping[str, Sequence[float]]


class MissingValues(NamedTuple):
    """The shares of missing values of a target.

    Attributes:
        share: share of all values, from 0 to 1.
        by_property: share of each property of each block.
    """

    share: float
    by_property: Sequence[float]


def draw_distributions(
    terms: Sequence[DrawnTerm], units: Mapping[str, str] | None = None
) -> "Figure":
    """Draw the distribution of each term of the loss, in the units of the data and in loss space.

    Args:
        terms: values of each term, at least one; those after the first 16 are left out.
        units: units by term.
    """
    units, shown = units or {}, terms[:MAX_TERMS]
    figure = new_figure(7.5, [1.75] * len(shown), n_columns=2)
    for row, term in enumerate(shown):
        left, right = figure.axes[2 * row : 2 * row + 2]
        _draw_histograms(term.before, with_unit("as in the data", units.get(term.name)), left)
        _draw_histograms(term.after, "in loss space", right)
        style(left, term.name, longest=28)
        style(right)
        left.set_ylabel("share (%)", fontsize=FONT_SIZE)
        if len(term.before) > 1:
            right.legend(
                fontsize=FONT_SIZE, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.03)
            )
    if len(terms) > len(shown):
        figure.supxlabel(f"… and {len(terms) - len(shown)} more", fontsize=FONT_SIZE)
    return figure


def draw_terms(
    mean_squares: Mapping[str, float], missing: Mapping[str, MissingValues] | None = None
) -> "Figure":
    """Draw the mean square of each term in loss space, and the share of missing values.

    Args:
        mean_squares: mean square of each term of the loss in loss space.
        missing: missing values of each target; ``None``: unknown.
    """
    n_rows = max(len(mean_squares), len(missing or {}), 1)
    height = 0.95 + 1.2 * LINE * n_rows
    n_columns = 1 if missing is None else 2
    labels = width_of_labels(shorten(name) for name in {*mean_squares, *(missing or {})})
    figure = new_figure((2.9 + labels) * n_columns, [height], n_columns)
    figure.get_layout_engine().set(wspace=0.06)  # type: ignore[union-attr, call-arg]
    _draw_mean_squares(mean_squares, figure.axes[0])
    if missing is not None:
        _draw_missing(missing, figure.axes[1])
    return figure


def _draw_histograms(values: Mapping[str, Sequence[float]], label: str, axes: "Axes") -> None:
    """The shares of all values in bins, and of each of the most frequent types among its own."""
    import numpy
    from matplotlib.ticker import MaxNLocator

    by_type = {name: numpy.asarray(one, dtype=float) for name, one in values.items() if len(one)}
    pooled = numpy.concatenate([*by_type.values(), numpy.empty(0)])
    axes.set_xlabel(label)
    if not pooled.size:
        axes.text(0.5, 0.5, "no values", ha="center", transform=axes.transAxes, fontsize=FONT_SIZE)
        return
    low, high = numpy.quantile(pooled, [TAIL, 1.0 - TAIL])
    margin = 0.04 * (high - low) or 0.5 * abs(low) or 0.5
    edges = numpy.linspace(low - margin, high + margin, N_BINS + 1)

    def shares(of: "numpy.ndarray") -> "numpy.ndarray":
        return 100.0 * numpy.histogram(of, edges)[0] / of.size

    axes.stairs(shares(pooled), edges, fill=True, color="0.8", label="all types")
    frequent = sorted(by_type, key=lambda name: -by_type[name].size)[:MAX_LINES]
    for i, name in enumerate(frequent if len(by_type) > 1 else []):
        axes.stairs(
            shares(by_type[name]),
            edges,
            color=COLOURS[i],
            linestyle=DASHES[i],
            linewidth=1.1,
            label=name,
        )
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylim(bottom=0.0)
    rms = float(numpy.sqrt(numpy.mean(numpy.square(pooled))))
    axes.set_title(f"RMS {rms:.4g}", loc="right", fontsize=FONT_SIZE)


def _draw_mean_squares(mean_squares: Mapping[str, float], axes: "Axes") -> None:
    rows, values = range(len(mean_squares)), list(mean_squares.values())
    axes.axvline(1.0, color=GREY, linewidth=1.0)
    axes.plot(values, rows, "o", color=COLOURS[0], markersize=5)
    set_log_axis(axes.xaxis, [1.0, *values])
    label_rows(axes, [shorten(name) for name in mean_squares], LINE * len(mean_squares))
    write_numbers([f"{value:.3g}" for value in values], axes)
    axes.set_xlabel("mean square in loss space")
    axes.grid(axis="x", color="0.9", linewidth=0.6)
    style(axes, "Terms of the loss")


def _draw_missing(missing: Mapping[str, MissingValues], axes: "Axes") -> None:
    rows, shares = range(len(missing)), [100.0 * found.share for found in missing.values()]
    axes.barh(rows, shares, height=0.55, color=COLOURS[0], alpha=0.55)
    for row, found in zip(rows, missing.values(), strict=True):
        if len(found.by_property) > 1:
            each = [100.0 * share for share in found.by_property]
            axes.plot(each, [row] * len(each), "|", color="black", markersize=7)
    label_rows(axes, [shorten(name) for name in missing], LINE * len(missing))
    write_numbers([f"{share:.3g} %" for share in shares], axes)
    axes.set_xlim(0.0, 100.0)
    axes.set_xlabel("missing values (%); lines: of each property")
    axes.grid(axis="x", color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)
    style(axes, "Missing values")
