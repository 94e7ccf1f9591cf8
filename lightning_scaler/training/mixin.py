"""The mixin that makes a LightningModule train in loss space and report in physical units."""

import warnings
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import LightningModule
from metatensor.torch import TensorMap, detach
from torchmetrics import MeanAbsoluteError, MeanSquaredError, MetricCollection
from typing_extensions import override

from ..batches import Atoms, HasTypes, move_to_device, read_atoms, unpack
from ..metrics import physical_pairs
from ..scaling import Scaler, between_positions, predictions_to_loss, targets_to_loss
from .loss import mean_squared_error, zero_loss
from .metric_logging import LoggedMetrics, parts_of_target
from .padding import repeated_systems, without_systems
from .samplers import flattened

# The mixin uses what LightningModule offers and must stand before it among the bases.
if TYPE_CHECKING:
    _Module = LightningModule
else:
    _Module = object

CHECKPOINT_KEY = "target_scaler"

Tensors = Mapping[str, TensorMap]
Systems = Sequence[HasTypes] | Atoms


class TargetScalingMixin(_Module):
    """Steps of a LightningModule whose ``forward`` gives predictions in model space.

    The mixin owns the :class:`Scaler`, so that it is moved, saved and restored with the module;
    the ``TargetScaler`` callback fits it. Targets go to loss space (baseline removed, divided by
    the per-target scale), predictions come there by the per-property scale; metrics and
    ``predict_step`` are in the units of the data.

    Evaluation runs without gradients but outside inference mode: a ``forward`` that needs autograd
    (forces) switches it on by ``torch.enable_grad()``.

    Attributes:
        scaler: the scales, unfitted until the callback has run or a checkpoint is loaded.
        metrics_per_block: names of targets whose metrics are also logged for every block.

    Raises:
        TypeError: when a class has the mixin after ``LightningModule`` among its bases.

    Example:
        >>> from lightning.pytorch import LightningModule
        >>> class Net(TargetScalingMixin, LightningModule):
        ...     def forward(self, systems): ...
        >>> Net().scaler
        Scaler(not fitted)
    """

    metrics_per_block: Sequence[str] = ()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Said by Lightning to every user of a datamodule, and by torchmetrics to a process whose
        # batches lacked a target; both are meant to be.
        for message in (
            "You have overridden `transfer_batch_to_device` in `LightningModule`",
            "The ``compute`` method of metric .* was called before the ``update`` method",
        ):
            warnings.filterwarnings("ignore", message)
        self.scaler = Scaler()
        self._scaling_metrics = LoggedMetrics("_scaling_metrics")
        self._scaling_batch_idx = 0

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Refuse the wrong order of bases, which would leave Lightning without these steps."""
        super().__init_subclass__(**kwargs)
        order = cls.__mro__
        if LightningModule in order and order.index(LightningModule) < order.index(
            TargetScalingMixin
        ):
            raise TypeError(
                f"class {cls.__name__}: expected TargetScalingMixin before LightningModule among "
                f"the bases, got ({', '.join(base.__name__ for base in cls.__bases__)}); write "
                f"class {cls.__name__}(TargetScalingMixin, LightningModule)"
            )

    # What a user may override.

    def unpack_batch(self, batch: Any) -> tuple[Sequence[HasTypes], Tensors, Tensors]:
        """Systems, targets and masks (by target name) of a batch; see :func:`batches.unpack`."""
        return unpack(batch)

    def compute_loss(self, predictions: Tensors, targets: Tensors) -> torch.Tensor:
        """The mean over targets and their gradients of the mean squared error, in loss space.

        Args:
            predictions: loss space, in the rows of the targets; per atom where extensive.
            targets: likewise, NaN where missing.
        """
        return mean_squared_error(predictions, targets)

    def configure_metrics(self) -> MetricCollection:
        """The metrics of every target, in physical units; by default MAE and RMSE.

        Each target, stage and loader gets copies.
        """
        return MetricCollection(
            {"mae": MeanAbsoluteError(), "rmse": MeanSquaredError(squared=False)}
        )

    # The parts of a step.

    def targets_to_loss(
        self, systems: Systems, targets: Tensors, masks: Tensors | None = None
    ) -> dict[str, TensorMap]:
        """Targets in loss space, per atom where extensive, in the module's floating dtype.

        Args:
            systems: of the batch (or their :class:`Atoms`, read once for all parts of a step).
            targets: physical space, by target name.
            masks: by target name; ``False`` (or 0) where an entry is missing.

        Masked entries are NaN and ``system`` labels are positions in the batch. TensorMaps without
        scales pass through untouched.
        """
        self._check_scales()
        return targets_to_loss(self.scaler, systems, targets, masks, self._scaling_dtype())

    def predictions_to_loss(
        self, systems: Systems, predictions: Tensors, targets: Tensors
    ) -> dict[str, TensorMap]:
        """Predictions in loss space, in the rows of the targets that the batch has.

        Args:
            systems: of the batch.
            predictions: model space, by target name, ``system`` being the position in the batch.
            targets: of :meth:`targets_to_loss`.

        Raises:
            ValueError: for a target of the batch without prediction, or without scales.
        """
        self._check_scales()
        return predictions_to_loss(self.scaler, systems, predictions, targets)

    def update_metrics(
        self,
        stage: str,
        systems: Systems,
        predictions: Tensors,
        targets: Tensors,
        dataloader_idx: int = 0,
    ) -> None:
        """Take a batch into the metrics of a stage and log them as ``val/energy/rmse_per_atom``.

        In validation and test, systems that Lightning's sampler repeats, so that all processes
        have equally many, are left out: each sample counts once, on any number of processes.

        Args:
            stage: ``"train"``, ``"val"`` or ``"test"``.
            systems: of the batch.
            predictions: of :meth:`predictions_to_loss`.
            targets: of :meth:`targets_to_loss`.
            dataloader_idx: which of several loaders.
        """
        atoms = read_atoms(systems)
        repeated = self._repeated_systems(stage, len(atoms), dataloader_idx)
        predictions, targets = without_systems(predictions, targets, repeated, len(atoms))
        pairs = physical_pairs(self.scaler, atoms, predictions, targets)
        for name, scales in self.scaler.targets.items():
            for part in parts_of_target(scales.layout, scales.extensive, self.metrics_per_block):
                self._scaling_metrics.log_part(
                    self, stage, dataloader_idx, part, pairs.get(name, []), len(atoms)
                )

    # What Lightning calls.

    @override
    def on_fit_start(self) -> None:
        """Start of a fit, after the callbacks: the scales must be there."""
        if not self.trainer.strategy.restore_checkpoint_after_setup:
            self._check_scales()

    @override
    def transfer_batch_to_device(
        self, batch: Any, device: torch.device, dataloader_idx: int
    ) -> Any:
        """Every batch: Lightning moves tensors, this moves TensorMaps and systems too."""
        with torch.inference_mode(False):
            batch = super().transfer_batch_to_device(batch, device, dataloader_idx)
            return move_to_device(batch, device, self._scaling_dtype())

    @override
    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        """Every training batch: loss in loss space, metrics in physical units."""
        return self._scaling_step("train", batch)

    @override
    def on_validation_batch_start(
        self, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Before every validation batch: remember which one, to tell repeated samples."""
        super().on_validation_batch_start(batch, batch_idx, dataloader_idx)
        self._scaling_batch_idx = batch_idx

    @override
    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Every validation batch: as in training, without gradients."""
        with torch.inference_mode(False), torch.no_grad():
            self._scaling_step("val", batch, dataloader_idx)

    @override
    def on_test_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Before every test batch: likewise."""
        super().on_test_batch_start(batch, batch_idx, dataloader_idx)
        self._scaling_batch_idx = batch_idx

    @override
    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Every test batch: as in validation."""
        with torch.inference_mode(False), torch.no_grad():
            self._scaling_step("test", batch, dataloader_idx)

    @override
    def predict_step(
        self, batch: Any, batch_idx: int = 0, dataloader_idx: int = 0
    ) -> dict[str, TensorMap]:
        """Every batch to predict: physical units, the baseline added; no targets needed."""
        with torch.inference_mode(False), torch.no_grad():
            self._check_scales()
            systems = self.unpack_batch(batch)[0]
            predictions = self(systems)
            atoms = read_atoms(systems)
            physical = between_positions(self.scaler, atoms, predictions, "model", "physical")
            # Lightning brings predictions to the CPU, but not a TensorMap.
            return {name: detach(tensor).to(device="cpu") for name, tensor in physical.items()}

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Every checkpoint: callbacks that average weights save a module from before the fit.

        An override of this hook must call ``super().on_save_checkpoint(checkpoint)``.
        """
        super().on_save_checkpoint(checkpoint)
        state = self.scaler.get_extra_state()
        checkpoint[CHECKPOINT_KEY] = state
        if "scaler._extra_state" in checkpoint.get("state_dict", {}):
            checkpoint["state_dict"]["scaler._extra_state"] = state

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Every checkpoint: strategies that shard the state leave out what is no tensor."""
        super().on_load_checkpoint(checkpoint)
        if CHECKPOINT_KEY in checkpoint:
            self.scaler.set_extra_state(checkpoint[CHECKPOINT_KEY])

    def _scaling_step(self, stage: str, batch: Any, dataloader_idx: int = 0) -> torch.Tensor:
        systems, targets, masks = self.unpack_batch(batch)
        atoms = read_atoms(systems)
        targets = self.targets_to_loss(atoms, targets, masks)
        raw = self(systems)
        predictions = self.predictions_to_loss(atoms, raw, targets)
        repeated = self._repeated_systems(stage, len(atoms), dataloader_idx)
        counted = without_systems(predictions, targets, repeated, len(atoms))
        n_counted = len(atoms) - len(repeated)
        # Nothing but repeats: no loss of one's own has to cope with an empty batch.
        loss = torch.zeros(()) if repeated and not n_counted else self.compute_loss(*counted)
        unused = {name: tensor for name, tensor in raw.items() if name not in predictions}
        if stage == "train" and unused:
            # Weights of targets that the batch lacks need a gradient, or DDP waits for it.
            loss = loss + zero_loss(unused)
        self._scaling_metrics.log_loss(self, stage, dataloader_idx, loss, n_counted)
        self.update_metrics(stage, atoms, predictions, targets, dataloader_idx)
        return loss

    def _repeated_systems(self, stage: str, n_systems: int, dataloader_idx: int) -> list[int]:
        if stage == "train" or self.trainer.world_size == 1:
            return []
        # Trainer.val_dataloaders may be those of an earlier fit.
        loaders = flattened(self.trainer._evaluation_loop._combined_loader)
        return repeated_systems(loaders[dataloader_idx], self._scaling_batch_idx, n_systems)

    def _scaling_dtype(self) -> torch.dtype:
        """The dtype of systems and of the loss: that of the module, float32 if it is shorter."""
        # Not `self.parameters()`, which looks through all metrics before it comes to a layer.
        others = (m for n, m in self.named_children() if n not in ("scaler", "_scaling_metrics"))
        layers = chain([self._parameters.values()], (module.parameters() for module in others))
        parameters = (p for p in chain.from_iterable(layers) if p is not None)
        dtypes = (p.dtype for p in parameters if p.is_floating_point())
        dtype = next(dtypes, self.dtype)
        return torch.float64 if dtype == torch.float64 else torch.float32

    def _check_scales(self) -> None:
        if not self.scaler.fitted:
            raise RuntimeError(
                f"{type(self).__name__} has no target scales; train with "
                "Trainer(callbacks=[TargetScaler()]), load a checkpoint that has them, or set "
                "module.scaler to a Scaler fitted with ScaleAccumulator"
            )
