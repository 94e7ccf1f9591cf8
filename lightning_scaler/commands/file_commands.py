"""The commands about files: ``lightning-scaler-show``, ``-diff`` and ``-merge``."""

import argparse
import sys
import warnings

from .running import one_line_errors

# Importing torch takes seconds, which --help need not wait for: it is imported after the arguments
# were read.


def show() -> None:
    """Print the tables of a file; exit with status 2 if it cannot be read."""
    parser = argparse.ArgumentParser(
        "lightning-scaler-show",
        description="Show the scales and baselines in a file of statistics or of a Scaler.",
    )
    parser.add_argument("file", metavar="FILE")
    formats = parser.add_mutually_exclusive_group()
    formats.add_argument(
        "--yaml", action="store_true", help="settings that fix these numbers, for a config"
    )
    formats.add_argument(
        "--as",
        dest="code",
        choices=["nequip", "mace", "fairchem", "deepmd"],
        help="settings of another code with these numbers, for the energy",
    )
    parser.add_argument("--target", help="name of the energy, for --as; default: energy")
    arguments = parser.parse_args()
    if arguments.target is not None and arguments.code is None:
        parser.error("argument --target: it names the energy of --as, which is missing")
    with one_line_errors(parser.prog):
        from omegaconf import OmegaConf

        from ..fitting import load_saved, missing_shards
        from ..interop import settings_for
        from ..reports import print_tables, print_text
        from ..scaling import Scaler, fixed_settings

        saved = load_saved(arguments.file)
        if isinstance(saved, Scaler):
            scaler, lines = saved, []
        else:
            lines = [f"Statistics of {part}" for part in saved.parts]
            if saved.sample is not None:
                lines.append(f"Of these, {saved.sample}")
            missing = missing_shards(saved.parts)
            if missing:
                lines.append(f"These are the scales of a part of the data, without {missing}")
            scaler = saved.compute()
        if arguments.code is not None:
            print_text(settings_for(arguments.code, scaler, arguments.target or "energy"))
        elif arguments.yaml:
            scales, baseline, remarks = fixed_settings(scaler)
            block = {"fixed_scales": scales, "fixed_baseline": baseline}
            comments = "".join(f"# {line}\n" for line in (*lines, *remarks))
            print_text(comments + OmegaConf.to_yaml(OmegaConf.create(block)).rstrip())
        else:
            if lines:
                print_text("\n".join(lines))
            print_tables(scaler.table(), scaler.baselines_table())


def diff() -> None:
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
    if not arguments.tolerance >= 0:
        parser.error(
            f"argument --tolerance: expected a number of at least 0, got {arguments.tolerance}"
        )
    with one_line_errors(parser.prog):
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


def merge() -> None:
    """Merge the files named in ``sys.argv``; exit with status 2 if they cannot be merged."""
    parser = argparse.ArgumentParser(
        "lightning-scaler-merge",
        description="Merge statistics files: all shards of some data, or several data sets.",
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="statistics to merge")
    parser.add_argument("--out", required=True, metavar="FILE", help="file to write")
    arguments = parser.parse_args()
    with one_line_errors(parser.prog):
        from ..fitting import merge_files

        merged = merge_files(arguments.files)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # those of the fit, which lightning-scaler-show prints
            merged.compute()  # the first that sees all data checks that they have all targets
        merged.save(arguments.out)
        parts = "; ".join(map(str, merged.parts)) or "data that cannot be identified"
        print(f"{len(arguments.files)} files are merged in {arguments.out}: {parts}")
