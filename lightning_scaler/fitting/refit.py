"""A fit that keeps scales of an earlier one: new atomic types, a new baseline, or new scales."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..baselines import CompositionBaseline, CompositionWeights, correct_weights
from ..scaling import Scaler, TargetScales
from ..settings import FixedScale, RefitPart
from ..statistics import TargetStatistics
from ..tensors import Key, TargetLayout
from .fit import fit_target


@dataclass(frozen=True)
class EarlierFit:
    """Scales of an earlier fit, and what is fitted again.

    Attributes:
        targets: scales by target name.
        part: ``"types"`` keeps every number and adds scales and weights for atomic types without
            them; ``"baseline"`` fits all weights again too; ``"scales"`` fits the scales of the
            targets in ``new_scales`` again.
        new_scales: names of the targets with new scales.
        errors: statistics of the values minus the predictions with the earlier scales, by target
            name; if there are any, the baseline is corrected by a fit to them.
    """

    targets: Mapping[str, TargetScales]
    part: RefitPart
    new_scales: frozenset[str] = frozenset()
    errors: Mapping[str, TargetStatistics] = field(default_factory=dict)

    def kept_types(self) -> dict[str, set[int]]:
        """The atomic types whose scales and weights are kept, by target name."""
        return {
            name: set()
            if self.part == "baseline"
            else {*scales.row_of_type(), *scales.baseline_types.tolist()}
            for name, scales in self.targets.items()
            if name not in self.new_scales
        }

    def refit(
        self,
        statistics: TargetStatistics,
        baseline: CompositionBaseline | None,
        fixed: FixedScale | None,
        enabled: bool,
    ) -> tuple[TargetScales, dict[Key, Tensor]]:
        """Fit a part of the scales and the baseline of one target again.

        Args:
            statistics: statistics of the new data.
            baseline: the baseline that is subtracted before scaling; ``None``: none.
            fixed: per-target scale to use instead of a fitted one.
            enabled: ``False``: every scale is 1.

        Returns:
            The scales; and for each block the properties of the new scales whose RMS is zero or
            rounding noise, as :func:`fit_target` returns them.

        Raises:
            ValueError: for another layout than that of the earlier fit, except blocks of new types;
                and for a fixed scale or baseline that does not suit the target.
        """
        name = statistics.layout.name
        earlier, part = self.targets[name], self.part
        layout = earlier.layout.union(statistics.layout, source="the scales that are kept")
        _check_new_blocks(earlier, layout)
        per_atom = layout.sample_kind == "atom"
        types = earlier.types if per_atom else earlier.baseline_types
        data = TargetStatistics(layout, types, {})
        data.merge(statistics)
        before = CompositionWeights(earlier.baseline_types, earlier.weights, earlier.unknown)
        weights = CompositionWeights(before.types, {}, {})
        if baseline is not None and name not in baseline.excluded:
            if part != "baseline":
                weights = baseline.weights(data, kept=before)
            elif name in self.errors:
                weights = correct_weights(before, self.errors[name], baseline)
                weights = baseline.weights(data, kept=weights)
            else:
                weights = baseline.weights(data, otherwise=before)
        new_scales = name in self.new_scales
        scales, below_noise = fit_target(
            data,
            earlier.extensive,
            baseline,
            fixed if new_scales else _kept_or_fixed(earlier, fixed, data.types),
            enabled,
            earlier.additive,
            weights,
        )
        if part != "baseline":
            scales = _with_settings_of_baseline(scales, earlier)
        if new_scales:
            return scales, below_noise
        new_types = ~torch.isin(scales.types, torch.tensor(list(earlier.row_of_type())))
        below_noise = {key: found & new_types[:, None] for key, found in below_noise.items()}
        scales = replace(scales, fixed=_with_new_types(fixed, earlier.fixed))
        return _keep_scales(scales, earlier, part), below_noise


def check_subtracted(
    scaler: Scaler,
    part: RefitPart,
    baseline: CompositionBaseline | None,
    additive: bool,
    names: Collection[str],
) -> None:
    """Refuse to keep scales of what other baselines left over than those of the new data.

    Args:
        scaler: scaler of the earlier fit.
        part: part of it that is fitted again.
        baseline: baseline of the new data; ``None``: none.
        additive: whether an additive module is subtracted from the new data.
        names: names of the targets in the new data.

    Raises:
        ValueError: naming the target.
    """
    for name, scales in scaler.targets.items():
        before = bool(scales.weights)
        without = scaler.settings.baseline == "none" or scales.composition == "none"
        now = baseline is not None and name not in baseline.excluded
        # A target whose earlier data had no invariant block is neither.
        contradictory = without if now else before
        if name in names and part != "baseline" and contradictory:
            was, give = ("a", "give") if before else ("no", "do not give")
            raise ValueError(
                f"target '{name}': its scales are kept, and were fitted with {was} composition "
                f"baseline; {give} it one now (baseline=CompositionBaseline()), or fit all again"
            )
        if name not in names and baseline is None and scales.weights:
            raise ValueError(
                f"target '{name}': it is not in the data and keeps its baseline, which is no "
                "longer requested; name the targets that have none, such as baseline={'forces': "
                "'none'} of TargetScaler or CompositionBaseline(excluded=['forces'])"
            )
        if scales.additive and not additive:
            raise ValueError(
                f"target '{name}': its scales are kept, and were fitted after subtracting an "
                "additive module; give it for the new data too (additive=), or fit all again"
            )


def _check_new_blocks(earlier: TargetScales, layout: TargetLayout) -> None:
    """Refuse blocks that the earlier data did not have, except those of a new atomic type."""
    known = earlier.layout
    for key in layout.blocks.keys() - known.blocks.keys():
        of_type = dict(zip(layout.key_names, key, strict=True)).get("atom_type")
        if layout.sample_kind == "pair" or of_type not in (None, *earlier.types.tolist()):
            continue
        raise ValueError(
            f"target '{layout.name}': the data have the block ({layout.describe(key)}), which was "
            "not in the data of the scales that are kept; known: "
            f"{[known.describe(key) for key in known.blocks]}; remove the block, or fit all scales "
            "again with TargetScaler(refit=True)"
        )


def _kept_or_fixed(
    earlier: TargetScales, fixed: FixedScale | None, types: Tensor
) -> FixedScale | None:
    """The earlier scale, with those of new types that are fixed."""
    kind = earlier.layout.sample_kind
    if kind != "atom":
        return None if kind == "pair" else float(earlier.per_target[0])
    fixed = earlier.fixed if isinstance(earlier.fixed, float) else fixed  # that of all types
    if isinstance(fixed, float):
        fixed = dict.fromkeys(types.tolist(), fixed)
    kept = {z: float(earlier.per_target[row]) for z, row in earlier.row_of_type().items()}
    return {**(fixed or {}), **kept}


def _with_new_types(fixed: FixedScale | None, earlier: FixedScale | None) -> FixedScale | None:
    """The fixed scales of both; the earlier ones count."""
    if isinstance(fixed, dict) and not isinstance(earlier, float):
        return {**fixed, **(earlier or {})}
    return earlier


def _with_settings_of_baseline(scales: TargetScales, earlier: TargetScales) -> TargetScales:
    """The scales, with a baseline of the earlier kind, and the fixed weights of both."""
    fixed = {**(scales.fixed_weights or {}), **(earlier.fixed_weights or {})}
    return replace(scales, composition=earlier.composition, fixed_weights=fixed or None)


def _row_of_type(scales: TargetScales) -> dict[int | str, int]:
    """The row of each type; and those over all types, and of ones."""
    n_types = scales.types.numel()
    rows: dict[int | str, int] = {"pooled": n_types, "identity": n_types + 1}
    return rows | {z: row for z, row in scales.row_of_type().items()}


def _keep_scales(scales: TargetScales, earlier: TargetScales, part: RefitPart) -> TargetScales:
    """The earlier scales, and those of the new fit for types that they do not have.

    Args:
        scales: result of a fit, with the baseline and the types of the result.
        earlier: scales of an earlier fit.
        part: ``"baseline"`` if the weights were fitted again.
    """
    old_rows, new_rows = _row_of_type(earlier), _row_of_type(scales)
    if bool(earlier.per_target[old_rows["pooled"]].isnan()):  # from metatrain
        del old_rows["pooled"]
    source = torch.tensor(list(old_rows.values()))
    rows = torch.tensor([new_rows[z] for z in old_rows])
    per_target = scales.per_target.index_copy(0, rows, earlier.per_target[source])
    per_property, zeros = {}, {}
    layout, n_types = scales.layout, scales.types.numel()
    is_old = torch.isin(scales.types, earlier.types)
    for key, block in layout.blocks.items():
        table = scales.per_property.get(key)
        if table is None:  # a block without data
            table = (1.0 / scales.per_target)[:, None].repeat(1, block.n_properties)
        zero = scales.zeros.get(key, torch.zeros(n_types, block.n_properties).bool())
        zero = zero & ~is_old[:, None]
        if key in earlier.per_property:
            table = table.index_copy(0, rows, earlier.per_property[key][source])
        if key in earlier.zeros:
            zero[is_old] = earlier.zeros[key]
        per_property[key] = table
        if bool(zero.any()):
            zeros[key] = zero
    kept = {"rms_before", "rms_after", "explained_variance"}
    mean_squares = {**earlier.mean_squares, **scales.mean_squares}
    if part == "baseline":
        # Scales of metatrain have no RMS.
        kept = {"rms_before", "rms_after"} if math.isnan(earlier.rms_before) else set()
    else:
        new_terms = {*layout.gradients} - {*earlier.layout.gradients}
        of_new_terms = {t: m for t, m in scales.mean_squares.items() if t in new_terms}
        mean_squares = {**of_new_terms, **earlier.mean_squares}
    return replace(
        scales,
        per_target=per_target,
        per_property=per_property,
        zeros=zeros,
        mean_squares=mean_squares,
        **{name: getattr(earlier, name) for name in kept},
    )
