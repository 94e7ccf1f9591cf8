"""The command ``lightning-scaler-diff``: what differs between two files."""

import argparse
import sys
import warnings

from .one_line_errors import one_line_errors


def main() -> None:
    """Print what differs; exit with status 1 if anything does, 2 if a file cannot be read."""
    parser = argparse.ArgumentParser(
        "lightning-scaler-diff",
        description="Compare the scales and baselines of two files of statistics or of Scalers. "
        "The exit status is 0 if they are the same, 1 if they differ, 2 after an error.",
    )
    parser.add_argument("files", nargs=2, metavar="FILE")
    parser.add_argument(
        "--tolerance",
        type=float,
        default=1e-9,
        metavar="NUMBER",
        help="relative difference of numbers that does not count; default: %(default)s",
    )
    arguments = parser.parse_args()
    with one_line_errors(parser.prog):
        # Importing torch takes seconds, which --help need not wait for.
        from ..fitting import load_saved
        from ..reports import differences_table, print_tables
        from ..scaling import Scaler, find_differences

        saved = [load_saved(path) for path in arguments.files]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # those of the fit, which lightning-scaler-show prints
            one, two = (s if isinstance(s, Scaler) else s.compute() for s in saved)
        differences = find_differences(one, two, arguments.tolerance)
        if differences:
            print_tables(differences_table(differences, tuple(arguments.files)))
            sys.exit(1)


if __name__ == "__main__":
    main()
