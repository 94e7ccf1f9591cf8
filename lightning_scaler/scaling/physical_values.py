"""Predictions and targets from loss space in physical units, for metrics."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from metatensor.torch import TensorMap
from torch import Tensor

from ..batches import Atoms, IndexedBatch, IndexedTarget, read_atoms
from ..tensors import rebuild, values_and_gradients
from .arithmetic import ConversionArgs, physical_values
from .conversion import Conversion, convert_targets
from .loss_targets import BY_POSITION, Systems, index_loss_targets
from .row_factors import factors_of_rows, n_atoms_of_rows
from .scaler import Scaler


class PhysicalValues(NamedTuple):
    """Values of a block, or of one of its gradients, in physical units, where none is missing.

    Attributes:
        key: key of the block, by name.
        gradient: parameter of the gradient, ``None`` for values.
        prediction: predicted values, ``(n_values,)`` float64, detached.
        target: target values, ``(n_values,)`` float64, detached.
    """

    key: dict[str, int]
    gradient: str | None
    prediction: Tensor
    target: Tensor


def values_in_physical_units(
    scaler: Scaler,
    systems: Systems,
    predictions: Mapping[str, TensorMap],
    targets: Mapping[str, TensorMap],
    per_atom: bool = False,
) -> dict[str, list[PhysicalValues]]:
    """Blocks and gradients of predictions and targets in physical units, without the baseline.

    Args:
        scaler: fitted scaler.
        systems: systems of the batch, or their atoms.
        predictions: predictions in loss space, by target name, in the rows of the targets.
        targets: targets in loss space, by name, among them those with a prediction; NaN where
            missing.
        per_atom: divide extensive values by the number of atoms; ``False`` if they are per
            atom already.
    """
    names = [name for name in scaler.targets if name in predictions]
    if not names:
        return {}
    chosen = {name: targets[name] for name in names}
    atoms = read_atoms(systems).to(next(iter(chosen.values())).device)
    indexed = index_loss_targets(scaler, atoms, chosen, targets)
    args = [_metric_args(scaler, name, indexed[name], atoms, per_atom) for name in names]
    found = physical_values(args, [predictions[name] for name in names])
    values: dict[str, list[PhysicalValues]] = {}
    for name, (blocks, parameters, *values_of_parts) in zip(names, found, strict=True):
        layout = indexed[name].layout
        keys = [dict(zip(layout.key_names, key, strict=True)) for key in layout.blocks]
        keys_of_parts = [*keys, *(keys[block] for block in blocks)]
        gradients = [None] * len(keys) + parameters
        values[name] = list(map(PhysicalValues, keys_of_parts, gradients, *values_of_parts))
    return values


def add_baseline(
    scaler: Scaler,
    systems: Systems,
    name: str,
    values: Sequence[PhysicalValues],
    targets: Mapping[str, TensorMap],
) -> list[PhysicalValues]:
    """The values of one target with the baseline added back to predictions and targets.

    Args:
        scaler: fitted scaler.
        systems: systems of the batch; an additive module needs more than their atoms.
        name: name of the target.
        values: the target in :func:`values_in_physical_units`, per atom if it is extensive.
        targets: the targets given there.
    """
    tensor = targets[name]
    atoms = read_atoms(systems).to(tensor.device)
    indexed = index_loss_targets(scaler, atoms, {name: tensor}, targets)[name]
    # The baseline is what becomes of zeros, and missing values stay missing.
    parts = values_and_gradients(tensor)
    zeros = [[0.0 * part.detach().double() for part in several] for several in parts]
    batch = IndexedBatch(
        atoms, BY_POSITION, {name: indexed._replace(tensor=rebuild(tensor, *zeros))}
    )
    conversion = Conversion("loss", "physical", scaler.settings, per_atom=True, of_targets=True)
    converted = convert_targets(scaler.targets, scaler.additive, batch, conversion)[name]
    baselines = [
        part.reshape(-1) for several in values_and_gradients(converted) for part in several
    ]
    return [
        part._replace(prediction=part.prediction + present, target=part.target + present)
        for part, baseline in zip(values, baselines, strict=True)
        for present in [baseline[~baseline.isnan()]]
    ]


def _metric_args(
    scaler: Scaler, name: str, target: IndexedTarget, atoms: Atoms, per_atom: bool
) -> ConversionArgs:
    scales, unseen_types = scaler.targets[name], scaler.settings.unseen_types
    factors, scale_index = factors_of_rows(scales, "per_target", target, atoms, unseen_types)
    n_atoms = n_atoms_of_rows(target, atoms) if per_atom and scales.extensive else []
    return ConversionArgs(target.tensor, factors, scale_index, n_atoms, [], [])
