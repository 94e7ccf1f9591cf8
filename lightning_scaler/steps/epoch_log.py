"""Metrics that belong to one run, logged once per epoch."""

import re
import weakref
from collections.abc import Callable, Iterable
from functools import cache
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

    def find(
        self,
        module: LightningModule,
        stage: str,
        dataloader_idx: int,
        depends_on: Any,
        make: Callable[[], T],
    ) -> T:
        """What is made for a stage and a loader, made again when what it depends on has changed.

        Sums of a run that was interrupted before Lightning could reset them are reset first.
        """
        strategy = module.trainer.strategy
        if self._run is None or self._run() is not strategy:
            self._run = weakref.ref(strategy)
            for metric in self.values():
                if isinstance(metric, SharedSums):
                    metric.reset()
        # Made in every step, it took a third of the time of its metrics.
        known = self._found.get((stage, dataloader_idx))
        if known is None or known[0] != depends_on:
            known = self._found[stage, dataloader_idx] = depends_on, make()
        found: T = known[1]
        return found

    def log_for_epoch(
        self,
        module: LightningModule,
        metrics: Iterable[tuple[str, str, Metric]],
        prog_bar: str | None = None,
    ) -> None:
        """Log metrics for the end of the epoch, unless Lightning has them already.

        Lightning computes a logged metric at the end of an epoch, however often it was logged
        before, and then resets it. Logging all of them in every step takes longer than all
        conversions of it.

        Args:
            module: module that is being trained or evaluated.
            metrics: logged name, key and metric of each that was updated in this step.
            prog_bar: the logged name that the progress bar shows, if there is one.
        """
        known: dict[str, Any] = getattr(module.trainer, "_results", None) or {}
        # The keys of Lightning's results, which are not public. If these change, nothing is found
        # under them, and metrics are logged in every step.
        index = getattr(known, "dataloader_idx", None)
        prefix, suffix = f"{module._current_fx_name}.", "" if index is None else f".{index}"
        for name, key, metric in metrics:
            held = known.get(f"{prefix}{name}{suffix}")
            # One of a run that was interrupted has been reset, but was never computed.
            if (
                held is None
                or held.value is not metric
                or held.has_reset
                or held._computed is not None
            ):
                module.log(
                    name,
                    metric,
                    on_step=False,
                    on_epoch=True,
                    prog_bar=name == prog_bar,
                    metric_attribute=f"{self._attribute}.{key}",
                )


@cache
def logged_path(name: str) -> str:
    """The name of a target in logged names: ``"mtt/dipole"`` for ``"mtt::dipole"``.

    ``ModelCheckpoint`` cannot read colons and brackets in the fields of its ``filename``.
    """
    return re.sub(r"[\[\]{}]", "_", re.sub(r":+", "/", name))
