"""The metrics that the mixin logs for each target."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import TYPE_CHECKING, NamedTuple, cast

from metatensor.torch import TensorMap
from torchmetrics import Metric

from ..batches import Atoms
from ..metrics import (
    SharedSums,
    SummedError,
    depends_on_baseline,
    is_summable,
    leave_inference_mode,
    select_values,
)
from ..scaling import (
    PhysicalValues,
    TargetPart,
    add_baseline,
    errors_in_physical_units,
    parts_of_targets,
    values_in_physical_units,
)
from ..tensors import TargetLayout
from .epoch_log import RunMetrics, logged_path
from .metric_outputs import copy_metrics, split_outputs, updated_metrics

if TYPE_CHECKING:
    from .mixin import TargetScalingMixin


class MetricScope(NamedTuple):
    """The values that one metric sees: all values of a target, one of its gradients, or one block.

    Attributes:
        path: logged name without stage and metric, as in ``"energy"`` or ``"energy/positions"``.
        gradient: parameter of the gradient; ``None`` for values.
        block: key of the block by name; ``None`` for all blocks.
        per_atom: whether errors are divided by the number of atoms.
    """

    path: str
    gradient: str | None = None
    block: dict[str, int] | None = None
    per_atom: bool = False

    def logged_name(self, metric: str) -> str:
        """The logged name of a metric, without the stage: ``"energy/rmse_per_atom"``."""
        return f"{self.path}/{metric}" + ("_per_atom" if self.per_atom else "")

    def contains(self, part: TargetPart, layout: TargetLayout) -> bool:
        """Whether the metric sees a part of a target with this layout."""
        block = dict(zip(layout.key_names, part.key, strict=False))
        return (part.target, part.gradient) == (layout.name, self.gradient) and self.block in (
            None,
            block,
        )


class LoggedMetrics(RunMetrics):
    """The metrics of a module by stage, loader and scope, each created when it is first needed.

    Args:
        attribute: name of the attribute under which the module holds this one.
    """

    def __init__(self, attribute: str) -> None:
        super().__init__(attribute)
        self._of_sanity_check: set[str] = set()

    def log_targets(
        self,
        module: "TargetScalingMixin",
        stage: str,
        dataloader_idx: int,
        atoms: Atoms,
        predictions: Mapping[str, TensorMap],
        targets: Mapping[str, TensorMap],
    ) -> None:
        """Update the metrics of all targets with a batch, and log them.

        The MAE and RMSE of all targets share their sums. Metrics that are not a function of the
        difference see the values with the baseline. Those that return a dict are logged under its
        keys.

        Args:
            module: module that logs and configures the metrics, with its scaler.
            stage: ``"train"``, ``"val"`` or ``"test"``.
            dataloader_idx: index of the loader.
            atoms: atoms of the batch.
            predictions: predictions in loss space, in the rows of the targets.
            targets: targets in loss space.
        """
        scaler, per_block = module.scaler, [*module.metrics_per_block]
        depends_on = [*scaler.targets.values()], per_block, bool(module.trainer.sanity_checking)
        make = partial(self._make, module, f"{stage}/{dataloader_idx}")
        sums, scopes = self.find(module, stage, dataloader_idx, depends_on, make)
        if any(isinstance(m, SummedError) for *_, metrics in scopes for m in metrics.values()):
            sums.update(*errors_in_physical_units(scaler, atoms, predictions, targets))

        @cache
        def values() -> Mapping[str, list[PhysicalValues]]:
            return values_in_physical_units(scaler, atoms, predictions, targets)

        @cache
        def with_baseline(name: str) -> list[PhysicalValues]:
            return add_baseline(scaler, atoms, name, values()[name], targets)

        several_processes = module.trainer.world_size > 1
        logged = []
        for name, scope, key, metrics in scopes:
            others = [m for m in metrics.values() if not isinstance(m, SummedError)]
            updated = False
            if others and name in values():
                updated = _update(others, scope, values()[name], partial(with_baseline, name))
            for metric_name, metric in metrics.items():
                # Processes reduce their metrics together, so all of them log the same ones, even if
                # their batches have different targets. Wrappers never set their own update_called.
                if updated or several_processes or metric.update_called:
                    logged_name = f"{stage}/{scope.logged_name(metric_name)}"
                    logged.append((logged_name, f"{key}.{metric_name}", metric))
        self.log_for_epoch(module, logged)

    def _make(
        self, module: "TargetScalingMixin", key: str
    ) -> tuple[SharedSums, list[tuple[str, MetricScope, str, Mapping[str, Metric]]]]:
        """The metrics of a stage and a loader, with those of the same parts from before.

        Args:
            module: module that configures the metrics, with its scaler.
            key: key of the sums, with which those of all scopes begin.

        Returns:
            The sums that all MAE and RMSE share; target, scope, key and metrics by name.
        """
        parts = parts_of_targets(module.scaler)
        if key not in self or cast(SharedSums, self[key]).names != parts:
            for old in [old for old in self if old.startswith(f"{key}/")]:
                del self[old]
            self[key] = SharedSums(parts, 3).to(module.device)
        sums = cast(SharedSums, self[key])
        scopes: list[tuple[str, MetricScope, str, Mapping[str, Metric]]] = []
        for name, scales in module.scaler.targets.items():
            for scope in metric_scopes(scales.layout, scales.extensive, module.metrics_per_block):
                of_scope = f"{key}/{scope.path}".replace(".", "_")
                # Metrics that remember values over epochs must not remember the sanity check.
                outdated = of_scope in self._of_sanity_check and not module.trainer.sanity_checking
                if of_scope not in self or outdated:
                    seen = [part for part in parts if scope.contains(part, scales.layout)]
                    self._add_scope(module, of_scope, sums, seen)
                metrics = dict(cast(Mapping[str, Metric], self[of_scope]).items())
                scopes.append((name, scope, of_scope, metrics))
        return sums, scopes

    def _add_scope(
        self, module: "TargetScalingMixin", key: str, sums: SharedSums, parts: Sequence[TargetPart]
    ) -> None:
        """Copy the configured metrics; the MAE and RMSE of the parts are computed from the sums."""
        copies = split_outputs(copy_metrics(module.configure_metrics()))
        for name, metric in copies.items():
            if is_summable(cast(Metric, metric)):
                copies[name] = SummedError(sums, parts, cast(Metric, metric))
        self[key] = copies.to(module.device)
        self._of_sanity_check.discard(key)
        if module.trainer.sanity_checking:
            self._of_sanity_check.add(key)


def _update(
    metrics: Sequence[Metric],
    scope: MetricScope,
    values: Sequence[PhysicalValues],
    values_with_baseline: Callable[[], Sequence[PhysicalValues]],
) -> bool:
    """Update metrics with the values of one scope; whether the batch has any."""
    selected = select_values(values, scope.gradient, scope.block)
    if selected is None:
        return False
    for metric in updated_metrics(metrics):
        leave_inference_mode(metric)
        if depends_on_baseline(metric):
            with_baseline = values_with_baseline()
            metric.update(*select_values(with_baseline, scope.gradient, scope.block) or ())
        else:
            metric.update(*selected)
    return True


def metric_scopes(
    layout: TargetLayout, extensive: bool, per_block: Sequence[str]
) -> list[MetricScope]:
    """The scopes in which a target is logged, the same on every process.

    Args:
        layout: layout of the target in the fit.
        extensive: whether errors are per atom.
        per_block: names of the targets with additional metrics for every block.
    """
    name = logged_path(layout.name)
    scopes = [MetricScope(name, per_atom=extensive)]
    for parameter in layout.gradients:
        per_atom = extensive and parameter != "positions"
        scopes.append(MetricScope(f"{name}/{parameter}", gradient=parameter, per_atom=per_atom))
    if layout.name in per_block:
        for key in layout.blocks:
            block = dict(zip(layout.key_names, key, strict=True))
            # Nearly all blocks have o3_sigma=1, so names leave it out.
            words = [f"{n}_{v}" for n, v in block.items() if (n, v) != ("o3_sigma", 1)]
            path = f"{name}/{'_'.join(words)}"
            scopes.append(MetricScope(path, block=block, per_atom=extensive))
    return scopes
