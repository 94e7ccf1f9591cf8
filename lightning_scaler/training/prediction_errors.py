"""What the predictions of a module leave over, as data for a new baseline."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from lightning.pytorch import Trainer
from metatensor.torch import remove_gradients, subtract

from ..batches import Batch, read_atoms
from ..fitting import ScaleAccumulator
from ..scaling import Scaler, align_prediction, index_by_position, predictions_to_physical
from ..settings import SystemLabels
from .evaluation_mode import evaluation_mode
from .scaled_module import ScaledModule, scaler_of


class PredictionErrors:
    """Collects targets minus predictions, in physical space, over the batches of a data pass.

    Args:
        trainer: trainer that is starting a fit.
        module: module with scales, whose ``forward`` predicts.
        accumulator: empty accumulator of the errors.
    """

    def __init__(
        self, trainer: Trainer, module: ScaledModule, accumulator: ScaleAccumulator
    ) -> None:
        self.accumulator = accumulator
        self._trainer, self._module = trainer, module
        self._scaler = scaler_of(module)

    def update(self, batch: Batch, labels: SystemLabels) -> None:
        """Predict one batch and add the errors of its targets.

        Args:
            batch: a batch, unpacked.
            labels: meaning of the ``system`` labels of its targets.

        Raises:
            ValueError: for atomic types without scales.
        """
        systems, targets, masks = self._module._move_batch(batch)
        known = {name: tensor for name, tensor in targets.items() if name in self._scaler.targets}
        atoms = read_atoms(systems)
        labelled = Scaler(
            self._scaler.targets, replace(self._scaler.settings, system_labels=labels)
        )
        indexed = index_by_position(labelled, atoms, known, masks).targets
        with self._as_in_evaluation():
            outputs = self._module._predict(systems)
            predictions = predictions_to_physical(self._scaler, atoms, outputs)
        errors = {}
        for name in indexed.keys() & predictions.keys():
            target = remove_gradients(indexed[name].tensor).to(dtype=torch.float64)
            aligned = align_prediction(name, remove_gradients(predictions[name]), target)
            errors[name] = subtract(target, aligned).to(device="cpu")
        self.accumulator.update(batch.systems, errors)

    @contextmanager
    def _as_in_evaluation(self) -> Iterator[None]:
        """Predict as in validation: in evaluation mode, with the scaler that the pass hides."""
        module, modules = self._module, self._module._modules
        attribute = module._scaler_attribute
        hidden, modules[attribute] = modules[attribute], self._scaler
        try:
            with evaluation_mode(module), self._trainer.precision_plugin.val_step_context():
                yield
        finally:
            modules[attribute] = hidden
