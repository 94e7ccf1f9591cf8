"""Printing tables wherever a run prints."""

import contextlib
import io
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

# In place of characters that the encoding of standard output does not have.
REPLACEMENTS = {"─": "-", "–": "-", "…": "...", "Å": "A", "×": "x"}
# Wider than any table, so that no number is cut off.
WIDTH = 10_000


def print_tables(*tables: Table | None) -> None:
    """Print tables to standard output; never raise an error because of the stream.

    Tables have their full width in narrow terminals and in files. Characters that the encoding of
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
    print_text("\n".join(format_table(table) for table in tables if table is not None))


def write_tables(path: Path, *tables: Table | None) -> None:
    """Write tables to a text file as :func:`print_tables` prints them, in UTF-8.

    Nothing is written if that is impossible, as on a full disk.

    Args:
        path: file to write, whose folder is made if there is none; one that exists is replaced.
        tables: tables to write; ``None`` is skipped.
    """
    text = "\n".join(format_table(table) for table in tables if table is not None)
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
        stream.write(replace_unencodable(f"{text}\n", encoding))
        stream.flush()


def format_table(table: Table) -> str:
    """A table as plain text, as wide as its contents."""
    buffer = io.StringIO()
    console = Console(file=buffer, width=WIDTH, color_system=None, markup=False, emoji=False)
    console.print(table)
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines()).rstrip() + "\n"


def replace_unencodable(text: str, encoding: str) -> str:
    """The text in the characters of an encoding: for ``"ascii"``, ``eV/Å`` becomes ``eV/A``."""

    def replace(character: str) -> str:
        try:
            character.encode(encoding)
        except UnicodeEncodeError:
            return REPLACEMENTS.get(character, "?")
        return character

    return text.translate({ord(character): replace(character) for character in set(text)})
