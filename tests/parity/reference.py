"""The fit and the conversions of metatrain."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from metatensor.torch import Labels, TensorBlock, TensorMap
from metatomic.torch import System
from metatrain.scaler._base_scaler import BaseScaler
from metatrain.utils.per_atom import average_by_num_atoms

Batch = tuple[list[System], dict[str, TensorMap], dict[str, TensorMap]]

# Whether per-target and per-property scales are applied between two spaces.
BETWEEN = {
    frozenset(("physical", "loss")): (True, False),
    frozenset(("loss", "model")): (False, True),
    frozenset(("physical", "model")): (True, True),
}


def layout_of(tensor: TensorMap) -> TensorMap:
    """A copy without samples, with the gradients."""

    def no_rows(block: TensorBlock) -> TensorBlock:
        names = block.samples.names
        samples = Labels(names, torch.empty(0, len(names), dtype=torch.int32))
        return TensorBlock(block.values[:0].clone(), samples, block.components, block.properties)

    blocks = []
    for block in tensor.blocks():
        blocks.append(no_rows(block))
        for parameter in block.gradients_list():
            blocks[-1].add_gradient(parameter, no_rows(block.gradient(parameter)))
    return TensorMap(tensor.keys, blocks)


def copies(targets: Mapping[str, TensorMap]) -> dict[str, TensorMap]:
    """Copies, because metatrain overwrites NaNs in its input with zeros."""
    return {name: tensor.copy() for name, tensor in targets.items()}


def fit_metatrain(
    batches: Sequence[Batch],
    intensive_targets: Iterable[str] = (),
    atomic_types: Sequence[int] = (1, 6, 8),
    fixed: Mapping[str, float | dict[int, float]] | None = None,
) -> BaseScaler:
    """Fit the scales with metatrain, in two passes over the batches."""
    layouts = {name: layout_of(tensor) for name, tensor in batches[0][1].items()}
    scaler = BaseScaler(list(atomic_types), layouts)
    passes = [(scaler.accumulate, lambda: scaler.fit(fixed_weights=fixed))]
    if scaler.multi_property_target_names:
        passes.append((scaler.accumulate_per_property, scaler.fit_per_property))
    for accumulate, finish in passes:
        for systems, targets, masks in batches:
            per_atom = average_by_num_atoms(copies(targets), systems, list(intensive_targets))
            accumulate(systems, per_atom, {f"{name}_mask": mask for name, mask in masks.items()})
        finish()
    return scaler


def convert_metatrain(
    scaler: BaseScaler,
    systems: list[System],
    tensors: Mapping[str, TensorMap],
    source: str,
    target: str,
) -> dict[str, TensorMap]:
    """Convert from one space to another with metatrain."""
    order = ("physical", "loss", "model")
    per_target, per_property = BETWEEN[frozenset((source, target))]
    converted: dict[str, TensorMap] = scaler(
        systems,
        copies(tensors),
        remove=order.index(source) < order.index(target),
        use_per_target_scales=per_target,
        use_per_property_scales=per_property,
    )
    return converted
