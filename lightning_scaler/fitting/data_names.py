"""The names in the batches of a fit: which tensors are targets, and what settings refer to."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from metatensor.torch import TensorMap

from ..batches import check_plain_values
from ..plain_tensors import DeclaredBatch
from ..scaling import is_auxiliary
from ..settings import check_names, did_you_mean
from ..tensors import TargetLayout, is_tensormap
from .accumulator_state import AccumulatorSettings
from .energies_per_atom import FirstEnergies


@dataclass
class NamesInData:
    """The names that batches had besides those of the fitted targets.

    Attributes:
        ignored: names of TensorMaps that are not fitted, or of targets without a block.
        masked: names of the targets of masks.
        missing_declared: what the first batch says of each declared target without a value in it;
            ``None`` before the first batch, and without a declaration.
        energies: energies of the first batches, which show whether they are totals.
    """

    ignored: set[str] = field(default_factory=set)
    masked: set[str] = field(default_factory=set)
    missing_declared: dict[str, str] | None = None
    energies: FirstEnergies = field(default_factory=FirstEnergies)

    def read_first_batches(self, systems: Any, targets: Mapping[str, Any]) -> None:
        """Read which declared targets the first batch does not have, and warn of doubtful ones."""
        if not isinstance(systems, DeclaredBatch):
            return
        self.energies.add(systems, targets)
        if self.missing_declared is not None:
            return
        missing = systems.describe_missing_targets()
        # Some of a list of Atoms may have no value, and so may all of a batch.
        if missing and not targets and not systems.may_lack_targets:
            raise ValueError(next(iter(missing.values())))
        systems.declaration.warn_of_stresses_without_volume()
        self.missing_declared = missing

    def merge(self, other: "NamesInData") -> None:
        """Add the names of other batches."""
        self.ignored |= other.ignored
        self.masked |= other.masked
        if self.missing_declared is None:
            self.missing_declared = other.missing_declared

    def check(
        self,
        settings: AccumulatorSettings,
        layouts: Mapping[str, TargetLayout],
        fixed_scales: Iterable[str],
        kept: Mapping[str, TargetLayout],
        data: str,
        complete: bool,
    ) -> None:
        """Refuse settings that name targets, or gradients, without data.

        Args:
            settings: settings of the accumulator.
            layouts: layouts of the targets in the data.
            fixed_scales: names of the targets with fixed scales.
            kept: layouts of the targets of an earlier fit.
            data: what was read, in words.
            complete: whether that is all data: others may have the gradients.
        """
        fitted = set(layouts)
        seen = fitted | self.ignored
        for name in settings.targets or ():
            if name not in fitted:
                missing = (self.missing_declared or {}).get(name)
                if missing is not None:
                    raise ValueError(f"no batch has a target of targets=…; {missing}")
                raise ValueError(
                    f"target '{name}' was requested in targets=[…] but does not occur in the "
                    f"{data}; {did_you_mean(name, seen)}"
                )
        if not fitted:
            raise ValueError("no target was seen in the data, so there is nothing to fit")
        fitted |= {*kept}
        check_names("a mask", sorted(self.masked), seen)
        check_names("intensive_targets", settings.intensive_targets, fitted)
        check_names("fixed_scales", fixed_scales, fitted)
        known = seen | {*kept}
        unknown = (name for name in settings.units if name.rpartition("/")[0] not in known)
        check_names("units", unknown, known)
        if complete:
            _check_gradients(settings.units.keys() - known, layouts, kept)
        if settings.baseline is not None:
            check_names("fixed_baseline", settings.baseline.fixed, fitted)
            check_names("baseline", settings.baseline.excluded, fitted)


def _check_gradients(
    names: Iterable[str],
    layouts: Mapping[str, TargetLayout],
    kept: Mapping[str, TargetLayout],
) -> None:
    """Refuse units of gradients, ``energy/positions``, that neither data nor kept scales have."""
    for name in names:
        target = name.rpartition("/")[0]
        found = [one[target].gradients for one in (layouts, kept) if target in one]
        known = sorted({f"{target}/{parameter}" for gradients in found for parameter in gradients})
        if target in layouts and name not in known:
            raise ValueError(
                f"units names '{name}', a gradient that the data do not have; "
                f"{did_you_mean(name, known)}"
            )


def choose_targets(
    requested: Iterable[str] | None, tensors: Mapping[str, TensorMap]
) -> dict[str, TensorMap]:
    """The targets to fit among the tensors of a batch; ``None``: all that are no auxiliary ones.

    Raises:
        TypeError: for a target that is not a TensorMap, also if it came beside them in a batch that
            was unpacked, unless targets are requested.
    """
    if requested is None:
        check_plain_values(tensors)
        chosen = {name: tensor for name, tensor in tensors.items() if not is_auxiliary(name)}
    else:
        chosen = {name: tensor for name, tensor in tensors.items() if name in requested}
    for name, tensor in chosen.items():
        if not is_tensormap(tensor):
            raise _not_a_tensormap(f"target '{name}'", tensor)
    return chosen


def check_mask(name: str, mask: Any) -> None:
    """Refuse a mask that is not a TensorMap."""
    if not is_tensormap(mask):
        raise _not_a_tensormap(f"mask of target '{name}'", mask)


def _not_a_tensormap(what: str, value: Any) -> TypeError:
    return TypeError(f"{what}: expected a TensorMap, got {type(value).__name__}")
