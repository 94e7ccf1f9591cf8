"""The state of the scales of a target: what is saved, and what is read and checked."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from ..tensors import InvalidStateError, TargetLayout, check_shapes, fields_from_state, state_of
from .target_scales import TargetScales

# Attributes that have another name in states, all of which go back to version 0.1.0.
_SAVED_NAMES = {
    "fixed_only_types": "given_types",
    "baseline_types": "composition_types",
    "explained_variance": "explained",
}

# Attributes with a tensor for each block.
_BY_KEY = {"per_property", "weights", "unknown", "zeros"}


def write_target_scales(scales: TargetScales) -> dict[str, Any]:
    """Plain Python objects and tensors (``torch.load(weights_only=True)``)."""
    plain = scales.__getstate__()
    plain["layout"] = scales.layout.state()
    for name in _BY_KEY:
        plain[name] = [(list(key), tensor) for key, tensor in plain[name].items()]
    for name, saved in _SAVED_NAMES.items():
        plain[saved] = plain.pop(name)
    return plain


def read_target_scales(name: str, state: Any, complete: bool = True) -> TargetScales:
    """The inverse of :func:`write_target_scales`, for states of earlier versions too.

    Args:
        name: name of the target.
        state: result of :func:`write_target_scales`.
        complete: ``False`` for states of earlier versions, which may not have all fields.

    Raises:
        InvalidStateError: for a missing or unknown field, or a value that does not fit.
    """
    with state_of(f"target '{name}'"):
        if not isinstance(state, Mapping):
            raise InvalidStateError(f"expected a dict, got a {type(state).__name__}")
        attributes = {saved: attribute for attribute, saved in _SAVED_NAMES.items()}
        plain = {attributes.get(saved, saved): value for saved, value in state.items()}
        plain.setdefault("relative_errors", None)  # earlier versions read all data
        if "layout" in plain:
            plain["layout"] = TargetLayout.from_state(name, plain["layout"])
        scales: TargetScales = fields_from_state(TargetScales, plain, complete)
        _check_loaded(scales)
    return _without_nan_weights(scales)


def _check_loaded(scales: TargetScales) -> None:
    """Check that the fields of loaded scales agree with each other and with the layout.

    Raises:
        InvalidStateError: for other shapes, types that are not sorted, scales that are not
            positive, or values for blocks that the target does not have.
    """
    layout = scales.layout
    per_atom = layout.sample_kind == "atom"
    sizes = {
        "n_types": scales.types.numel(),
        "n_fixed_only_types": scales.fixed_only_types.numel(),
        "n_baseline_types": scales.baseline_types.numel(),
    }
    sizes["n_rows"] = sizes["n_types"] + 2 + sizes["n_fixed_only_types"]
    n_properties = {key: block.n_properties for key, block in layout.blocks.items()}
    check_shapes(scales, sizes, {"n_properties": n_properties})
    if scales.per_property.keys() != n_properties.keys():
        raise InvalidStateError(
            f"per_property: expected the blocks {list(n_properties)}, got "
            f"{list(scales.per_property)}"
        )
    if not per_atom and scales.types.tolist() != [-1]:
        raise InvalidStateError(f"types: expected [-1], got {scales.types.tolist()}")
    for name in ("types", "fixed_only_types", "baseline_types"):
        types = getattr(scales, name)
        if bool((types.diff() <= 0).any()):
            raise InvalidStateError(f"{name}: expected sorted types, got {types.tolist()}")
    terms = {"", *layout.gradients}
    wrong_terms = {t: m for t, m in scales.mean_squares.items() if t not in terms or m < 0}
    if wrong_terms:
        raise InvalidStateError(
            f"mean_squares: expected numbers of at least 0 for {sorted(terms)}, got {wrong_terms}"
        )
    if not scales.unknown.keys() <= scales.weights.keys():
        raise InvalidStateError(
            f"unknown: expected some of the blocks with weights, {list(scales.weights)}, got "
            f"{list(scales.unknown)}"
        )
    fractions = layout.sample_kind == "structure" and not scales.extensive
    if scales.weights and scales.composition not in ("counts", *(["fractions"] * fractions)):
        raise InvalidStateError(
            f"composition: expected one that suits the target, got '{scales.composition}'"
        )
    if isinstance(scales.fixed, dict) and not per_atom:
        raise InvalidStateError("fixed: expected one number for a target that is not per-atom")
    fixed = scales.fixed.values() if isinstance(scales.fixed, dict) else [scales.fixed]
    if any(number is not None and number <= 0 for number in fixed):
        raise InvalidStateError(f"fixed: expected positive numbers, got {scales.fixed}")
    for name, values in [
        ("per_target", scales.per_target),
        *((f"per_property: {key}", values) for key, values in scales.per_property.items()),
    ]:
        # Scales from metatrain, which have no RMS, have none over all types either, and the scale
        # 0 of a property whose data were 0.
        imported = math.isnan(scales.rms_before)
        used = torch.ones(len(values), dtype=torch.bool)
        used[sizes["n_types"]] = not imported
        wrong = ~(values[used] > 0.0)
        if imported and name != "per_target":
            wrong &= values[used] != 0.0
        if bool(wrong.any()):
            raise InvalidStateError(
                f"{name}: expected positive scales, got {values[used][wrong].tolist()}"
            )


def _without_nan_weights(scales: TargetScales) -> TargetScales:
    """The same scales, with 0 for weights without data, which are marked as unknown.

    Version 0.1.0 marked them with NaN instead.
    """
    without_data = {
        key: weights.isnan() for key, weights in scales.weights.items() if weights.isnan().any()
    }
    if not without_data:
        return scales
    weights = {key: weights.nan_to_num() for key, weights in scales.weights.items()}
    if scales.layout.sample_kind != "structure":
        return replace(scales, weights=weights)
    return replace(scales, weights=weights, unknown=without_data)
