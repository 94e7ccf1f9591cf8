"""The data pass without a module: statistics of a datamodule, or of a shard of it."""

import warnings
from typing import Any, NoReturn

import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from typing_extensions import override

from ..data_pass import FitProcesses, LoaderRecord, TrainingData
from ..fitting import DataPart, ScaleAccumulator
from ..scaling import Scaler
from ..steps import TargetScalingMixin, scaler_of
from .fit_decision import FitDecision
from .module_in_pass import ModuleInPass
from .target_scaler import TargetScaler

# Lightning's, about what the stand-in for the module does not have.
IRRELEVANT = (
    "`LightningModule.configure_optimizers` returned `None`",
    "You defined a `validation_step` but have no `val_dataloader`",
    "The '.*_dataloader' does not have many workers",
    "GPU available but not used",
)


def collect_statistics(
    data: LightningDataModule, callback: TargetScaler, shard: int = 0, n_shards: int = 1
) -> ScaleAccumulator:
    """Collect the statistics that a fit of the scales needs, on the CPU and without the module.

    The data pass is that of a Trainer with the callback in one process: the training loader, the
    transfer hooks of the datamodule, and the settings of the callback. Batches must be in one of
    the forms that :meth:`.TargetScalingMixin.unpack_batch` reads by itself.

    Args:
        data: datamodule with the training data. If it has an attribute ``targets_only``, it is set
            to ``True`` (unless there is an additive module), and the systems of its batches need
            not have neighbor lists.
        callback: settings of the fit.
        shard: index of the shard to read, from 0.
        n_shards: number of equal shards into which the samples are divided.

    Returns:
        The accumulator, with ``parts`` if the data can be identified; see
        ``StatisticsCache`` for how a training uses it.

    Raises:
        ValueError: if there is no such shard, the training loader is a stream and is to be
            divided, a sample of a shard is asked for, or the data do not suit the settings.
    """
    part = DataPart({}, shard, n_shards)
    if n_shards > 1 and callback.relative_error is not None:
        raise ValueError(
            f"shards={n_shards}: expected shards that are read in whole, got relative_error="
            f"{callback.relative_error}; leave out one of them"
        )
    if callback.additive is None and hasattr(data, "targets_only"):
        data.targets_only = True
    collecting = _Collecting(callback, part)
    with warnings.catch_warnings():
        for message in IRRELEVANT:
            warnings.filterwarnings("ignore", message)
        trainer = Trainer(
            accelerator="cpu",
            devices=1,
            max_epochs=0,
            limit_val_batches=0,
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            callbacks=[collecting],
            # A task of a cluster is a process of its own here.
            plugins=[LightningEnvironment()],
        )
        trainer.fit(_NoModule(), data)
    return collecting.accumulator


class _Collecting(Callback):
    """Fills an accumulator when the fit starts."""

    def __init__(self, callback: TargetScaler, part: DataPart) -> None:
        self._settings = callback
        self._part = part
        self.accumulator = ScaleAccumulator()

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called when fit begins. Reads the data."""
        assert isinstance(pl_module, TargetScalingMixin)
        request, declaration = self._settings, self._settings.declaration
        scaler_of(pl_module).declare(declaration)
        decision = FitDecision(request, keep_existing=False, targets=request.targets)
        accumulator = decision.accumulator(Scaler(), torch.device("cpu"))
        in_pass, processes = ModuleInPass(trainer, pl_module), FitProcesses()
        record = LoaderRecord(trainer)
        data = TrainingData(trainer, in_pass.unpack, processes, record, request.limit_batches)
        shard = (self._part.shard, self._part.n_shards)
        with in_pass.scaler_in_use():
            found = data.identify(accumulator, declaration)
            self.accumulator, _ = data.read(accumulator, shard, request.relative_error)
        if found is not None:
            self.accumulator.parts = (DataPart(found, *shard),)


class _NoModule(TargetScalingMixin, LightningModule):
    """Stands for the module in a pass over the data alone."""

    @override
    def forward(self, *args: Any) -> NoReturn:
        raise NotImplementedError("there is no module in a pass over the data alone")

    @override
    def unpack_batch(self, batch: Any) -> Any:
        try:
            return super().unpack_batch(batch)
        except TypeError as error:
            message = str(error).partition("; override unpack_batch")[0]
            raise TypeError(
                f"{message}; there is no module here whose unpack_batch could take it apart, so "
                "let the loader give batches of this form, or fit in the training itself, with "
                "TargetScaler(cache=...)"
            ) from error

    @override
    def on_fit_start(self) -> None:
        """Called when fit begins. Needs no scales, as the mixin does."""

    @override
    def configure_optimizers(self) -> None:
        """No optimizer: nothing is trained."""
