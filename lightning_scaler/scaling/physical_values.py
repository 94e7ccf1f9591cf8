"""Predictions and targets from loss space in physical units, for metrics."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from metatensor.torch import TensorMap
from torch import Tensor

from ..batches import IndexedBatch, IndexedTarget, read_atoms
from ..tensors import Key, rebuild, values_and_gradients
from .arithmetic import ConversionArgs, physical_error_sums, physical_values
from .conversion import Conversion, convert_targets, n_atoms_of_rows
from .loss_space import BY_POSITION, Systems, index_loss_targets
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


class TargetPart(NamedTuple):
    """The values of one block of a target, or one of its gradients.

    Attributes:
        target: name of the target.
        key: key of the block.
        gradient: parameter of the gradient, ``None`` for values.
    """

    target: str
    key: Key
    gradient: str | None = None


def parts_of_targets(scaler: Scaler) -> list[TargetPart]:
    """All parts that the targets of a batch may have, in the order of the targets."""
    return [
        TargetPart(name, key, gradient)
        for name, scales in scaler.targets.items()
        for gradient in (None, *scales.layout.gradients)
        for key in scales.layout.blocks
    ]


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
    names, indexed, args = _metric_args(scaler, systems, predictions, targets, per_atom)
    found = physical_values(args, [predictions[name] for name in names])
    values: dict[str, list[PhysicalValues]] = {}
    for name, (blocks, parameters, *values_of_parts) in zip(names, found, strict=True):
        layout = indexed[name].layout
        keys = [dict(zip(layout.key_names, key, strict=True)) for key in layout.blocks]
        keys_of_parts = [*keys, *(keys[block] for block in blocks)]
        gradients = [None] * len(keys) + parameters
        values[name] = list(map(PhysicalValues, keys_of_parts, gradients, *values_of_parts))
    return values


def errors_in_physical_units(
    scaler: Scaler,
    systems: Systems,
    predictions: Mapping[str, TensorMap],
    targets: Mapping[str, TensorMap],
) -> tuple[list[TargetPart], Tensor]:
    """Sums over the errors of all targets in physical units, in which the baseline cancels.

    Args:
        scaler: fitted scaler.
        systems: systems of the batch, or their atoms.
        predictions: predictions in loss space, by target name, in the rows of the targets.
        targets: targets in loss space, by name, per atom if extensive; NaN where missing.

    Returns:
        Parts of the targets, and for each of them the sum of the absolute errors, the sum of their
        squares and the number of values that are not missing, ``(n_parts, 3)`` float64.
    """
    names, indexed, args = _metric_args(scaler, systems, predictions, targets)
    found, sums = physical_error_sums(args, [predictions[name] for name in names])
    parts = []
    for name, of_target in zip(names, found, strict=True):
        keys = list(indexed[name].layout.blocks)
        parts += [
            TargetPart(name, keys[block], parameter or None) for block, parameter in of_target
        ]
    return parts, sums


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
    indexed = index_loss_targets(scaler, atoms, [name], targets)[name]
    # Zeros become the baseline, and missing values stay missing.
    parts = values_and_gradients(tensor)
    zeros = [[0.0 * part.detach().double() for part in several] for several in parts]
    batch = IndexedBatch(
        atoms, BY_POSITION, {name: indexed._replace(tensor=rebuild(tensor, *zeros))}
    )
    conversion = Conversion("loss", "physical", per_atom=True, of_targets=True)
    converted = convert_targets(scaler, batch, conversion)[name]
    baselines = [
        part.reshape(-1) for several in values_and_gradients(converted) for part in several
    ]
    return [
        part._replace(prediction=part.prediction + present, target=part.target + present)
        for part, baseline in zip(values, baselines, strict=True)
        for present in [baseline[~baseline.isnan()]]
    ]


def _metric_args(
    scaler: Scaler,
    systems: Systems,
    predictions: Mapping[str, TensorMap],
    targets: Mapping[str, TensorMap],
    per_atom: bool = False,
) -> tuple[list[str], dict[str, IndexedTarget], list[ConversionArgs]]:
    """Names, rows and per-target scales of the targets that have a prediction."""
    names = [name for name in scaler.targets if name in predictions]
    if not names:
        return [], {}, []
    atoms = read_atoms(systems).to(targets[names[0]].device)
    indexed = index_loss_targets(scaler, atoms, names, targets)
    args = []
    for name in names:
        scales, target = scaler.targets[name], indexed[name]
        factors, scale_index = scales.factors_of_rows(
            "per_target", target, atoms, scaler.settings.unseen_types
        )
        n_atoms = n_atoms_of_rows(target, atoms) if per_atom and scales.extensive else []
        args.append(ConversionArgs(target.tensor, factors, scale_index, n_atoms, [], []))
    return names, indexed, args
