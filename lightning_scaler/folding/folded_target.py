"""What is folded into the layers of a module: one scale, and one shift per atomic type."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..scaling import Scaler


@dataclass(frozen=True)
class FoldedTarget:
    """The scale and the shifts of one target: physical = scale · model + Σ shifts.

    Attributes:
        target: name of the target.
        scale: per-target scale, in the units of the data.
        shifts: baseline weight of each atomic type, in the units of the data; empty without a
            baseline.
        missing: shift of types that are not in ``shifts``.
    """

    target: str
    scale: float
    shifts: dict[int, float]
    missing: float

    def table(self, types: Iterable[int]) -> Tensor:
        """The shifts of some atomic types, float64, ``(n_types,)``."""
        found = [self.shifts.get(one, self.missing) for one in types]
        return torch.tensor(found, dtype=torch.float64)


def read_targets(scaler: Scaler) -> dict[str, FoldedTarget]:
    """The scale and the shifts of every target of a scaler.

    Raises:
        ValueError: for a target that has more than these.
    """
    if scaler.additive is not None:
        raise ValueError(
            f"fold: the additive module {scaler.additive.name} cannot be written into layers; fold "
            "a module that was trained without it"
        )
    found = {}
    for name, scales in scaler.targets.items():
        n_scales = scales.types.numel()
        if n_scales > 1 or not scales.layout.single_property:
            what = f"one for each of {n_scales} atomic types" if n_scales > 1 else "several"
            raise ValueError(
                f"fold: target '{name}': expected one scale for its prediction, got {what}; only "
                "per-structure targets with one property can be folded"
            )
        if scales.unknown_types:
            raise ValueError(
                f"fold: target '{name}': the baseline weights of the atomic types "
                f"{scales.unknown_types} are unknown; give them as fixed_baseline and fit again"
            )
        weights = next(iter(scales.weights.values()), None)
        shifts = {}
        if weights is not None:
            shifts = dict(zip(scales.baseline_types.tolist(), weights[:, 0].tolist(), strict=True))
        unseen_is_error = shifts and scaler.settings.unseen_types != "identity"
        missing = torch.nan if unseen_is_error else 0.0
        found[name] = FoldedTarget(name, float(scales.per_target[0]), shifts, missing)
    return found
