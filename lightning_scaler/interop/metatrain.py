"""Scales and composition baselines from metatrain's checkpoints."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from metatensor.torch import TensorBlock, TensorMap

from ..scaling import TargetScales
from ..settings import (
    Settings,
    check_names,
    list_of_names,
    parse_fixed_baseline,
    parse_fixed_scales,
)
from ..tensors import Key, TargetLayout
from .metatrain_checkpoint import (
    SCALE_KINDS,
    MetatrainCheckpoint,
    Source,
    layout_from_keys,
    read_baseline,
    read_checkpoint,
)

# metatrain stores the largest double where a sum of squares was infinite.
LARGEST_SCALE = 1e300


def read_metatrain(
    checkpoint: Source,
    composition: Source | None,
    layouts: Mapping[str, TensorMap] | None,
    atomic_types: Sequence[int] | None,
    intensive_targets: Iterable[str] | None,
) -> tuple[dict[str, TargetScales], Settings]:
    """Read scales and composition weights by target; see :meth:`Scaler.from_metatrain`.

    Source: the checkpoints of metatrain 2026.4, and those of its version 2 of the scaler, in which
    the scales are in the extra state (``model_update_v1_v2`` in its ``scaler/checkpoints.py``).
    """
    scaler = read_checkpoint(checkpoint)
    if not scaler.scales:
        raise ValueError(
            f"{scaler.where}: expected buffers named '<target>_scaler_buffer', got none; give the "
            "checkpoint of a metatrain Scaler, or of a model that was trained with one"
        )
    baseline = read_baseline(scaler, composition)
    types = atomic_types or scaler.atomic_types or (baseline and baseline.atomic_types) or []
    if intensive_targets is None:
        names = scaler.hypers.get("per_structure_targets") or []
        intensive_targets = [name for name in names if name in scaler.scales]
    intensive = list_of_names("intensive_targets", intensive_targets)
    check_names("intensive_targets", intensive, scaler.scales)
    check_names("layouts", layouts or {}, scaler.scales)
    fixed = parse_fixed_scales(_fixed_values(scaler, "fixed_weights", "fixed_scaling_weights"))
    targets = {}
    for name, buffers in scaler.scales.items():
        where = f"{scaler.where}, target '{name}'"
        if buffers.keys() != set(SCALE_KINDS.values()):
            raise ValueError(
                f"{where}: expected per-target and per-property scales, as metatrain 2026.4 writes "
                f"them, got only {sorted(buffers)}; load and save it with a newer metatrain"
            )
        example = (layouts or {}).get(name) or scaler.layouts.get(name)
        if example is None:
            has_weights = baseline is not None and name in baseline.weights
            example = layout_from_keys(where, buffers["full"], has_weights)
        layout = TargetLayout.of(name, example)
        extensive = layout.sample_kind == "structure" and name not in intensive
        scales = _read_scales(where, layout, extensive, buffers, sorted(types))
        weights = _read_weights(where, layout, baseline)
        targets[name] = replace(scales, fixed=fixed.get(name), **weights)
    enabled = bool(scaler.hypers.get("scale_targets", True))
    settings = Settings(enabled=enabled, baseline="none" if baseline is None else "composition")
    return targets, settings


def _fixed_values(checkpoint: MetatrainCheckpoint, *settings: str) -> dict[str, Any]:
    """Fixed values by target, from the first of the settings that the checkpoint has.

    Names that are not targets are ignored, as metatrain does.
    """
    hypers = checkpoint.hypers
    values = next((hypers[name] for name in settings if name in hypers), None)
    if not isinstance(values, Mapping):  # the path of another checkpoint
        return {}
    targets = checkpoint.scales or checkpoint.weights
    return {name: values[name] for name in values if name in targets}


def _read_scales(
    where: str,
    layout: TargetLayout,
    extensive: bool,
    buffers: Mapping[str, TensorMap],
    types: list[int],
) -> TargetScales:
    """The scales of one target, with the two rows for unseen types, without a baseline."""
    if layout.sample_kind != "atom":
        types = [-1]
    if layout.sample_kind == "pair":
        ones = torch.ones(3, dtype=torch.float64)
        identity = {
            key: ones[:, None].repeat(1, block.n_properties) for key, block in layout.blocks.items()
        }
        return TargetScales(layout, extensive, torch.tensor(types), ones, identity)
    # Without the counts of values, the RMS over all types is unknown.
    unseen = torch.tensor([torch.nan, 1.0], dtype=torch.float64)
    per_target = buffers["per_target"].block_by_id(0).values[:, 0].double()
    if len(types) != len(per_target):
        raise ValueError(
            f"{where}: expected the {len(per_target)} atomic types of its {layout.sample_kind} "
            f"samples, got {types}; a state dict does not list them: give atomic_types=[…], and "
            "layouts={'<target>': TensorMap} if its samples are of another kind"
        )
    _check_scales(where, per_target)
    per_property = {}
    for key, block in layout.blocks.items():
        full = _block_values(where, layout, key, buffers["full"])
        relative = _block_values(where, layout, key, buffers["per_property"])
        _check_scales(f"{where}, block ({layout.describe(key)})", full, allow_zero=True)
        # A property without data has the full scale 1 in metatrain, which is not the product.
        is_product = (per_target[:, None] * relative - full).abs() <= 1e-12 * full
        relative = torch.where(is_product, relative, full / per_target[:, None])
        other_types = ~_has_type(layout, key, types)
        relative[other_types] = 1.0 / per_target[other_types, None]
        per_property[key] = torch.cat([relative, unseen[:, None].expand(2, block.n_properties)])
    return TargetScales(
        layout,
        extensive,
        torch.tensor(types),
        torch.cat([per_target, unseen]),
        per_property,
        rms_before=math.nan,
        rms_after=math.nan,
    )


def _read_weights(
    where: str, layout: TargetLayout, baseline: MetatrainCheckpoint | None
) -> dict[str, Any]:
    """The fields of :class:`TargetScales` with the composition weights of one target, if any."""
    if baseline is None or layout.sample_kind == "pair":
        return {}
    invariant = [key for key in layout.blocks if layout.invariance(key)]
    buffer = baseline.weights.get(layout.name)
    if buffer is None:
        if invariant:
            raise ValueError(
                f"{where}: expected composition weights for it in {baseline.where}, which has "
                f"those of {sorted(baseline.weights)}; give the composition model that was "
                "subtracted before these scales were fitted"
            )
        return {}
    types = buffer.block_by_id(0).samples.column("center_type").tolist()
    order = torch.tensor(types).argsort()
    by_key = {}
    for key in layout.blocks:
        if key not in invariant:
            block = _find_block(layout, key, buffer)
            if block is not None and bool((block.values.nan_to_num() != 0.0).any()):
                raise ValueError(
                    f"{where}, block ({layout.describe(key)}): expected composition weights of "
                    "invariant blocks only (o3_sigma = 1), got others, which have no baseline here"
                )
            continue
        values = _block_values(where, layout, key, buffer)
        if layout.invariance(key) == "trace":
            values = values.diagonal(dim1=1, dim2=2)[..., 0][:, None]
        values = values.reshape(len(types), -1, values.shape[-1])[:, 0]
        values[~_has_type(layout, key, types)] = 0.0
        by_key[key] = values[order]
    fixed = _fixed_values(baseline, "atomic_baseline").get(layout.name)
    if fixed is not None:
        by_type = fixed if isinstance(fixed, Mapping) else dict.fromkeys(types, fixed)
        fixed = parse_fixed_baseline({layout.name: by_type})[layout.name]
    baseline_types = torch.tensor(types)[order].long()
    return {"baseline_types": baseline_types, "weights": by_key, "fixed_weights": fixed}


def _block_values(where: str, layout: TargetLayout, key: Key, buffer: TensorMap) -> torch.Tensor:
    """The values that a buffer has for a block, ``(n_types, *components, n_properties)``."""
    block, properties = _find_block(layout, key, buffer), layout.blocks[key].properties
    columns = torch.empty(0)
    if block is not None and block.properties.names == properties.names:
        columns = block.properties.select(properties)
    if block is None or len(columns) != len(properties):
        raise ValueError(
            f"{where}: expected a block ({layout.describe(key)}) with the properties {properties}, "
            f"not found among the blocks {buffer.keys} of the checkpoint; give the layout that the "
            "target had in training"
        )
    values: torch.Tensor = block.values[..., columns].double()
    return values


def _find_block(layout: TargetLayout, key: Key, buffer: TensorMap) -> "TensorBlock | None":
    """The block of a buffer that contains a block of the target.

    metatrain merges the blocks of an atomic-basis target that differ only in the atomic type; the
    merged block has the properties of all of them.
    """
    names = dict(zip(layout.key_names, key, strict=True))
    if names.keys() - {"atom_type"} != set(buffer.keys.names) - {"atom_type"}:
        return None
    blocks = buffer.blocks({name: names[name] for name in buffer.keys.names if name in names})
    return blocks[0] if len(blocks) == 1 else None


def _has_type(layout: TargetLayout, key: Key, types: list[int]) -> torch.Tensor:
    """Whether a block has samples of each type: of one type for an atomic basis, else of all."""
    type_of_block = dict(zip(layout.key_names, key, strict=True)).get("atom_type")
    return torch.tensor([type_of_block in (None, each) for each in types])


def _check_scales(where: str, scales: torch.Tensor, allow_zero: bool = False) -> None:
    """Refuse scales that are not finite and positive.

    ``allow_zero`` is for properties: metatrain gives those whose data are zero a scale of zero, and
    with it a prediction of zero. The scale of a whole target is a divisor.
    """
    wrong = ~((scales > 0.0) | (allow_zero & (scales == 0.0))) | (scales > LARGEST_SCALE)
    if bool(wrong.any()):
        raise ValueError(
            f"{where}: expected finite positive scales, got {scales[wrong].tolist()}; the data of "
            "that fit were zero or infinite, so fit again"
        )
