"""Metrics that belong to one run, logged once per epoch; those of the loss and its terms."""

import re
import weakref
from collections.abc import Callable, Iterable
from functools import cache, partial
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from lightning.pytorch import LightningModule
from torchmetrics import Metric

from ..metrics import MeanOfSums, SharedSums
from ..scaling import term_name
from .loss import LossTerms

if TYPE_CHECKING:
    from .mixin import TargetScalingMixin

T = TypeVar("T")

# The name of the loss among its terms, which are named after targets.
LOSS = ""


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


class LoggedLoss(RunMetrics):
    """The means of the loss and its terms by stage and loader, which share their sums."""

    def log(
        self,
        module: "TargetScalingMixin",
        stage: str,
        dataloader_idx: int,
        loss: torch.Tensor,
        n_systems: int,
        terms: LossTerms | None,
        n_with_terms: int,
    ) -> None:
        """Log the mean loss over batches, and the mean of each term over the batches that have it.

        Args:
            module: module that logs the loss, with its scaler.
            stage: ``"train"``, ``"val"`` or ``"test"``.
            dataloader_idx: index of the loader.
            loss: scalar loss of the batch.
            n_systems: number of systems in the batch, without padding: the weight of the loss.
            terms: terms of the loss, if it has any.
            n_with_terms: the same number, as the weight of those terms that are present.
        """
        make = partial(self._make, module, stage, dataloader_idx)
        depends_on = [*module.scaler.targets.values()]
        sums, means = self.find(module, stage, dataloader_idx, depends_on, make)
        # Lightning's own mean rounds the number of systems per process to an integer.
        names, weighted = _weighted(loss, n_systems, terms, n_with_terms, module.device)
        if stage != "train" and terms is not None:
            # An evaluation batch whose values are all missing has no loss, not one of zero.
            weighted[0] *= terms.present.any().to(weighted)
        sums.update(names, weighted)
        # As with other metrics: processes reduce them together.
        together = module.trainer.world_size > 1
        whole = f"{stage}/loss"
        updated = [
            (name, key, mean)
            for name, key, mean in means
            if mean.update_called or (together and (name == whole or terms is not None))
        ]
        self.log_for_epoch(module, updated, prog_bar=whole)

    def _make(
        self, module: "TargetScalingMixin", stage: str, dataloader_idx: int
    ) -> tuple[SharedSums, list[tuple[str, str, MeanOfSums]]]:
        """The sums of the loss and its terms, kept if these are the same, and their means.

        Returns:
            The sums; logged name, key and mean of the loss and of each term.
        """
        paths = {LOSS: f"{stage}/loss"}
        for name, scales in module.scaler.targets.items():
            for gradient in ("", *scales.layout.gradients):
                path = term_name(logged_path(name), gradient)
                paths[term_name(name, gradient)] = f"{stage}/loss/{path}"
        # No target has such keys: theirs begin with the stage alone.
        key = f"{stage}_loss_sums/{dataloader_idx}"
        if key not in self or cast(SharedSums, self[key]).names != list(paths):
            self[key] = SharedSums(list(paths), 2).to(module.device)
        sums, means = cast(SharedSums, self[key]), []
        for term, path in paths.items():
            of_term = f"{stage}_loss/{dataloader_idx}{path.removeprefix(f'{stage}/loss')}"
            of_term = of_term.replace(".", "_")
            self[of_term] = MeanOfSums(sums, [term])
            means.append((path, of_term, cast(MeanOfSums, self[of_term])))
        return sums, means


def _weighted(
    loss: torch.Tensor,
    n_systems: int,
    terms: LossTerms | None,
    n_with_terms: int,
    device: torch.device,
) -> tuple[list[str], torch.Tensor]:
    """Names, and weighted values with weights on a device, of a loss and its terms."""
    # The loss of a batch without targets, and its terms, have no device.
    names, values = [LOSS], loss.detach().to(device).double().reshape(1)
    weights = torch.full_like(values, n_systems)
    if terms is not None:
        names += terms.names
        values = torch.cat([values, terms.errors.to(values)])
        weights = torch.cat([weights, n_with_terms * terms.present.to(values)])
    return names, torch.stack([weights * values, weights], 1)


@cache
def logged_path(name: str) -> str:
    """The name of a target in logged names: ``"mtt/dipole"`` for ``"mtt::dipole"``.

    ``ModelCheckpoint`` cannot read colons and brackets in the fields of its ``filename``.
    """
    return re.sub(r"[\[\]{}]", "_", re.sub(r":+", "/", name))
