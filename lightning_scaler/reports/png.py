"""Figures as PNG files and as arrays of pixels."""

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DOTS_PER_INCH = 120


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
