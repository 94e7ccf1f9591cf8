"""What a metatrain checkpoint says about scales and baseline, read without metatrain."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pickle import UnpicklingError
from typing import Any, TypeAlias

import metatensor.torch as mts
import torch
from metatensor.torch import TensorMap

Source: TypeAlias = str | os.PathLike[str] | Mapping[str, Any]

KINDS = {
    "_per_target_scaler_buffer": "per_target",
    "_per_property_scaler_buffer": "per_property",
    "_scaler_buffer": "full",
}
COMPOSITION = "CompositionModel"


@dataclass(frozen=True)
class MetatrainCheckpoint:
    """The parts of a checkpoint that matter here.

    Attributes:
        where: the file, for messages.
        scales: by target ``"full"``, ``"per_target"`` and ``"per_property"`` scales, samples
            ``["atomic_type"]`` being -1 or indices of the sorted atomic types.
        weights: of the composition model by target, samples ``["center_type"]``.
        layouts: of the targets, without samples.
        atomic_types: sorted; ``None`` where the checkpoint does not say.
        additive: class names of the additive models that came off before the scales were taken,
            ``None`` where the checkpoint does not say.
        nested: whether it is of a whole model, whose additive models are in it.
        hypers: of the training.
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
    """Read a checkpoint of a scaler, of a composition model, or of a whole model with both.

    Args:
        source: a ``.ckpt`` file, what ``torch.load`` makes of it, or a state dict.

    Raises:
        ValueError: for a file that is no checkpoint, or holds scales of several models.
    """
    where = "the checkpoint" if isinstance(source, Mapping) else f"'{os.fspath(source)}'"
    content = source if isinstance(source, Mapping) else _load(source)
    # An LLPR model is a shell around the model that has the scales.
    content = content.get("wrapped_model_checkpoint", content)
    state = content.get("best_model_state_dict") or content.get("model_state_dict") or content
    scales: dict[str, dict[str, TensorMap]] = {}
    weights: dict[str, TensorMap] = {}
    prefixes = set()
    for path, buffer in state.items():
        prefix, _, name = str(path).rpartition(".")
        suffix = next((suffix for suffix in KINDS if name.endswith(suffix)), None)
        if suffix is not None:
            prefixes.add(prefix)
            of_target = scales.setdefault(name.removesuffix(suffix), {})
            of_target[KINDS[suffix]] = mts.load_buffer(buffer.cpu())
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
    nested = _additive_in(state) or [COMPOSITION] * bool(weights)
    return MetatrainCheckpoint(
        where,
        scales,
        weights,
        layouts={name: _layout(target) for name, target in info.get("targets", {}).items()},
        atomic_types=None if types is None else sorted(int(one) for one in types),
        additive=nested or content.get("training_additive_models"),
        nested=bool(nested),
        hypers=content.get("train_hypers") or {},
    )


def read_baseline(found: MetatrainCheckpoint, given: Source | None) -> MetatrainCheckpoint | None:
    """The checkpoint that holds the composition weights; ``None`` if there was no baseline.

    Raises:
        ValueError: unless it is certain that nothing is missing.
    """
    where, additive = found.where, found.additive
    none_given = isinstance(given, Mapping) and not given
    if additive is not None and set(additive) - {COMPOSITION}:
        raise ValueError(
            f"{where}: the scales were taken after the additive models {additive} came off, and "
            f"only {COMPOSITION} can be read; predictions would lack the rest, so fit anew"
        )
    if found.nested or additive == []:
        if given is not None and not (none_given and additive == []):
            why = "holds the weights of its own" if found.nested else "had no additive models"
            raise ValueError(f"{where}: this model {why}; leave composition out")
        return found if found.nested else None
    if given is None or (none_given and additive):
        why = (
            f"{where}: the scales were taken after {additive} came off, whose weights are not in it"
            if additive
            else f"{where}: a state dict does not say whether additive models came off before the "
            "scales were taken (composition={} if there were none)"
        )
        raise ValueError(
            f"{why}; give its checkpoint too: composition='composition_model.ckpt'; without it "
            "totals would be wrong by thousands of eV"
        )
    if none_given:
        return None
    baseline = read_checkpoint(given)
    if not baseline.weights:
        raise ValueError(
            f"composition: expected buffers named '<target>_composition_buffer' in "
            f"{baseline.where}, got none; give the checkpoint of a metatrain {COMPOSITION}"
        )
    return baseline


class _Record:
    """Stands in for every class of the file: keeps what was stored, runs nothing."""

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
            f"'{os.fspath(path)}': expected a checkpoint of metatrain (a .ckpt file; an exported "
            ".pt model does not say enough), and torch cannot read it as one; where metatrain is "
            "installed and the file is trusted, give torch.load(path, weights_only=False) instead"
        ) from error
    if not isinstance(content, Mapping):
        raise ValueError(
            f"'{os.fspath(path)}': expected a checkpoint of metatrain, got {type(content)}"
        )
    return content


def _attributes(instance: Any) -> Mapping[str, Any]:
    """What an object of metatrain holds, be it the real one or a record."""
    if isinstance(instance, Mapping):
        return instance
    attributes: Mapping[str, Any] = getattr(instance, "state", None) or vars(instance)
    return attributes


def _layout(target_info: Any) -> TensorMap:
    layout = _attributes(target_info)["layout"]
    return mts.load_buffer(layout.state[0]) if isinstance(layout, _Record) else layout


def _additive_in(state: Mapping[str, Any]) -> list[str]:
    """Additive models nested in a whole model, of which metatrain keeps the composition first."""
    found = (re.search(r"(?:^|\.)additive_models\.(\d+)\.", str(path)) for path in state)
    numbers = sorted({int(match[1]) for match in found if match})
    return [f"additive_models.{n}" if n else COMPOSITION for n in numbers]
