"""The mixin that trains a LightningModule in loss space and reports in physical units."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from metatensor.torch import TensorMap, detach
from torchmetrics import MeanAbsoluteError, MeanSquaredError, MetricCollection
from typing_extensions import override

from ..batches import (
    Atoms,
    Batch,
    HasTypes,
    check_unpacked,
    clone_inference_tensors,
    move_to_device,
    move_unpacked,
    read_atoms,
)
from ..plain_tensors import DeclaredBatch, read_batch
from ..scaling import (
    LossPredictions,
    predictions_to_loss,
    predictions_to_physical,
    targets_to_loss,
)
from .logged_loss import LoggedLoss
from .loss import DefaultLoss, zero_loss
from .metric_logging import LoggedMetrics
from .padding import drop_systems, evaluation_loaders, padded_positions
from .predicted_gradients import check_gradients
from .scaled_module import ScaledModule, loss_dtype, new_scaler, refuse_hidden_steps

Tensors = Mapping[str, TensorMap]
Systems = Sequence[HasTypes] | Atoms


class TargetScalingMixin(ScaledModule):
    """Provides the steps of a LightningModule whose ``forward`` predicts in model space.

    The module holds a :class:`Scaler`, which is moved, saved and restored with it; the
    :class:`TargetScaler` callback fits it. In each step, targets are converted to loss space (the
    baseline is subtracted, then they are divided by the per-target scale) and predictions by the
    per-property scale. Metrics and ``predict_step`` use the units of the data.

    ``forward`` receives the systems of a batch and returns TensorMaps. Where the callback declares
    targets that are plain tensors, it receives the batch of the loader itself and returns tensors.

    Evaluation runs without gradients but outside inference mode. It supports autograd forces:
    compute them under ``torch.enable_grad()`` in ``forward``.

    Override :meth:`unpack_batch`, :meth:`compute_loss` and :meth:`configure_metrics` to change the
    format of batches, the loss and the metrics. A ``training_step`` of your own can call
    :meth:`unpack_batch`, :meth:`targets_to_loss`, :meth:`predictions_to_loss` and
    :meth:`update_metrics`.

    Attributes:
        scaler: scaler of the targets; not fitted before the callback has run or a checkpoint has
            been loaded.
        metrics_per_block: names of the targets whose metrics are also logged for every block.

    Raises:
        TypeError: if a class has the mixin after ``LightningModule`` among its bases.

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
        # Lightning warns every user of a datamodule, and torchmetrics every process whose batches
        # do not have a target; both are intended here.
        for message in (
            "You have overridden `transfer_batch_to_device` in `LightningModule`",
            "The ``compute`` method of metric .* was called before the ``update`` method",
        ):
            warnings.filterwarnings("ignore", message)
        self.scaler = new_scaler(self)
        self._scaling_metrics = LoggedMetrics("_scaling_metrics")
        self._scaling_logged_loss = LoggedLoss("_scaling_logged_loss")
        self._scaling_batch_idx = 0
        self._scaling_loss = DefaultLoss()
        self._scaling_gradients_checked = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Refuse to replace the steps of a class behind the mixin without a word."""
        super().__init_subclass__(**kwargs)
        refuse_hidden_steps(cls, TargetScalingMixin)

    # Methods that a user may override.

    def unpack_batch(self, batch: Any) -> tuple[Sequence[HasTypes], Tensors, Tensors]:
        """Split a batch into its systems, targets and masks.

        Batches of ``metatensor.learn.DataLoader``, mappings with a key ``system``, and tuples
        ``(systems, targets)`` are supported; override this for any other. The built-in steps move
        what an override returns to the device of the module, and cast systems to its dtype, if
        that has not happened yet.

        Args:
            batch: batch of a loader.

        Returns:
            The systems; the targets by name; and the masks by target name, which an override may
            leave out.
        """
        return read_batch(batch, self.scaler.declaration)

    def compute_loss(self, predictions: Tensors, targets: Tensors) -> torch.Tensor:
        r"""Compute the loss: a weighted mean over targets and their gradients.

        .. math::

            L = \frac{\sum_t w_t \, \mathrm{MSE}_t / m_t}{\sum_t w_t}

        The terms :math:`t` are the values of each target of the batch and each of its gradients.
        :math:`m_t` is the mean square of the term over the training data in loss space (1 with
        ``TargetScaler(balance_loss=False)``), :math:`w_t` its weight from ``loss_weights``. The
        built-in steps log each :math:`\mathrm{MSE}_t / m_t`, as ``train/loss/energy/positions``.

        Args:
            predictions: predictions in loss space by target name, with the samples of the targets
                in their order; per atom if the target is extensive.
            targets: targets in loss space by name, NaN where a value is missing.

        Returns:
            Scalar tensor.
        """
        return self._scaling_loss(predictions, targets, self.scaler)

    def configure_metrics(self) -> MetricCollection:
        """Create the metrics of every target, in the units of the data: MAE and RMSE by default.

        Every target, stage and loader gets copies of its own, logged under the names in the
        collection. A metric that returns a dict is logged under its keys too, for those of its
        values that are scalars. Metrics of torchmetrics that are not a function of the difference
        (R2, MAPE) see predictions and targets with the baseline, and so does any other metric that
        has an attribute ``depends_on_baseline = True``.
        """
        return MetricCollection(
            {"mae": MeanAbsoluteError(), "rmse": MeanSquaredError(squared=False)}
        )

    # The building blocks of a step.

    def targets_to_loss(
        self, systems: Systems, targets: Tensors, masks: Tensors | None = None
    ) -> dict[str, TensorMap]:
        """Convert targets to loss space, per atom where extensive.

        Masked values become NaN, and ``system`` labels positions in the batch. TensorMaps without
        scales pass through unchanged.

        Args:
            systems: systems of the batch, or their ``Atoms``, read once for a whole step.
            targets: targets in physical space, by name.
            masks: masks by target name; ``False`` (or 0) marks a missing value.

        Returns:
            Targets by name, in float64 if the weights of the module are, otherwise in float32.
        """
        scaler = self.fitted_scaler
        in_loss = targets_to_loss(scaler, systems, targets, masks, loss_dtype(self))
        if self._scaling_observer is not None:
            self._scaling_observer(scaler, systems, targets, masks, in_loss)
        return in_loss

    def predictions_to_loss(
        self, systems: Systems, predictions: Tensors, targets: Tensors
    ) -> dict[str, TensorMap]:
        """Convert predictions to loss space, in the rows of the targets of the batch.

        Args:
            systems: systems of the batch, or their ``Atoms``.
            predictions: predictions in model space, by target name, with positions in the batch as
                ``system`` labels; if targets are declared, the output of ``forward``.
            targets: result of :meth:`targets_to_loss`.

        Returns:
            Predictions by target name, of those targets that the batch has.

        Raises:
            ValueError: for a target of the batch without a prediction, or without scales.
        """
        scaler = self.fitted_scaler
        if isinstance(systems, DeclaredBatch):
            predictions = systems.predictions(predictions, needed=targets)
        return predictions_to_loss(scaler, systems, predictions, targets)

    def update_metrics(
        self,
        stage: str,
        systems: Systems,
        predictions: Tensors,
        targets: Tensors,
        dataloader_idx: int = 0,
    ) -> None:
        """Update the metrics of a stage with a batch and log them as ``val/energy/rmse_per_atom``.

        In validation and test, the systems that Lightning's sampler repeats, so that all processes
        make equally many steps, are left out: every sample counts once on any number of processes.
        Without a Trainer, under Fabric for example, nothing is updated or logged.

        Args:
            stage: ``"train"``, ``"val"`` or ``"test"``.
            systems: systems of the batch, or their ``Atoms``.
            predictions: result of :meth:`predictions_to_loss`.
            targets: result of :meth:`targets_to_loss`.
            dataloader_idx: index of the loader, if there are several.
        """
        if not _has_trainer(self):
            return
        atoms = read_atoms(systems)
        padded = self._scaling_padding(stage, atoms, dataloader_idx)
        predictions, targets = drop_systems(predictions, targets, padded, atoms.n_systems)
        self._scaling_metrics.log_targets(self, stage, dataloader_idx, atoms, predictions, targets)

    # Hooks and steps that Lightning calls.

    @override
    def transfer_batch_to_device(
        self, batch: Any, device: torch.device, dataloader_idx: int
    ) -> Any:
        """Called for every batch. Moves TensorMaps and systems too, not only tensors."""
        with torch.inference_mode(False):
            batch = super().transfer_batch_to_device(batch, device, dataloader_idx)
            return move_to_device(batch, device, loss_dtype(self))

    @override
    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        """Called for every training batch. Returns the loss and logs the metrics."""
        return self._scaling_step("train", batch)

    @override
    def on_validation_batch_start(
        self, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Called before every validation batch. Stores its index, which locates padding.

        An override must call ``super().on_validation_batch_start(...)``.
        """
        super().on_validation_batch_start(batch, batch_idx, dataloader_idx)
        self._scaling_batch_idx = batch_idx

    @override
    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Called for every validation batch. Logs the loss and the metrics, without gradients."""
        with torch.inference_mode(False), torch.no_grad():
            self._scaling_step("val", batch, dataloader_idx)

    @override
    def on_test_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Called before every test batch. Stores its index, which locates padding.

        An override must call ``super().on_test_batch_start(...)``.
        """
        super().on_test_batch_start(batch, batch_idx, dataloader_idx)
        self._scaling_batch_idx = batch_idx

    @override
    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Called for every test batch. Logs the loss and the metrics, without gradients."""
        with torch.inference_mode(False), torch.no_grad():
            self._scaling_step("test", batch, dataloader_idx)

    @override
    def predict_step(
        self, batch: Any, batch_idx: int = 0, dataloader_idx: int = 0
    ) -> dict[str, Any]:
        """Called for every batch to predict. Returns predictions in physical units on the CPU.

        The baseline is added back; a batch needs no targets. If targets are declared, these are
        the tensors of the output of ``forward`` under its names, detached, and ``n_atoms``, the
        number of atoms of each structure; otherwise TensorMaps by target name.
        """
        with torch.inference_mode(False), torch.no_grad():
            declaration = self.fitted_scaler.declaration
            batch = clone_inference_tensors(batch)
            if declaration is not None:
                return _predict_declared(self, DeclaredBatch(batch, declaration))
            systems = self._scaling_unpack(batch).systems
            predictions, atoms = self._scaling_predict(systems), read_atoms(systems)
            physical = predictions_to_physical(self.scaler, atoms, predictions)
            # Lightning moves predictions to the CPU, except TensorMaps.
            return {name: detach(tensor).to(device="cpu") for name, tensor in physical.items()}

    def _scaling_step(self, stage: str, batch: Any, dataloader_idx: int = 0) -> torch.Tensor:
        if stage != "train":
            # Hooks of an evaluation run in inference mode, after the transfer.
            batch = clone_inference_tensors(batch)
        systems, targets, masks = self._scaling_unpack(batch)
        atoms = read_atoms(systems)
        targets = self.targets_to_loss(atoms, targets, masks)
        if isinstance(systems, DeclaredBatch):
            outputs = systems.predictions(self(systems.batch), needed=targets)
            if stage == "train" and not self._scaling_gradients_checked:
                self._scaling_gradients_checked = check_gradients(systems, outputs, self.scaler)
        else:
            outputs = self(systems)
        predictions = self.predictions_to_loss(atoms, outputs, targets)
        padded = self._scaling_padding(stage, atoms, dataloader_idx)
        n_counted = atoms.n_systems - len(padded)
        # A batch of padding alone has a weight of 0, but the same terms as on other processes.
        dropped = padded if n_counted else []
        counted = drop_systems(predictions, targets, dropped, atoms.n_systems)
        self._scaling_loss.terms = None
        loss = self.compute_loss(*counted)
        if stage == "train" and not _depends_on_all(self, predictions):
            loss = loss + zero_loss(outputs, self.scaler.layouts).to(loss.dtype)
        if _has_trainer(self):
            # An evaluation batch without targets has no loss, not one of zero.
            n_with_loss = n_counted if predictions or stage == "train" else 0
            terms = self._scaling_loss.terms
            if terms is None:
                weights = self.scaler.settings.loss_weights
                self._scaling_loss.warn_of_unused_weights(type(self).__name__, weights)
            self._scaling_logged_loss.log(
                self, stage, dataloader_idx, loss, n_with_loss, terms, n_counted
            )
        self.update_metrics(stage, atoms, predictions, targets, dataloader_idx)
        return loss

    @override
    def _scaling_read(self, batch: Any) -> Batch:
        return check_unpacked(f"{type(self).__name__}.unpack_batch", self.unpack_batch(batch))

    @override
    def _scaling_move(self, batch: Batch) -> Batch:
        return move_unpacked(batch, self.device, loss_dtype(self))

    def _scaling_padding(self, stage: str, atoms: Atoms, dataloader_idx: int) -> list[int]:
        """Positions of the systems of an evaluation batch that are counted on another rank."""
        if stage == "train" or not _has_trainer(self) or self.trainer.world_size == 1:
            return []
        loader = evaluation_loaders(self.trainer)[dataloader_idx]
        return padded_positions(loader, self._scaling_batch_idx, atoms.n_systems)


def _has_trainer(module: TargetScalingMixin) -> bool:
    """Whether a Trainer runs the steps; ``module.trainer`` raises an error if there is none."""
    return module._fabric is None and module._trainer is not None


def _depends_on_all(module: TargetScalingMixin, predictions: Tensors) -> bool:
    """Whether the loss of a batch is the default one, of everything that was predicted."""
    # Methods of another class, or of this module alone, may leave predictions out.
    default = all(
        getattr(getattr(module, name), "__func__", None) is getattr(TargetScalingMixin, name)
        for name in ("compute_loss", "predictions_to_loss")
    )
    complete = isinstance(predictions, LossPredictions) and predictions.complete
    return default and complete and module._scaling_loss.terms is not None


def _predict_declared(module: TargetScalingMixin, batch: DeclaredBatch) -> dict[str, Any]:
    """The members of the output by name, in physical units, and the numbers of atoms."""
    output = module(batch.batch)
    predictions = batch.predictions(output)
    physical = predictions_to_physical(module.scaler, batch.atoms, predictions)
    named = batch.named_predictions(batch.replace_predictions(output, physical))
    detached: dict[str, Any] = apply_to_collection(
        named, torch.Tensor, lambda tensor: tensor.detach().cpu()
    )
    return detached
