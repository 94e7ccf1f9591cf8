"""The command ``lightning-scaler-merge``: statistics of several jobs in one file."""

import argparse
import warnings

from .one_line_errors import one_line_errors


def main() -> None:
    """Merge the files named in ``sys.argv``; exit with status 2 if they cannot be merged."""
    parser = argparse.ArgumentParser(
        "lightning-scaler-merge",
        description="Merge statistics files: all shards of some data, or several data sets.",
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="statistics to merge")
    parser.add_argument("--out", required=True, metavar="FILE", help="file to write")
    arguments = parser.parse_args()
    with one_line_errors(parser.prog):
        # Importing torch takes seconds, which --help need not wait for.
        from ..fitting import merge_files

        merged = merge_files(arguments.files)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # those of the fit, which lightning-scaler-show prints
            merged.compute()  # the first that sees all data checks that they have all targets
        merged.save(arguments.out)
        parts = "; ".join(map(str, merged.parts)) or "data that cannot be identified"
        print(f"{len(arguments.files)} files are merged in {arguments.out}: {parts}")


if __name__ == "__main__":
    main()
