"""The numbers of a fit as settings that fix them."""

import math
from typing import Any, NamedTuple

from .scaler import Scaler
from .target_scales import TargetScales


class FixedSettings(NamedTuple):
    """Arguments of ``TargetScaler`` that give the same scales without fitting them.

    Attributes:
        fixed_scales: per-target scales by target name.
        fixed_baseline: contributions per atomic type by target name.
        remarks: what the settings do not say, a line each.
    """

    fixed_scales: dict[str, Any]
    fixed_baseline: dict[str, dict[int, float]]
    remarks: list[str]


def fixed_settings(scaler: Scaler) -> FixedSettings:
    """The settings that fix the scales and the baseline of a scaler.

    Per-property scales are fitted by a training that fixes the per-target scales, and so is a
    baseline with several numbers per type, which ``fixed_baseline`` does not take.

    Args:
        scaler: fitted scaler.
    """
    found = FixedSettings({}, {}, [])
    if scaler.additive is not None:
        found.remarks.append(f"fitted after subtracting the module {scaler.additive.name}")
    elif scaler.settings.baseline == "none":
        found.remarks.append("fitted with baseline: none")
    intensive = [
        name
        for name, scales in scaler.targets.items()
        if scales.layout.sample_kind == "structure" and not scales.extensive
    ]
    if intensive:
        found.remarks.append(f"fitted with intensive_targets: [{', '.join(intensive)}]")
    for name, scales in scaler.targets.items():
        if scales.layout.sample_kind != "pair":
            found.fixed_scales[name] = _fixed_scale(scales)
        if scales.composition == "none":
            found.remarks.append(f"fitted with baseline: {{{name}: none}}")
        elif not scales.weights:
            continue
        elif [weights.shape[1] for weights in scales.weights.values()] != [1]:
            found.remarks.append(
                f"{name}: its baseline has several numbers per type and is fitted again"
            )
        elif name in intensive and scales.composition == "counts":
            found.remarks.append(f"{name}: its baseline multiplies counts, and is fitted again")
        else:
            found.fixed_baseline[name] = _fixed_weights(scales)
    return found


def _fixed_scale(scales: TargetScales) -> float | dict[int, float]:
    if scales.layout.sample_kind != "atom":
        return float(scales.per_target[0])
    return {z: float(scales.per_target[row]) for z, row in sorted(scales.row_of_type().items())}


def _fixed_weights(scales: TargetScales) -> dict[int, float]:
    weights = scales.weights_or_nan(*scales.weights)[:, 0].tolist()
    types = scales.baseline_types.tolist()
    return {z: weight for z, weight in zip(types, weights, strict=True) if not math.isnan(weight)}
