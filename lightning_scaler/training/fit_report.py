"""Reports on the scales at the start of training."""

import copy
import warnings
from collections.abc import Collection
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_info

from ..fitting import RandomSample
from ..reports import print_tables, print_text, write_tables
from ..scaling import LossSpaceSums, Scaler
from ..settings import way_to_hide
from .scaled_module import ScaledModule, scaler_of
from .validation_check import describe_far_terms

# Larger or smaller than expected, of one batch.
LARGEST_RATIO = 10.0


def print_fit(
    scaler: Scaler,
    kept: set[str],
    changes: str | None = None,
    precision: RandomSample | None = None,
    folder: Path | None = None,
) -> None:
    """Print the tables of scales and baselines after a fit.

    Args:
        scaler: scaler of the module.
        kept: names of the targets whose scales were kept.
        changes: what changed in scales that the module already had.
        precision: what was read of the data, if a relative error was asked for.
        folder: folder in which a text file keeps the tables, if there is one.
    """
    if changes is not None:
        print_text(changes)
    fitted = ", ".join(sorted(scaler.targets.keys() - kept))
    line = f"TargetScaler: fitted to the training data: {fitted}"
    if kept:
        line += f"; kept from before: {', '.join(sorted(kept))}"
    if fitted:
        print_text(line)
    if precision is not None:
        print_text(f"TargetScaler: {precision}")
    tables = scaler.table(), scaler.baselines_table()
    print_tables(*tables)
    if folder is not None:
        write_tables(folder / "target_scales.txt", *tables)


def report_kept_scales(
    module: ScaledModule, batch: Any, kept: Collection[str], read_data: bool
) -> set[str]:
    """Say that scales were kept, and how they suit the first batch of training.

    Warns of targets whose RMS in loss space is far from 1, unless their scale is fixed.

    Args:
        module: module with scales.
        batch: first batch of training, as ``training_step`` receives it.
        kept: names of the targets whose scales were kept.
        read_data: whether the training data were read for other scales or the baseline.

    Returns:
        Names of the targets that the warning is about.
    """
    scaler = scaler_of(module)
    sums = LossSpaceSums()
    try:
        # An unpack_batch may take the members out of the batch that the step needs next.
        systems, targets, masks = module._move_batch(module._read_batch(copy.copy(batch)))
        sums.add(scaler, systems, targets, masks, kept)
        rms = {n: size.rms for n, size in sums.sizes(scaler).items() if n in scaler.targets}
        values = ", ".join(f"{name} {value:.3g}" for name, value in rms.items())
        found = f". RMS of the first training batch in loss space: {values}" if values else ""
    except Exception as error:
        # A training_step of the user's need not be able to unpack or convert its batches.
        found = f". The first training batch could not be compared with them: {error}"
    fitted = scaler.targets.keys() - kept
    which = f"of {', '.join(sorted(kept))} " if fitted else ""
    rank_zero_info(
        f"TargetScaler: the scales {which}that the module already had (from a checkpoint or an "
        f"earlier fit) are kept{'' if read_data else ', without a data pass'}"
        f"{found}"
    )
    if not scaler.settings.enabled:
        return set()
    far = {
        term: words
        for term, words in describe_far_terms(scaler, sums, LARGEST_RATIO).items()
        if term in scaler.targets and scaler.targets[term].fixed is None
    }
    if far:
        warnings.warn(
            "the target scales that were kept may not suit these data: the RMS of the first "
            f"training batch in loss space is {', '.join(far.values())}, where about 1 is "
            "expected; if the level of theory has changed, fit the baseline again with "
            "TargetScaler(refit='baseline'); if units have changed, fit new scales with "
            "TargetScaler(refit=True)"
            f"{way_to_hide('the target scales that were kept may not suit these data')}",
            stacklevel=2,
        )
    return set(far)
