"""How tables look, and printing them wherever a run prints."""

import contextlib
import copy
import io
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.table import Column, Table

# In place of characters that the encoding of standard output does not have.
REPLACEMENTS = {"─": "-", "–": "-", "…": "...", "Å": "A", "×": "x"}
# Wider than any table, so that no number is cut off.
WIDTH = 10_000
# Characters of names, and of words of headings, where a terminal is too narrow.
SHORTEST_NAME, SHORTEST_WORD = 9, 12


def new_table(title: str, caption: str | None) -> Table:
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


def add_names(table: Table, *headings: str) -> None:
    """Add columns of words, which are folded where a terminal is too narrow for the table."""
    for heading in headings:
        table.add_column(heading, overflow="fold")


def add_numbers(table: Table, *headings: str) -> None:
    """Add columns of numbers: only their headings are folded where a terminal is too narrow."""
    for heading in headings:
        table.add_column(heading, justify="right", overflow="fold")


def print_tables(*tables: Table | None) -> None:
    """Print tables to standard output; never raise an error because of the stream.

    Names are folded where a table is wider than the terminal; numbers never are. In files and pipes
    tables have their full width. Characters that the encoding of
    the stream does not have are replaced. If the stream is closed, or nobody reads it any more,
    nothing is printed: a table must not stop a training run.

    Args:
        tables: tables to print; ``None`` is skipped.

    Example:
        >>> from lightning_scaler import errors_table
        >>> print_tables(errors_table("Test errors", {"test/charges/mae": 0.25}, {"charges": "e"}))
        Test errors
        <BLANKLINE>
         Target   Unit   MAE  RMSE
         ─────────────────────────
         charges  e     0.25
        <BLANKLINE>
    """
    print_text(_format_tables(tables, _terminal_width()))


def write_tables(path: Path, *tables: Table | None) -> None:
    """Write tables to a text file in their full width, in UTF-8.

    Nothing is written if that is impossible, as on a full disk.

    Args:
        path: file to write, whose folder is made if there is none; one that exists is replaced.
        tables: tables to write; ``None`` is skipped.
    """
    text = _format_tables(tables, WIDTH)
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def print_text(text: str) -> None:
    """Print text as :func:`print_tables` prints tables.

    Args:
        text: any text, without the last line break.
    """
    stream = sys.stdout
    if stream is None:  # a process without a console
        return
    # OSError: a broken pipe, a full disk. ValueError: a closed stream.
    with contextlib.suppress(OSError, ValueError):
        encoding = getattr(stream, "encoding", None) or "utf-8"
        stream.write(_replace_unencodable(f"{text}\n", encoding))
        stream.flush()


def _format_tables(tables: Sequence[Table | None], width: int) -> str:
    """Tables below each other as plain text."""
    return "\n".join(_format_table(table, width) for table in tables if table is not None)


def _format_table(table: Table, width: int) -> str:
    """A table as plain text, as wide as its contents, or as wide as its numbers if it must be."""
    buffer = io.StringIO()
    console = Console(file=buffer, width=WIDTH, color_system=None, markup=False, emoji=False)
    excess = console.measure(table).maximum - width
    if excess > 0:
        table = copy.copy(table)
        table.columns = [copy.copy(column) for column in table.columns]
        # Headings of numbers first, then names from the left.
        for column in sorted(table.columns, key=lambda column: column.justify != "right"):
            spare = _widest(column.header, *column.cells) - _shortest(column)
            if excess > 0 and spare > 0:
                column.width = _shortest(column) + max(0, spare - excess)
                excess -= min(spare, excess)
    console.print(table)
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines()).rstrip() + "\n"


def _shortest(column: Column) -> int:
    """The least width of a column: words are folded, numbers are not, nor other people's tables."""
    widest = _widest(column.header, *column.cells)
    if column.overflow != "fold":
        return widest
    if column.justify != "right":
        return min(widest, SHORTEST_NAME)
    return max(min(_widest(*str(column.header).split()), SHORTEST_WORD), _widest(*column.cells))


def _widest(*cells: object) -> int:
    """Characters of the longest line in some cells."""
    return max((cell_len(line) for cell in cells for line in str(cell).splitlines()), default=0)


def _terminal_width() -> int:
    """Characters in a line of standard output; any number if it is not a terminal."""
    stream = sys.stdout
    # ValueError: a closed stream.
    with contextlib.suppress(AttributeError, ValueError):
        if stream is not None and stream.isatty():
            return shutil.get_terminal_size().columns
    return WIDTH


def _replace_unencodable(text: str, encoding: str) -> str:
    """The text in the characters of an encoding: for ``"ascii"``, ``eV/Å`` becomes ``eV/A``."""

    def replace(character: str) -> str:
        try:
            character.encode(encoding)
        except UnicodeEncodeError:
            return REPLACEMENTS.get(character, "?")
        return character

    return text.translate({ord(character): replace(character) for character in set(text)})
