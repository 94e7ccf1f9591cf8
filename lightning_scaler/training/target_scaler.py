"""The callback that fits the scales of a module before it trains."""

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Literal, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from rich.console import Console
from typing_extensions import override

from ..baselines import CompositionBaseline, FrozenModule, class_name
from ..scaling import ScaleAccumulator, Scaler
from ..settings import (
    Numbers,
    Settings,
    SystemLabels,
    UnseenTypes,
    check_choice,
    fixed_scales as plain_fixed_scales,
)
from ..tensors import digest
from .data_pass import read_training_data
from .fit_decision import check_restored
from .mixin import TargetScalingMixin
from .processes import Ranks, ranks_of


class TargetScaler(Callback):
    """Fits the scales and the baseline of a module's targets in one pass over the training data.

    The module is a ``LightningModule`` with the ``TargetScalingMixin``. The pass runs in
    ``on_fit_start``, before the sanity check, on all processes together, each sample once. Scales
    that a checkpoint brought are kept, and no data are read.

    Args:
        enabled: ``False`` sets every scale to 1; the baseline is removed all the same.
        targets: names that must be fitted, other TensorMaps are left alone; ``None``: all.
        fixed_scales: per-target scales instead of fitted ones, in the units of the data (per atom
            for extensive targets): a number, or a number per atomic type,
            ``{"energy": 0.5, "forces": {1: 0.2, 8: 1.1}}``.
        intensive_targets: per-structure targets that are not divided by the number of atoms.
        baseline: ``"composition"`` removes a contribution per atomic type, ``"none"`` nothing. A
            module such as :class:`ZBL` is frozen, and what it gives comes off before the
            composition; what it must be able to do tells :meth:`Scaler.set_additive`.
        fixed_baseline: contributions instead of fitted ones: ``{"energy": {1: -13.6}}``.
        unseen_types: what to do with types that are not in the training data: ``"error"``,
            ``"pooled"`` (take the RMS over all types) or ``"identity"``.
        system_labels: what ``system`` in the samples of targets is: ``"position"`` in the batch,
            ``"id"`` of the data set, or ``"auto"``.
        limit_batches: read only so many batches, spread evenly over the data; ``None``: all.
        refit: fit anew even if a checkpoint brought scales.

    Raises:
        TypeError: when the module lacks the mixin.
        ValueError: for data or settings that do not go together; see ``ScaleAccumulator``.

    Example:
        >>> TargetScaler(fixed_scales={"forces": {"1": 2, "8": 0.5}}).fixed_scales
        {'forces': {1: 2.0, 8: 0.5}}
    """

    def __init__(
        self,
        enabled: bool = True,
        targets: Sequence[str] | None = None,
        fixed_scales: Numbers | None = None,
        intensive_targets: Iterable[str] = (),
        baseline: Literal["composition", "none"] | torch.nn.Module = "composition",
        fixed_baseline: Numbers | None = None,
        unseen_types: UnseenTypes = "error",
        system_labels: SystemLabels = "auto",
        limit_batches: int | None = None,
        refit: bool = False,
    ) -> None:
        super().__init__()
        additive = None
        if isinstance(baseline, type):
            raise TypeError(
                "baseline: expected 'composition', 'none' or a module, got the class "
                f"{baseline.__name__}; write {baseline.__name__}()"
            )
        if isinstance(baseline, torch.nn.Module):
            additive, baseline = baseline, "composition"
        check_choice("baseline", baseline, Literal["composition", "none"])
        check_choice("unseen_types", unseen_types, UnseenTypes)
        if baseline == "none" and fixed_baseline:
            raise ValueError(
                "baseline='none' and fixed_baseline contradict each other; leave out one of them"
            )
        if limit_batches is not None and limit_batches < 1:
            raise ValueError(f"limit_batches: expected at least 1 batch, got {limit_batches}")
        self.enabled = enabled
        self.fixed_scales = plain_fixed_scales(fixed_scales)
        self.baseline = None if baseline == "none" else CompositionBaseline(fixed_baseline or {})
        self.additive = additive
        self.unseen_types: UnseenTypes = unseen_types
        self.limit_batches = limit_batches
        self.refit = refit
        # Checks its own settings, and gives a fresh one to every fit.
        empty = ScaleAccumulator(targets, intensive_targets, self.baseline, system_labels)
        self.targets, self.intensive_targets = empty.targets, empty.intensive_targets
        self.system_labels: SystemLabels = system_labels
        self._decided = False

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Beginning of everything: go before the callbacks that train in their ``on_fit_start``."""
        if not isinstance(pl_module, TargetScalingMixin):
            raise TypeError(
                "TargetScaler: expected a module with the TargetScalingMixin, got "
                f"{type(pl_module).__name__}; write class {type(pl_module).__name__}"
                "(TargetScalingMixin, LightningModule)"
            )
        if not isinstance(pl_module.scaler, Scaler):
            raise TypeError(
                f"TargetScaler: expected {type(pl_module).__name__}.scaler to be the Scaler of the "
                f"TargetScalingMixin, got {type(pl_module.scaler).__name__}; give your own "
                "attribute another name"
            )
        scaler = pl_module.scaler
        awaited = scaler.additive is not None and scaler.additive.needs_module(self.additive)
        if self.additive is not None and awaited:
            scaler.set_additive(self.additive)
        elif self.additive is not None and not scaler.fitted:
            # A checkpoint may have its weights.
            scaler.additive = FrozenModule(self.additive)
        self._decided = False
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        callbacks.insert(0, callbacks.pop(callbacks.index(self)))

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start of a fit: fit the scales, unless a checkpoint has yet to bring them."""
        if not trainer.strategy.restore_checkpoint_after_setup:
            self._fit_if_needed(trainer, pl_module)

    @override
    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Before the first validation: fit, where the strategy restored after ``on_fit_start``."""
        self._fit_if_needed(trainer, pl_module)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Before the first step: likewise, where there is no sanity check."""
        self._fit_if_needed(trainer, pl_module)

    def _fit_if_needed(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._decided:
            return
        self._decided = True
        module = cast(TargetScalingMixin, pl_module)
        with ranks_of(trainer) as ranks:
            fitted = self._fit_what_is_missing(trainer, module, ranks)
            if ranks.world_size > 1:
                ranks.check_equal(
                    {"the hash of the scales": digest(module.scaler.get_extra_state())},
                    "give all processes the same checkpoint or Scaler, and the same versions of "
                    "the packages",
                )
        if fitted and trainer.is_global_zero and trainer.progress_bar_callback is not None:
            for table in (module.scaler.table(), module.scaler.baselines_table()):
                if table is not None:
                    Console().print(table)

    def _fit_what_is_missing(
        self, trainer: Trainer, module: TargetScalingMixin, ranks: Ranks
    ) -> bool:
        """Fit, unless the module has all scales; tell whether it was needed."""
        scaler = module.scaler
        provisional = scaler.settings.provisional and not _quick(trainer)
        keep = scaler.fitted and not self.refit and not provisional
        names = self.targets
        if keep:
            fixed_baseline = {} if self.baseline is None else dict(self.baseline.fixed)
            check_restored(
                scaler,
                self._settings,
                self.targets or (),
                self.intensive_targets,
                self.fixed_scales,
                fixed_baseline,
                class_name(self.additive) if self.additive is not None else None,
            )
            names = tuple(name for name in self.targets or () if name not in scaler.targets)
        to_fit = "nothing" if keep and not names else "all targets" if names is None else names
        ranks.check_equal(
            {
                "what is to be fitted": to_fit,
                "the settings": self._settings,
                "fixed_scales": self.fixed_scales,
                "fixed_baseline": self.baseline and self.baseline.fixed,
                "the additive module": self.additive and class_name(self.additive),
                "intensive_targets": sorted(self.intensive_targets),
                "limit_batches": self.limit_batches,
            },
            "give all processes the same settings, and the same checkpoint or Scaler",
        )
        if to_fit == "nothing":
            return False
        additive = scaler.additive if keep else scaler.provided_module
        if self.additive is not None and not keep:
            additive = FrozenModule(self.additive)
        fitted = self._fit(trainer, module, names, additive, ranks)
        if not keep:
            scaler.targets = {}
        scaler.update(fitted)
        return True

    def _fit(
        self,
        trainer: Trainer,
        module: TargetScalingMixin,
        names: Sequence[str] | None,
        additive: FrozenModule | None,
        ranks: Ranks,
    ) -> Scaler:
        def asked_for(name: str) -> bool:
            # All settings but those of targets whose scales are kept.
            return names is None or name in names or name not in (self.targets or ())

        baseline = self.baseline and CompositionBaseline(
            {name: numbers for name, numbers in self.baseline.fixed.items() if asked_for(name)}
        )
        intensive_targets = [name for name in self.intensive_targets if asked_for(name)]
        accumulator = ScaleAccumulator(
            names,
            intensive_targets,
            baseline,
            self.system_labels,
            additive and additive.to(module.device),
        )
        fixed = {name: scale for name, scale in self.fixed_scales.items() if asked_for(name)}
        if fixed and names is not None:
            # One batch shows the layouts, which is all that is needed where every number is given.
            read_training_data(trainer, module, accumulator, ranks, limit_batches=1)
        if not accumulator.all_fixed(fixed):
            accumulator = accumulator.fresh()
            read_training_data(trainer, module, accumulator, ranks, self.limit_batches)
        unseen_types: UnseenTypes = "pooled" if _quick(trainer) else self.unseen_types
        if _quick(trainer):
            rank_zero_info(
                "fast_dev_run: the target scales come from a few batches, and types that are not "
                "in them take the RMS over all types"
            )
        with warnings.catch_warnings():
            if not trainer.is_global_zero:
                warnings.simplefilter("ignore")
            scaler = accumulator.compute(fixed, unseen_types, self.enabled)
        scaler.settings = replace(scaler.settings, provisional=_quick(trainer))
        return scaler

    @property
    def _settings(self) -> Settings:
        return Settings(
            system_labels=self.system_labels,
            unseen_types=self.unseen_types,
            enabled=self.enabled,
            baseline="none" if self.baseline is None else "composition",
        )


def _quick(trainer: Trainer) -> bool:
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]
