"""The loss and its terms, as the mixin logs them."""

from functools import partial
from typing import TYPE_CHECKING, cast

import torch

from ..metrics import MeanOfSums, SharedSums
from ..scaling import term_name
from .epoch_log import RunMetrics, logged_path
from .loss import LossTerms

if TYPE_CHECKING:
    from .mixin import TargetScalingMixin

# The name of the loss among its terms, which are named after targets.
LOSS = ""


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
