"""The command ``lightning-scaler-show``: the scales in a file."""

import argparse

from .one_line_errors import one_line_errors


def main() -> None:
    """Print the tables of a file; exit with status 2 if it cannot be read."""
    parser = argparse.ArgumentParser(
        "lightning-scaler-show",
        description="Show the scales and baselines in a file of statistics or of a Scaler.",
    )
    parser.add_argument("file", metavar="FILE")
    parser.add_argument(
        "--yaml", action="store_true", help="settings that fix these numbers, for a config"
    )
    parser.add_argument(
        "--as",
        dest="code",
        choices=["nequip", "mace", "fairchem", "deepmd"],
        help="settings of another code with these numbers, for the energy",
    )
    parser.add_argument("--target", default="energy", help="name of the energy; default: energy")
    arguments = parser.parse_args()
    with one_line_errors(parser.prog):
        # Importing torch takes seconds, which --help need not wait for.
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
            print_text(settings_for(arguments.code, scaler, arguments.target))
        elif arguments.yaml:
            scales, baseline, remarks = fixed_settings(scaler)
            block = {"fixed_scales": scales, "fixed_baseline": baseline}
            comments = "".join(f"# {line}\n" for line in (*lines, *remarks))
            print_text(comments + OmegaConf.to_yaml(OmegaConf.create(block)).rstrip())
        else:
            if lines:
                print_text("\n".join(lines))
            print_tables(scaler.table(), scaler.baselines_table())


if __name__ == "__main__":
    main()
