"""The arguments of TargetScaler, checked and read; nothing here needs data or a Trainer."""

import inspect
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from ..baselines import BaselineSetting, class_name, parse_baseline
from ..fitting import ScaleAccumulator
from ..reports import check_matplotlib
from ..settings import (
    Against,
    Numbers,
    RefitPart,
    Settings,
    SystemLabels,
    UnseenTypes,
    check_arguments,
    check_refit,
    did_you_mean,
    parse_fixed_scales,
    parse_loss_weights,
)


class FitSettings:
    """The settings of a fit of the scales; see :class:`TargetScaler` for the arguments.

    The attributes have the names of the arguments, and these values:

    Attributes:
        targets: names of the targets to fit; ``None``: all.
        declaration: declared targets, if they are plain tensors.
        fixed_scales: per-target scales by target name.
        intensive_targets: names of the targets that are not divided by the number of atoms.
        baseline: composition baseline, with its fixed weights; ``None``: no baseline.
        additive: additive module that is subtracted before the baseline, if any.
        output_layers: by target name the submodule that absorbs a new scale.
        cache: statistics file to use, and to write; ``None``: none.
        units: units in the data by target or gradient, where they are known.
    """

    def __init__(
        self,
        enabled: bool = True,
        targets: Sequence[str] | Mapping[str, Any] | None = None,
        fixed_scales: Numbers | None = None,
        intensive_targets: Iterable[str] = (),
        baseline: BaselineSetting = "composition",
        fixed_baseline: Numbers | None = None,
        unseen_types: UnseenTypes = "error",
        system_labels: SystemLabels = "auto",
        limit_batches: int | None = None,
        relative_error: float | None = None,
        refit: bool | RefitPart = False,
        against: Against = "targets",
        output_layers: Mapping[str, str] | None = None,
        loss_weights: Numbers | None = None,
        balance_loss: bool | None = None,
        cache: str | os.PathLike[str] | None = None,
        batch: Mapping[str, Any] | None = None,
        at: str = "forward",
        report: bool = False,
        units: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        check_arguments(
            unseen_types,
            limit_batches,
            relative_error,
            balance_loss,
            enabled=enabled,
            report=report,
        )
        if report:
            check_matplotlib("reports of a fit")
        self.report = report
        self.enabled = enabled
        self.fixed_scales = parse_fixed_scales(fixed_scales)
        self._baseline_setting = baseline
        self.baseline, self.additive = parse_baseline(baseline, fixed_baseline)
        check_refit(refit, against, output_layers, self.baseline, relative_error)
        self.unseen_types: UnseenTypes = unseen_types
        self.limit_batches = limit_batches
        self.relative_error = relative_error
        self.refit, self.against = refit, against
        self.output_layers = dict(output_layers or {})
        self.cache = None if cache is None else os.fspath(cache)
        # The accumulator checks these settings and converts them to tuples and sets.
        checked = ScaleAccumulator(
            targets, intensive_targets, self.baseline, system_labels, batch=batch, units=units
        )
        self.declaration, self.units = checked.declaration, checked.units
        self.at = at
        self.targets, self.intensive_targets = checked.targets, checked.intensive_targets
        self.system_labels: SystemLabels = system_labels
        self.loss_weights = parse_loss_weights(loss_weights)
        self._check_weighted_targets()
        self.balance_loss = balance_loss

    @property
    def settings(self) -> Settings:
        """The settings that a scaler stores."""
        return Settings(
            system_labels=self.system_labels,
            unseen_types=self.unseen_types,
            enabled=self.enabled,
            baseline="none" if self.baseline is None else "composition",
            loss_weights=self.loss_weights or {},
            balance_loss=self.balance_loss is not False,
        )

    @property
    def part(self) -> RefitPart | None:
        """The part of the scales that is fitted again, if not all or nothing is."""
        return self.refit if isinstance(self.refit, str) else None

    @property
    def fixed_baseline(self) -> dict[str, dict[int, float]]:
        """Fixed contributions per atomic type, by target name."""
        return {} if self.baseline is None else dict(self.baseline.fixed)

    @property
    def without_baseline(self) -> tuple[str, ...]:
        """Names of the targets that are excluded from the composition baseline."""
        return () if self.baseline is None else tuple(self.baseline.excluded)

    @property
    def additive_name(self) -> str | None:
        """The class name of the additive module."""
        return None if self.additive is None else class_name(self.additive)

    def by_setting(self) -> dict[str, Any]:
        """The values that must be the same on all processes, by name."""
        return {
            "settings": self.settings,
            "fixed_scales": self.fixed_scales,
            "fixed_baseline": self.fixed_baseline,
            "targets without a baseline": self.without_baseline,
            "additive module": self.additive_name,
            "intensive_targets": sorted(self.intensive_targets),
            "limit_batches": self.limit_batches,
            "relative_error": self.relative_error,
            "declared targets": self.declaration and self.declaration.state(),
            "refit": self.refit,
            "against": self.against,
            "output_layers": self.output_layers,
            "cache": "none" if self.cache is None else "a file",
            "report": self.report,
            "units": self.units,
        }

    def _check_weighted_targets(self) -> None:
        """Check that the weights of the loss are of targets to fit, as far as these are known."""
        if self.targets is None:
            return
        for term in self.loss_weights or ():
            if any(term == name or term.startswith(f"{name}/") for name in self.targets):
                continue
            gradient = self.declaration and self.declaration.gradient_terms.get(term)
            way_out = did_you_mean(term.split("/")[0], self.targets)
            if gradient:
                way_out = f"as a gradient, '{term}' is the term '{gradient}'"
            raise ValueError(
                f"loss_weights names '{term}', whose target is not in targets=[…]; {way_out}"
            )

    def __repr__(self) -> str:
        """The arguments that are not the defaults, as they were read."""
        declared = self.declaration
        values: dict[str, Any] = {
            **vars(self),
            "targets": self.targets if declared is None else dict(declared.targets),
            "intensive_targets": tuple(sorted(self.intensive_targets)),
            "baseline": self._baseline_setting,
            # Empty dicts, unless they were set.
            "fixed_scales": self.fixed_scales or None,
            "fixed_baseline": self.fixed_baseline or None,
            "output_layers": self.output_layers or None,
            "batch": (declared and dict(declared.batch)) or None,
            "units": self.units or None,
        }
        arguments = inspect.signature(FitSettings).parameters.values()
        changed = (
            f"{argument.name}={_short_repr(values[argument.name])}"
            for argument in arguments
            if values[argument.name] != argument.default
        )
        return f"{type(self).__name__}({', '.join(changed)})"


# Python's error about an unknown argument names the class that users know.
FitSettings.__init__.__qualname__ = "TargetScaler.__init__"


def _short_repr(value: object) -> str:
    """The ``repr`` of a setting; modules with children are shown by their class alone."""
    if isinstance(value, torch.nn.Module) and next(value.children(), None) is not None:
        return f"{class_name(value)}(...)"
    return repr(value)
