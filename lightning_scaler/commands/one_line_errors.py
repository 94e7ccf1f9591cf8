"""Errors of a command about its files, on one line."""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

FAILED = 2  # as argparse, and as diff, whose 1 says that files differ


@contextmanager
def one_line_errors(command: str) -> Iterator[None]:
    """Print what is wrong with a file on one line, without a traceback, and exit with status 2.

    Warnings are printed on one line too.
    """
    shown = warnings.formatwarning
    warnings.formatwarning = lambda message, *_args, **_options: f"warning: {message}\n"
    try:
        yield
    except (OSError, TypeError, ValueError) as error:
        print(f"{command}: {in_one_line(error)}", file=sys.stderr)
        sys.exit(FAILED)
    finally:
        warnings.formatwarning = shown


def in_one_line(error: Exception) -> str:
    """The message of an error, that of an ``OSError`` as those about damaged files."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"file '{error.filename}': {error.strerror}"
    return str(error)
