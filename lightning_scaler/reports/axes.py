"""What the pictures have in common: figures, colours, log axes and labels; PNG files.

Figures are objects of their own: pyplot, which would choose a window system, is never imported.
"""

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..settings import check_installed, with_atoms

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

# Colours that differ for colour-blind readers too (Okabe and Ito, jfly.uni-koeln.de/color), and in
# grey together with the markers and dashes.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000")
MARKERS = ("o", "s", "^", "D", "v")
DASHES = ("-", (0, (4, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)), (0, (8, 2)))
GREY = "#9A9A9A"
FONT_SIZE = 8
# Height in inches of a line of text, and of one where space is scarce.
LINE, NARROW_LINE = 0.175, 0.135
# Agg draws at most 65 536 pixels.
MAX_HEIGHT = 80.0
DOTS_PER_INCH = 120
MAX_LABEL = 34


def check_matplotlib(feature: str) -> None:
    """Raise ``ModuleNotFoundError`` if matplotlib is not installed.

    Args:
        feature: what needs it, as the subject of a sentence in the plural.
    """
    check_installed(feature, "plot", ["matplotlib"])


def new_figure(width: float, heights: Sequence[float], n_columns: int = 1) -> "Figure":
    """An empty figure with a grid of axes, row by row in ``figure.axes``.

    Args:
        width: width in inches.
        heights: height of each row in inches, with its title and labels.
        n_columns: number of columns.
    """
    from matplotlib.figure import Figure

    figure = Figure((width, min(sum(heights), MAX_HEIGHT)), layout="constrained")
    figure.subplots(len(heights), n_columns, height_ratios=heights, squeeze=False)
    return figure


def with_unit(what: str, unit: str | None) -> str:
    """A label with its unit.

    Example:
        >>> with_unit("scale", "eV/atom"), with_unit("scale", None)
        ('scale (eV/atom)', 'scale')
    """
    return f"{what} ({unit})" if unit else what


def unit_of(units: Mapping[str, str], name: str, per_atom: bool = False) -> str | None:
    """The unit of a target, or of one of its gradients, per atom if so; ``None`` if unknown."""
    unit = units.get(name)
    return with_atoms(unit, per_atom) if unit else None


def shorten(label: str, longest: int = MAX_LABEL) -> str:
    """A label without its middle, if it is too long.

    Example:
        >>> shorten("a_very_long_name_of_a_target", 15)
        'a_very_…_target'
    """
    if len(label) <= longest:
        return label
    end = (longest - 1) // 2
    return f"{label[: longest - 1 - end]}…{label[-end:]}"


def set_log_axis(axis: "Axis", values: Iterable[float]) -> None:
    """A log axis around positive values, of at least one decade, with plain numbers at its ticks.

    Args:
        axis: axis to set.
        values: all values on it; those that are NaN or not positive are ignored.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    known = [value for value in values if value > 0.0 and math.isfinite(value)] or [1.0]
    low, high = math.log10(min(known)), math.log10(max(known))
    margin = max(0.08 * (high - low), 0.5 * (1.0 - (high - low)), 0.1)
    limits = (10.0 ** (low - margin), 10.0 ** (high + margin))
    if axis.axis_name == "x":  # type: ignore[attr-defined]
        axis.axes.set_xscale("log")
        axis.axes.set_xlim(limits)
    else:
        axis.axes.set_yscale("log")
        axis.axes.set_ylim(limits)
    steps = (1.0, 2.0, 5.0) if high - low + 2 * margin < 2.0 else (1.0,)
    axis.set_major_locator(LogLocator(subs=steps))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def label_rows(axes: "Axes", labels: Sequence[str], height: float | None = None) -> None:
    """Label the rows 0, 1, 2, … from top to bottom; only every n-th if they are too narrow.

    Args:
        axes: axes with one row for each label.
        labels: labels.
        height: height that the axes will have in inches; default: what they have now.
    """
    if height is None:
        height = axes.get_window_extent().height / axes.figure.dpi
    step = max(1, math.ceil(NARROW_LINE * len(labels) / max(height, NARROW_LINE)))
    rows = range(0, len(labels), step)
    axes.set_yticks(list(rows), [labels[row] for row in rows])
    axes.set_ylim(len(labels) - 0.4, -0.6)


def write_numbers(texts: Sequence[str], axes: "Axes") -> None:
    """Write a text to the right of each of the rows 0, 1, 2 and so on."""
    for row, text in enumerate(texts):
        axes.annotate(
            text,
            (1.0, row),
            (4, 0),
            axes.get_yaxis_transform(),
            "offset points",
            va="center",
            fontsize=FONT_SIZE,
        )


def width_of_labels(labels: Iterable[str]) -> float:
    """Inches of the longest label."""
    return 0.075 * max(map(len, labels), default=0)


def style(axes: "Axes", title: str | None = None, longest: int | None = None) -> None:
    """The font sizes, the frame and the title on the left that all axes have.

    Args:
        axes: axes with all their labels.
        title: title, which is shortened.
        longest: number of characters for which there is space; default: the width of the figure.
    """
    axes.tick_params(labelsize=FONT_SIZE)
    axes.spines[["top", "right"]].set_visible(False)
    for axis in (axes.xaxis, axes.yaxis):
        axis.label.set_fontsize(FONT_SIZE)
    if title is not None:
        inches = axes.get_window_extent().width / axes.figure.dpi
        title = shorten(title, longest or int(11 * inches))
        axes.set_title(title, loc="left", fontsize=FONT_SIZE + 1, fontweight="bold")


def write_png(figure: "Figure", path: str | os.PathLike[str]) -> Any:
    """Write a figure to a PNG file.

    Args:
        figure: any figure.
        path: file to write.

    Returns:
        The pixels, a NumPy array ``(height, width, 3)`` of bytes.

    Raises:
        OSError: if the file cannot be written.
    """
    import numpy
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.image import imsave

    figure.set_dpi(DOTS_PER_INCH)
    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = numpy.array(canvas.buffer_rgba())[..., :3]
    imsave(path, pixels, format="png")
    return pixels
