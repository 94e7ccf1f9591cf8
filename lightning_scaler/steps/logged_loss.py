"""The loss and its terms, as the mixin logs them."""

from functools import partial
from typing import Any, NamedTuple, cast

import torch
from lightning.pytorch import LightningModule

from ..metrics import MeanOfSums, SharedSums
from ..scaling import Scaler, term_name
from .epoch_log import EpochLog, RunMetrics
from .loss import LossTerms
from .metric_scopes import metric_scopes

# The name of the loss among its terms, which are named after targets.
LOSS = ""


class _LossMetrics(NamedTuple):
    """The means of the loss and its terms of a stage and a loader.

    Attributes:
        sums: sums that all of them share.
        means: logged name, key and mean.
    """

    sums: SharedSums
    means: list[tuple[str, str, MeanOfSums]]


class LoggedLoss(RunMetrics):
    """The means of the loss and its terms by stage and loader, which share their sums."""

    def log(
        self,
        module: LightningModule,
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
        self.forget_other_runs(module)
        scaler: Scaler = cast(Any, module).scaler
        make = partial(self._make, scaler, stage, dataloader_idx, module.device)
        metrics = self.find(stage, dataloader_idx, [*scaler.targets.values()], make)
        # Lightning's own mean rounds the number of systems per process to an integer.
        names, sums = _weighted(loss, n_systems, terms, n_with_terms, module.device)
        if stage != "train" and terms is not None:
            # An evaluation batch whose values are all missing has no loss, not one of zero.
            sums[0] *= terms.present.any().to(sums)
        metrics.sums.update(names, sums)
        log = EpochLog(module, self._attribute)
        for name, key, mean in metrics.means:
            # As with other metrics: processes reduce them together.
            together = log.several_processes and (name == f"{stage}/loss" or terms is not None)
            if mean.update_called or together:
                log(name, mean, key, prog_bar=name == f"{stage}/loss")

    def _make(
        self, scaler: Scaler, stage: str, dataloader_idx: int, device: torch.device
    ) -> _LossMetrics:
        """The means of the loss and its terms, with the sums of the same terms from before."""
        paths = {LOSS: f"{stage}/loss"}
        for name, scales in scaler.targets.items():
            for scope in metric_scopes(scales.layout, scales.extensive, ()):
                paths[term_name(name, scope.gradient or "")] = f"{stage}/loss/{scope.path}"
        # No target has such keys: theirs begin with the stage alone.
        key = f"{stage}_loss_sums/{dataloader_idx}"
        if key not in self or cast(SharedSums, self[key]).names != list(paths):
            self[key] = SharedSums(list(paths), 2).to(device)
        sums, means = cast(SharedSums, self[key]), []
        for term, path in paths.items():
            of_term = f"{stage}_loss/{dataloader_idx}{path.removeprefix(f'{stage}/loss')}"
            of_term = of_term.replace(".", "_")
            self[of_term] = MeanOfSums(sums, [term])
            means.append((path, of_term, cast(MeanOfSums, self[of_term])))
        return _LossMetrics(sums, means)


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
