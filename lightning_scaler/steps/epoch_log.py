"""Metrics that belong to one run, and are given to Lightning once per epoch, not in every step."""

import weakref
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from lightning.pytorch import LightningModule
from torchmetrics import Metric

from ..metrics import SharedSums

T = TypeVar("T")


class RunMetrics(torch.nn.ModuleDict):
    """Metrics by key, and what was found about them for a stage and a loader.

    Args:
        attribute: name of the attribute under which the module holds this one.
    """

    def __init__(self, attribute: str) -> None:
        super().__init__()
        self._attribute = attribute
        self._run: weakref.ref[Any] | None = None
        self._found: dict[tuple[str, int], tuple[Any, Any]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_run": None, "_found": {}}

    def find(self, stage: str, dataloader_idx: int, depends_on: Any, make: Callable[[], T]) -> T:
        """What is made for a stage and a loader, made again when what it depends on has changed."""
        # Made in every step, it took a third of the time of its metrics.
        known = self._found.get((stage, dataloader_idx))
        if known is None or known[0] != depends_on:
            known = self._found[stage, dataloader_idx] = depends_on, make()
        found: T = known[1]
        return found

    def forget_other_runs(self, module: LightningModule) -> None:
        """Reset the sums of a run that was interrupted before Lightning could do so."""
        strategy = module.trainer.strategy
        if self._run is None or self._run() is not strategy:
            self._run = weakref.ref(strategy)
            for metric in self.values():
                if isinstance(metric, SharedSums):
                    metric.reset()


class EpochLog:
    """Logs metrics of a module for the end of the epoch; one object serves one step.

    Lightning computes a logged metric at the end of an epoch, however often it was logged before,
    and then resets it. Logging all of them in every step takes longer than all conversions of it.

    Args:
        module: module that is being trained or evaluated.
        attribute: name under which the module holds the metrics.

    Attributes:
        several_processes: whether there are processes that reduce the metrics together.
    """

    def __init__(self, module: LightningModule, attribute: str) -> None:
        self._module, self._attribute = module, attribute
        trainer = module.trainer
        self.several_processes = trainer.world_size > 1
        self._held: dict[str, Any] = getattr(trainer, "_results", None) or {}
        # The keys of Lightning's results, which are not public. If these change, nothing is found
        # under them, and metrics are logged in every step.
        self._prefix = f"{module._current_fx_name}."
        index = getattr(self._held, "dataloader_idx", None)
        self._suffix = "" if index is None else f".{index}"

    def __call__(self, name: str, metric: Metric, key: str, **options: Any) -> None:
        """Log a metric, unless Lightning has it and has neither computed nor reset it since.

        Args:
            name: logged name.
            metric: metric that has been updated.
            key: where the module holds it, below the attribute.
            **options: further arguments of ``log``.
        """
        held = self._held.get(f"{self._prefix}{name}{self._suffix}")
        if held is None or held.value is not metric or held.has_reset or held._computed is not None:
            attribute = f"{self._attribute}.{key}"
            self._module.log(
                name, metric, on_step=False, on_epoch=True, metric_attribute=attribute, **options
            )
