"""Scales and baseline out of metatrain's checkpoints."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from metatensor.torch import Labels, TensorBlock, TensorMap

from ..scaling import TargetScales
from ..settings import check_names, fixed_baseline, fixed_scales, list_of_names
from ..tensors import Key, TargetLayout
from .metatrain_checkpoint import (
    KINDS,
    MetatrainCheckpoint,
    Source,
    read_baseline,
    read_checkpoint,
)

# metatrain writes the largest double where a sum of squares was infinite.
LARGEST_SCALE = 1e300


class FromMetatrain(NamedTuple):
    """The scales by target name, whether there was a baseline, and whether there were scales."""

    targets: dict[str, TargetScales]
    baseline: Literal["composition", "none"]
    enabled: bool


def read_metatrain(
    checkpoint: Source,
    composition: Source | None = None,
    layouts: Mapping[str, TensorMap] | None = None,
    atomic_types: Sequence[int] | None = None,
    intensive_targets: Iterable[str] | None = None,
) -> FromMetatrain:
    """Read scales and composition weights; see :meth:`Scaler.from_metatrain`.

    Source: the checkpoints of metatrain 2026.4.
    """
    found = read_checkpoint(checkpoint)
    if not found.scales:
        raise ValueError(
            f"{found.where}: expected buffers named '<target>_scaler_buffer', got none; give the "
            "checkpoint of a metatrain Scaler, or of a model that was trained with one"
        )
    baseline = read_baseline(found, composition)
    types = list(atomic_types or found.atomic_types or (baseline and baseline.atomic_types) or [])
    if intensive_targets is None:
        in_training = found.hypers.get("per_structure_targets") or []
        intensive_targets = [name for name in in_training if name in found.scales]
    intensive = list_of_names("intensive_targets", intensive_targets)
    check_names("intensive_targets", intensive, found.scales)
    check_names("layouts", layouts or {}, found.scales)
    fixed = fixed_scales(_numbers(found, "fixed_weights", "fixed_scaling_weights"))
    targets = {}
    for name, stored in found.scales.items():
        where = f"{found.where}, target '{name}'"
        if stored.keys() != set(KINDS.values()):
            raise ValueError(
                f"{where}: expected per-target and per-property scales, as of metatrain 2026.4, "
                f"got only {sorted(stored)}; load and save it with a newer metatrain"
            )
        weights = None if baseline is None else baseline.weights.get(name)
        example = (layouts or {}).get(name) or found.layouts.get(name)
        if example is None:
            example = _layout_of_buffer(where, stored["full"], weights)
        layout = TargetLayout.of(name, example)
        scales = _scales(where, layout, stored, sorted(types))
        scales.extensive = layout.kind == "structure" and name not in intensive
        scales.fixed = fixed.get(name)
        if baseline is not None and layout.kind != "pair":
            _add_weights(where, scales, baseline, weights)
        targets[name] = scales
    enabled = bool(found.hypers.get("scale_targets", True))
    return FromMetatrain(targets, "none" if baseline is None else "composition", enabled)


def _numbers(found: MetatrainCheckpoint, *names: str) -> dict[str, Any]:
    """Fixed numbers by target; metatrain passes over names that are no targets."""
    numbers = next((found.hypers[name] for name in names if name in found.hypers), None)
    if not isinstance(numbers, Mapping):  # the path of another checkpoint
        return {}
    return {name: numbers[name] for name in numbers if name in (found.scales or found.weights)}


def _layout_of_buffer(where: str, stored: TensorMap, weights: "TensorMap | None") -> TensorMap:
    """The layout as far as keys tell it: the buffers hold no components."""
    names = stored.keys.names
    momenta = [name for name in names if name.startswith("o3_lambda")]
    scalar = weights is not None and names == ["_"]
    if (not momenta and not scalar) or "first_atomic_type" in stored.sample_names:
        raise ValueError(
            f"{where}: the state dict does not tell whether this target is a scalar, a vector or a "
            "matrix; give the whole checkpoint, or an example: layouts={'<target>': TensorMap}"
        )
    per_structure = stored.block_by_id(0).samples.values[0].tolist() == [-1]
    samples = ["system"] if per_structure else ["system", "atom"]
    blocks = []
    for key, block in stored.items():
        components = [
            Labels.range(name.replace("lambda", "mu"), 2 * key[name] + 1) for name in momenta
        ]
        components = [
            Labels(labels.names, labels.values - len(labels) // 2) for labels in components
        ]
        shape = [0, *(len(labels) for labels in components), len(block.properties)]
        no_samples = Labels(samples, torch.empty(0, len(samples), dtype=torch.int32))
        values = torch.empty(shape, dtype=torch.float64)
        blocks.append(TensorBlock(values, no_samples, components, block.properties))
    return TensorMap(stored.keys, blocks)


def _scales(
    where: str, layout: TargetLayout, stored: dict[str, TensorMap], types: list[int]
) -> TargetScales:
    """Scales in the layout of the target, with those that stand in for unseen types."""
    if layout.kind != "atom":
        types = [-1]
    # Without the numbers of entries, nothing is known about all types together.
    stand_ins = torch.tensor([torch.nan, 1.0], dtype=torch.float64)
    if layout.kind == "pair":
        ones = torch.ones(3, dtype=torch.float64)
        identity = {
            key: ones[:, None].repeat(1, block.n_properties) for key, block in layout.blocks.items()
        }
        return TargetScales(layout, False, torch.tensor(types), ones, identity)
    per_target = stored["per_target"].block_by_id(0).values[:, 0].double()
    if len(types) != len(per_target):
        raise ValueError(
            f"{where}: expected the {len(per_target)} atomic types of its {layout.kind} samples, "
            f"got {types}; a state dict does not say which they are: give atomic_types=[…], and "
            "layouts={'<target>': TensorMap} if the samples are others"
        )
    _check_numbers(where, per_target)
    per_property = {}
    for key, block in layout.blocks.items():
        full, relative = (
            _stored_block(where, layout, key, stored[kind]) for kind in ("full", "per_property")
        )
        _check_numbers(f"{where}, block ({layout.describe(key)})", full, zero=True)
        # A property without data has the full scale 1 in metatrain, which is not the product.
        agree = (per_target[:, None] * relative - full).abs() <= 1e-12 * full
        relative = torch.where(agree, relative, full / per_target[:, None])
        other = ~_types_of_block(layout, key, types)
        relative[other] = 1.0 / per_target[other, None]
        per_property[key] = torch.cat([relative, stand_ins[:, None].expand(2, block.n_properties)])
    return TargetScales(
        layout=layout,
        extensive=False,
        types=torch.tensor(types),
        per_target=torch.cat([per_target, stand_ins]),
        per_property=per_property,
        rms_before=math.nan,
        rms_after=math.nan,
    )


def _add_weights(
    where: str, scales: TargetScales, baseline: MetatrainCheckpoint, weights: "TensorMap | None"
) -> None:
    """Put the composition weights of one target beside its scales."""
    layout = scales.layout
    invariant = [key for key in layout.blocks if layout.invariance(key)]
    if weights is None:
        if invariant:
            raise ValueError(
                f"{where}: expected composition weights for it in {baseline.where}, which has "
                f"those of {sorted(baseline.weights)}; give the composition model that came off "
                "before these scales were taken"
            )
        return
    types = weights.block_by_id(0).samples.column("center_type").tolist()
    in_order = torch.tensor(types).argsort()
    scales.baseline_types = torch.tensor(types)[in_order].long()
    for key in layout.blocks:
        if key not in invariant:
            block = _find(layout, key, weights)
            if block is not None and bool((block.values.nan_to_num() != 0.0).any()):
                raise ValueError(
                    f"{where}, block ({layout.describe(key)}): expected composition weights of "
                    "invariant blocks only (o3_sigma = 1), got others, which have no baseline here"
                )
            continue
        values = _stored_block(where, layout, key, weights)
        if layout.invariance(key) == "trace":
            values = values.diagonal(dim1=1, dim2=2)[..., 0][:, None]
        values = values.reshape(len(types), -1, values.shape[-1])[:, 0]
        values[~_types_of_block(layout, key, types)] = torch.nan
        scales.weights[key] = values[in_order]
    fixed = _numbers(baseline, "atomic_baseline").get(layout.name)
    if fixed is not None:
        by_type = fixed if isinstance(fixed, Mapping) else dict.fromkeys(types, fixed)
        scales.fixed_weights = fixed_baseline({layout.name: by_type})[layout.name]


def _stored_block(where: str, layout: TargetLayout, key: Key, stored: TensorMap) -> torch.Tensor:
    """The values of a block of a buffer, ``(n_types, *components, n_properties)``."""
    block, properties = _find(layout, key, stored), layout.blocks[key].properties
    columns = torch.empty(0)
    if block is not None and block.properties.names == properties.names:
        columns = block.properties.select(properties)
    if block is None or len(columns) != len(properties):
        raise ValueError(
            f"{where}: expected a block ({layout.describe(key)}) with the properties {properties}, "
            f"got the blocks {stored.keys} of the checkpoint, in which they are not; give the "
            "layout that the target had in training"
        )
    values: torch.Tensor = block.values[..., columns].double()
    return values


def _find(layout: TargetLayout, key: Key, stored: TensorMap) -> "TensorBlock | None":
    """The block of a buffer that a block of the target is part of.

    metatrain keeps the blocks of atomic-basis targets as one for all types, with the properties of
    any of them.
    """
    names = dict(zip(layout.key_names, key, strict=True))
    if names.keys() - {"atom_type"} != set(stored.keys.names) - {"atom_type"}:
        return None
    blocks = stored.blocks({name: names[name] for name in stored.keys.names if name in names})
    return blocks[0] if len(blocks) == 1 else None


def _types_of_block(layout: TargetLayout, key: Key, types: list[int]) -> torch.Tensor:
    """ScaleKind of the types a block is about: one if it is of an atomic basis, else all."""
    of_key = dict(zip(layout.key_names, key, strict=True)).get("atom_type")
    return torch.tensor([of_key in (None, one) for one in types])


def _check_numbers(where: str, scales: torch.Tensor, zero: bool = False) -> None:
    """Refuse scales that are no finite positive numbers.

    A property whose data are zero has a scale of zero in metatrain, and so has its prediction,
    which is kept; nothing can be divided by the scale of a whole target.
    """
    wrong = ~((scales > 0.0) | (zero & (scales == 0.0))) | (scales > LARGEST_SCALE)
    if bool(wrong.any()):
        raise ValueError(
            f"{where}: expected finite positive scales, got {scales[wrong].tolist()}; the data of "
            "that fit were zero or infinite, so fit anew"
        )
