"""Metatrain's checkpoints, read without metatrain."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pickle import UnpicklingError
from typing import Any, TypeAlias

import metatensor.torch as mts
import torch
from metatensor.torch import Labels, TensorBlock, TensorMap

Source: TypeAlias = str | os.PathLike[str] | Mapping[str, Any]

SCALE_KINDS = {
    "_per_target_scaler_buffer": "per_target",
    "_per_property_scaler_buffer": "per_property",
    "_scaler_buffer": "full",
}
# The names in the extra state of metatrain's later versions.
EXTRA_STATE_KINDS = {
    "per_target_scales": "per_target",
    "per_property_scales": "per_property",
    "scales": "full",
}
COMPOSITION = "CompositionModel"


@dataclass(frozen=True)
class MetatrainCheckpoint:
    """The parts of a checkpoint that describe scales and baseline.

    Attributes:
        where: the file, for error messages.
        scales: by target name, the ``"full"``, ``"per_target"`` and ``"per_property"`` scales;
            samples ``["atomic_type"]`` are -1 or indices into the sorted atomic types.
        weights: composition weights by target name, with samples ``["center_type"]``.
        layouts: layouts of the targets, TensorMaps without samples.
        atomic_types: sorted atomic types; ``None`` if the checkpoint does not list them.
        additive: class names of the additive models that were subtracted before the scales were
            fitted; ``None`` if the checkpoint does not say.
        nested: whether this is a whole model, which contains its additive models.
        hypers: hyperparameters of the training.
    """

    where: str
    scales: dict[str, dict[str, TensorMap]] = field(default_factory=dict)
    weights: dict[str, TensorMap] = field(default_factory=dict)
    layouts: dict[str, TensorMap] = field(default_factory=dict)
    atomic_types: list[int] | None = None
    additive: list[str] | None = None
    nested: bool = False
    hypers: Mapping[str, Any] = field(default_factory=dict)


def read_checkpoint(source: Source) -> MetatrainCheckpoint:
    """Read the checkpoint of a scaler, of a composition model, or of a whole model with both.

    Args:
        source: a ``.ckpt`` file, what ``torch.load`` returns for it, or a state dict.

    Raises:
        ValueError: if the file is not a checkpoint, or has the scales of several models.
    """
    where = "the checkpoint" if isinstance(source, Mapping) else f"'{os.fspath(source)}'"
    content = source if isinstance(source, Mapping) else _load(source)
    # An LLPR model wraps the model that has the scales.
    content = content.get("wrapped_model_checkpoint", content)
    state = content.get("best_model_state_dict") or content.get("model_state_dict") or content
    scales: dict[str, dict[str, TensorMap]] = {}
    weights: dict[str, TensorMap] = {}
    prefixes = set()
    for path, buffer in state.items():
        prefix, _, name = str(path).rpartition(".")
        suffix = next((suffix for suffix in SCALE_KINDS if name.endswith(suffix)), None)
        if suffix is not None:
            prefixes.add(prefix)
            by_kind = scales.setdefault(name.removesuffix(suffix), {})
            by_kind[SCALE_KINDS[suffix]] = mts.load_buffer(buffer.cpu())
        elif name == "_extra_state" and _has_scales(buffer):
            prefixes.add(prefix)
            for attribute, kind in EXTRA_STATE_KINDS.items():
                for target, (_, serialized, _) in buffer[attribute].items():
                    scales.setdefault(target, {})[kind] = mts.load_buffer(serialized.cpu())
        elif name.endswith("_composition_buffer"):
            weights[name.removesuffix("_composition_buffer")] = mts.load_buffer(buffer.cpu())
    if len(prefixes) > 1:
        raise ValueError(
            f"{where}: expected the scales of one model, got those of {sorted(prefixes)}; give the "
            "state dict of one of them"
        )
    info = _attributes(content.get("model_data", {}).get("dataset_info", {}))
    types = info.get("_atomic_types")
    if types is None and weights:
        types = next(iter(weights.values())).block_by_id(0).samples.column("center_type").tolist()
    nested = _nested_additive_models(state) or [COMPOSITION] * bool(weights)
    return MetatrainCheckpoint(
        where,
        scales,
        weights,
        layouts={name: _layout(target) for name, target in info.get("targets", {}).items()},
        atomic_types=None if types is None else sorted(map(int, types)),
        additive=nested or content.get("training_additive_models"),
        nested=bool(nested),
        hypers=content.get("train_hypers") or {},
    )


def read_baseline(
    scaler: MetatrainCheckpoint, composition: Source | None
) -> MetatrainCheckpoint | None:
    """Find the checkpoint that has the composition weights; ``None`` if there was no baseline.

    Args:
        scaler: the checkpoint that has the scales.
        composition: the checkpoint of the composition model; ``{}`` if there was none.

    Raises:
        ValueError: unless it is certain that no additive model is missing.
    """
    where, additive = scaler.where, scaler.additive
    is_empty = isinstance(composition, Mapping) and not composition
    if additive is not None and set(additive) - {COMPOSITION}:
        raise ValueError(
            f"{where}: the scales were fitted after subtracting the additive models {additive}, of "
            f"which only {COMPOSITION} can be read; predictions would be incomplete, so fit again"
        )
    if scaler.nested or additive == []:
        if composition is not None and not (is_empty and additive == []):
            why = "contains its composition weights" if scaler.nested else "had no additive models"
            raise ValueError(f"{where}: this model {why}; leave composition out")
        return scaler if scaler.nested else None
    if composition is None or (is_empty and additive):
        why = (
            f"{where}: the scales were fitted after subtracting {additive}, whose weights it does "
            "not contain"
            if additive
            else f"{where}: a state dict does not say whether additive models were subtracted "
            "before the scales were fitted (composition={} if there were none)"
        )
        raise ValueError(
            f"{why}; give that checkpoint too: composition='composition_model.ckpt'; without it "
            "totals would be wrong by thousands of eV"
        )
    if is_empty:
        return None
    baseline = read_checkpoint(composition)
    if not baseline.weights:
        raise ValueError(
            f"composition: expected buffers named '<target>_composition_buffer' in "
            f"{baseline.where}, got none; give the checkpoint of a metatrain {COMPOSITION}"
        )
    return baseline


def layout_from_keys(where: str, scales: TensorMap, has_weights: bool) -> TensorMap:
    """Derive the layout of a target, without samples, from the keys of its scales.

    Args:
        where: file and target, for error messages.
        scales: the full scales of the target; they have no components.
        has_weights: whether the target has composition weights, so that a single block is a scalar.

    Raises:
        ValueError: if the keys do not determine the components.
    """
    names = scales.keys.names
    momenta = [name for name in names if name.startswith("o3_lambda")]
    scalar = has_weights and names == ["_"]
    if (not momenta and not scalar) or "first_atomic_type" in scales.sample_names:
        raise ValueError(
            f"{where}: the state dict does not say whether this target is a scalar, a vector or a "
            "matrix; give the whole checkpoint, or an example: layouts={'<target>': TensorMap}"
        )
    per_structure = scales.block_by_id(0).samples.values[0].tolist() == [-1]
    sample_names = ["system"] if per_structure else ["system", "atom"]
    no_samples = Labels(sample_names, torch.empty(0, len(sample_names), dtype=torch.int32))
    blocks = []
    for key, block in scales.items():
        components = [
            Labels(
                [name.replace("lambda", "mu")],
                torch.arange(-key[name], key[name] + 1, dtype=torch.int32)[:, None],
            )
            for name in momenta
        ]
        shape = [0, *(len(labels) for labels in components), len(block.properties)]
        values = torch.empty(shape, dtype=torch.float64)
        blocks.append(TensorBlock(values, no_samples, components, block.properties))
    return TensorMap(scales.keys, blocks)


class _Record:
    """Replaces every class in the file: keeps the state of its instances and runs no code."""

    def __init__(self, *_: Any) -> None:
        self.state: Any = {}

    def __setstate__(self, state: Any) -> None:
        self.state = state


def _load(path: str | os.PathLike[str]) -> Mapping[str, Any]:
    try:
        classes = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        with torch.serialization.safe_globals([(_Record, name) for name in classes]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, UnpicklingError, ValueError) as error:
        raise ValueError(
            f"'{os.fspath(path)}': expected a checkpoint of metatrain (a .ckpt file, not an "
            "exported .pt model), which torch cannot read from it; if you trust the file and "
            "metatrain is installed, pass torch.load(path, weights_only=False) instead"
        ) from error
    if not isinstance(content, Mapping):
        raise ValueError(
            f"'{os.fspath(path)}': expected a checkpoint of metatrain, got {type(content).__name__}"
        )
    return content


def _attributes(instance: Any) -> Mapping[str, Any]:
    """The attributes of an object of metatrain, read with or without its class."""
    if isinstance(instance, Mapping):
        return instance
    attributes: Mapping[str, Any] = getattr(instance, "state", None) or vars(instance)
    return attributes


def _layout(target_info: Any) -> TensorMap:
    layout = _attributes(target_info)["layout"]
    return mts.load_buffer(layout.state[0]) if isinstance(layout, _Record) else layout


def _has_scales(extra_state: Any) -> bool:
    """Whether an extra state holds scales, as TensorMaps that metatensor has serialized."""
    return isinstance(extra_state, Mapping) and extra_state.keys() >= EXTRA_STATE_KINDS.keys()


def _nested_additive_models(state: Mapping[str, Any]) -> list[str]:
    """The additive models inside a whole model; the first is always the composition model."""
    matches = (re.search(r"(?:^|\.)additive_models\.(\d+)\.", str(path)) for path in state)
    indices = sorted({int(match[1]) for match in matches if match})
    return [f"additive_models.{index}" if index else COMPOSITION for index in indices]
