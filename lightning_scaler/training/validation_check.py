"""Whether data have the size that the scales were fitted to, and what may be the reason."""

import math
import warnings
from collections.abc import Collection, Mapping
from typing import Any

import torch
from metatensor.torch import TensorMap

from ..scaling import LossSpaceSums, Scaler, TermSize
from ..settings import way_to_hide

# How far the RMS of a few structures, and of many, may be from 1. Validation data of other
# molecules than the training data are often twice as large or small.
FEW, MANY = 10, 100
FACTOR_OF_FEW, FACTOR_OF_MANY = 10.0, 3.0
# Within 2 % of a ratio of units, less is enough.
FACTOR_OF_UNITS = 1.5

# Ratios of units, each larger than 1 (CODATA 2018).
UNITS = {
    23.0605: "kcal/mol per eV",
    96.4853: "kJ/mol per eV",
    27.2114: "eV per Hartree",
    627.509: "kcal/mol per Hartree",
    2625.5: "kJ/mol per Hartree",
    4.184: "kJ per kcal",
    1000.0: "meV per eV",
    51.4221: "eV/Å per Hartree/bohr",
    1.88973: "bohr per Å; 0.529 Å per bohr",
    6.74833: "bohr³ per Å³",
    4.80320: "debye per e·Å",
    2.54175: "debye per e·bohr",
}


class ValidationCheck:
    """Compares the validation data with the scales, once in a run.

    The RMS in loss space is that of all batches of rank 0: of the sanity check first, whose few
    batches must be very different, then of the first validation.
    """

    def __init__(self) -> None:
        self._sums = LossSpaceSums()
        self._left_out: set[str] = set()
        self._later: set[str] = set()
        self._without_targets: bool | None = None  # None: before the first batch
        self.finished = False

    def add(
        self,
        scaler: Scaler,
        systems: Any,
        targets: Mapping[str, TensorMap],
        masks: Mapping[str, TensorMap] | None,
    ) -> None:
        """Add a batch.

        Args:
            scaler: scaler of the module.
            systems: systems of the batch, or their atoms.
            targets: targets in physical space, by name.
            masks: masks by target name.
        """
        without = scaler.targets.keys().isdisjoint(targets)
        self._without_targets = without and self._without_targets is not False
        names = scaler.targets.keys() - self._left_out - self._later
        if not names or not scaler.settings.enabled or scaler.settings.provisional:
            return
        with torch.inference_mode(False):
            self._sums.add(scaler, systems, targets, masks or {}, names)

    def finish(self, scaler: Scaler, sanity_check: bool, several_processes: bool) -> None:
        """Warn of what was found in the batches.

        Args:
            scaler: scaler of the module.
            sanity_check: whether these were the batches of the sanity check.
            several_processes: whether other processes have validation data too.
        """
        sums, self._sums = self._sums, LossSpaceSums()
        without, self._without_targets = self._without_targets, None
        self.finished = self.finished or not sanity_check
        # The few batches of a sanity check may be without targets that later ones have.
        if without and not sanity_check:
            data = "validation data of rank 0" if several_processes else "validation data"
            warnings.warn(
                f"the {data} have none of the targets {[*scaler.targets]}, so that they have no "
                "part in val/loss and the metrics; give them the same names as in the training "
                "data",
                stacklevel=2,
            )
        far = describe_far_terms(scaler, sums)
        if far:
            self._left_out |= {_target_of(scaler, term) for term in far}
            warnings.warn(
                "validation data are much larger or smaller than the scales: "
                f"{'; '.join(far.values())}. The RMS of a target in loss space is about 1, and "
                "that of a gradient as in the training data; check that training and validation "
                "data have the same units, and are both totals or both per atom"
                f"{way_to_hide('validation data are much larger or smaller than the scales')}",
                stacklevel=2,
            )

    def postpone(self, names: Collection[str]) -> None:
        """Leave these targets out of the validation that begins."""
        self._later = {*names}

    def leave_out(self, names: Collection[str]) -> None:
        """Say nothing more about these targets."""
        self._left_out |= {*names}


def describe_far_terms(
    scaler: Scaler, sums: LossSpaceSums, factor: float | None = None
) -> dict[str, str]:
    """The terms of the loss whose RMS is far from what it is in the data of the fit, in words.

    Args:
        scaler: fitted scaler.
        sums: sums over the data.
        factor: how far is far; ``None``: it depends on the number of structures.
    """
    n_atoms = sums.n_atoms / max(1, sums.n_structures)
    few = sums.n_structures < MANY
    if factor is None and sums.n_structures < FEW:
        return {}
    allowed = factor or (FACTOR_OF_FEW if few else FACTOR_OF_MANY)
    far, mean_squares = {}, scaler.mean_squares
    for term, size in sums.sizes(scaler).items():
        mean_square = mean_squares.get(term)
        expected = 1.0 if term in scaler.targets else math.sqrt(mean_square or 0.0)
        if not expected or mean_square == 0.0:
            continue
        ratio, target = size.rms / expected, scaler.targets[_target_of(scaler, term)]
        # Fixed scales are rough, and residuals have no ratio of units.
        rough = term in scaler.targets and (target.weights or target.fixed is not None)
        by_units = _is_far(ratio, FACTOR_OF_UNITS) and _units_near(ratio, 0.02)
        if _is_far(ratio, allowed) or (factor is None and not few and not rough and by_units):
            far[term] = _describe(scaler, term, size, expected, n_atoms, 0.15 if few else 0.08)
    return far


def _target_of(scaler: Scaler, term: str) -> str:
    """The target that a term of the loss belongs to."""
    return term if term in scaler.targets else term.rpartition("/")[0]


def _describe(
    scaler: Scaler, term: str, size: TermSize, expected: float, n_atoms: float, tolerance: float
) -> str:
    target = scaler.targets[_target_of(scaler, term)]
    words = f"{size.rms:.3g} for '{term}'"
    if expected != 1.0:
        words += f", where the training data have {expected:.3g}"
    elif target.fixed is not None:
        words += ", whose scale is fixed"
    # A baseline is subtracted before the scale divides, so that residuals have no ratio of units.
    ratio = size.rms / expected
    if size.ratio and (target.weights or target.additive):
        ratio = size.ratio
    hints = _units_near(ratio, tolerance)
    for if_so, what in (
        (size.if_per_atom, "the ratio of values per atom to totals"),
        (size.if_total, "the ratio of totals to values per atom"),
    ):
        if if_so and n_atoms > 1.5 and _is_near(if_so, 1.0, tolerance):
            hints = [f"{what}, {n_atoms:.3g} atoms on average", *_units_near(ratio, 0.02)]
    if hints:
        times = f"1/{1 / ratio:.3g}" if ratio < 1.0 else f"{ratio:.3g}"
        words += f" ({times} times the data of the fit: near {' or '.join(hints)})"
    return words


def _units_near(ratio: float, tolerance: float) -> list[str]:
    """The ratios of units that a ratio may be, the nearest first, two at most."""
    near = [factor for factor in UNITS if _is_near(ratio, factor, tolerance)]
    near.sort(key=lambda factor: abs(abs(math.log(ratio)) - math.log(factor)))
    return [f"{factor:.4g}, {UNITS[factor]}" for factor in near[:2]]


def _is_near(ratio: float, factor: float, tolerance: float) -> bool:
    """Whether a ratio, or its inverse, is a factor."""
    return abs(abs(math.log(ratio)) - math.log(factor)) < math.log1p(tolerance)


def _is_far(ratio: float, factor: float) -> bool:
    """Whether a ratio is further from 1 than a factor."""
    return abs(math.log(ratio)) > math.log(factor)
