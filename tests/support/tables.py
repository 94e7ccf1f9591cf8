"""The text of a table."""

import io

from rich.console import Console


def text_of(table):
    """A table as a wide terminal shows it."""
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(table)
    return console.export_text()
