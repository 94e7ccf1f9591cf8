"""Reports on the scales at the start of training."""

import copy
import warnings
from collections.abc import Collection
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from metatensor.torch import TensorMap

from ..reports import print_tables, print_text
from ..scaling import RandomSample, Scaler, targets_to_loss
from .scaled_module import ScaledModule, scaler_of

# Scales that were fitted to other data may be far from 1.
LARGEST_RMS = 10.0
SMALLEST_RMS = 0.1


def print_fit(
    scaler: Scaler,
    kept: set[str],
    changes: str | None = None,
    precision: RandomSample | None = None,
) -> None:
    """Print the tables of scales and baselines after a fit.

    Args:
        scaler: scaler of the module.
        kept: names of the targets whose scales were kept.
        changes: what changed in scales that the module already had.
        precision: what was read of the data, if a relative error was asked for.
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
    print_tables(scaler.table(), scaler.baselines_table())


def report_kept_scales(
    module: ScaledModule, batch: Any, kept: Collection[str], read_data: bool
) -> None:
    """Say that scales were kept, and how they suit the first batch of training.

    Warns of targets whose RMS in loss space is far from 1, unless their scale is fixed.

    Args:
        module: module with scales.
        batch: first batch of training, as ``training_step`` receives it.
        kept: names of the targets whose scales were kept.
        read_data: whether the training data were read for other scales or the baseline.
    """
    scaler = scaler_of(module)
    rms: dict[str, float] = {}
    try:
        rms = rms_in_loss_space(module, batch, kept)
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
        return
    far = {
        name: value
        for name, value in rms.items()
        if scaler.targets[name].fixed is None
        and value > 0.0
        and not SMALLEST_RMS <= value <= LARGEST_RMS
    }
    if far:
        described = ", ".join(f"{value:.3g} for '{name}'" for name, value in far.items())
        warnings.warn(
            "the target scales that were kept may not suit these data: the RMS of the first "
            f"training batch in loss space is {described}, where about 1 is expected; if the level "
            "of theory has changed, fit the baseline again with TargetScaler(refit='baseline'); if "
            "units have changed, fit new scales with TargetScaler(refit=True)",
            stacklevel=2,
        )


def rms_in_loss_space(module: ScaledModule, batch: Any, names: Collection[str]) -> dict[str, float]:
    """The RMS of all values of each of these targets, missing ones left out."""
    # An unpack_batch may take the members out of the batch that the step needs next.
    systems, targets, masks = module._read_batch(copy.copy(batch))
    known = {name: tensor for name, tensor in targets.items() if name in names}
    in_loss = targets_to_loss(scaler_of(module), systems, known, masks, torch.float64)
    rms = {name: _rms(tensor) for name, tensor in in_loss.items()}
    return {name: value for name, value in rms.items() if value is not None}


def _rms(tensor: TensorMap) -> float | None:
    blocks = [block.values.detach().double().cpu() for block in tensor.blocks()]
    values = torch.cat([v[~v.isnan()] for v in blocks]) if blocks else torch.empty(0)
    return float(values.square().mean().sqrt()) if values.numel() else None
