"""The errors of a module's predictions, as data for a new baseline."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from metatensor.torch import TensorMap, remove_gradients, subtract

from ..batches import Batch, read_atoms
from ..fitting import ScaleAccumulator
from ..scaling import Scaler, align_prediction, index_by_position, predictions_to_physical
from ..settings import SystemLabels


class PredictionErrors:
    """Collects targets minus predictions, in physical space, over the batches of a data pass.

    Args:
        scaler: scaler of the predictions.
        predict: function that returns a batch on the device of the predictions, and those in model
            space.
        accumulator: empty accumulator of the errors.
    """

    def __init__(
        self,
        scaler: Scaler,
        predict: Callable[[Batch], tuple[Batch, Mapping[str, TensorMap]]],
        accumulator: ScaleAccumulator,
    ) -> None:
        self.accumulator = accumulator
        self._scaler, self._predict = scaler, predict

    def update(self, batch: Batch, labels: SystemLabels) -> None:
        """Predict one batch and add the errors of its targets.

        Args:
            batch: a batch, unpacked.
            labels: meaning of the ``system`` labels of its targets.

        Raises:
            ValueError: for atomic types without scales.
        """
        (systems, targets, masks), outputs = self._predict(batch)
        known = {name: tensor for name, tensor in targets.items() if name in self._scaler.targets}
        atoms = read_atoms(systems)
        labelled = Scaler(
            self._scaler.targets, replace(self._scaler.settings, system_labels=labels)
        )
        indexed = index_by_position(labelled, atoms, known, masks).targets
        predictions = predictions_to_physical(self._scaler, atoms, outputs)
        errors = {}
        for name in indexed.keys() & predictions.keys():
            target = remove_gradients(indexed[name].tensor).to(dtype=torch.float64)
            aligned = align_prediction(name, remove_gradients(predictions[name]), target)
            errors[name] = subtract(target, aligned).to(device="cpu")
        self.accumulator.update(batch.systems, errors)
