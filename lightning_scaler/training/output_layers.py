"""New scales that output layers absorb, so that predictions in physical units stay as they are."""

from collections.abc import Mapping, Sequence

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from ..batches import Batch, HasTypes, read_atoms
from ..plain_tensors import DeclaredBatch
from ..scaling import Scaler, TargetScales
from ..settings import check_names, did_you_mean
from ..steps import ScaledModule, scaler_of
from ..tensors import values_and_gradients
from .module_in_pass import evaluation_mode

# Relative difference up to which ratios, or predictions in float64, count as equal.
TOLERANCE = 1e-12
# The same for predictions in other dtypes, in units of the scale.
TOLERANCE_IN_FLOAT32 = 1e-5
# The same for predictions in float64 that are zero, in units of the scale.
NOISE = 1e-15

Parts = dict[str, list[Tensor]]


class OutputLayers:
    r"""The layers of a module that its predictions of some targets are linear in.

    If all parameters of such a layer are multiplied by :math:`\sigma_\mathrm{old} /
    \sigma_\mathrm{new}`, the network with the new scales predicts what it predicted before.

    Args:
        module: module with scales.
        layers: by target name the name of a submodule, as ``get_submodule`` takes it.

    Raises:
        ValueError: for unknown targets or submodules, and for parameters that are shared.
    """

    def __init__(self, module: ScaledModule, layers: Mapping[str, str]) -> None:
        self._module, self._names = module, dict(layers)
        check_names("output_layers", self._names, scaler_of(module).targets)
        self._parameters = {
            target: _parameters_of(module, target, name) for target, name in self._names.items()
        }
        _check_not_shared(module, self._names)

    def absorb(self, trainer: Trainer, fitted: Scaler, batch: Batch | None) -> None:
        """Multiply the parameters by old / new scale, and check the predictions of one batch.

        Args:
            trainer: trainer that is starting a fit.
            fitted: scaler with the new scales; those that are equal to the old ones but for
                rounding are replaced by them.
            batch: a batch of the data, if this process has one.

        Raises:
            ValueError: if there is not one ratio for a target, or the optimizer has a state for
                the old parameters; or if predictions change, with the old parameters restored.
        """
        scaler, factors = scaler_of(self._module), {}
        for target in self._names:
            factor = _factor(scaler.targets[target], fitted.targets[target])
            if abs(factor - 1.0) <= TOLERANCE:
                fitted.targets[target] = scaler.targets[target]
            else:
                factors[target] = factor
        if not factors:
            return
        if trainer.ckpt_path:
            raise ValueError(
                "refit='scales' multiplies parameters, and the state of the optimizer in the "
                f"checkpoint {str(trainer.ckpt_path)!r} belongs to those before; load the module "
                "with load_from_checkpoint(...) and leave out ckpt_path, or leave out refit"
            )
        systems = self._known_systems(batch)
        before = self._predict(systems, scaler)
        saved = [
            (parameter, parameter.detach().clone())
            for target in factors
            for parameter in self._parameters[target]
        ]
        with torch.no_grad():
            for target, factor in factors.items():
                for parameter in self._parameters[target]:
                    parameter.mul_(factor)
        problem = _difference(before, self._predict(systems, fitted), fitted)
        if problem is not None:
            with torch.no_grad():
                for parameter, values in saved:
                    parameter.copy_(values)
            name = type(self._module).__name__
            raise ValueError(
                f"output_layers={self._names}: after multiplying the parameters of these layers by "
                f"{factors}, {name} predicts something else: {problem}; the parameters are as "
                "before. Name the layer that a target alone depends on linearly, weights and bias, "
                "or keep the scales with refit='baseline'"
            )

    def _known_systems(self, batch: Batch | None) -> Sequence[HasTypes]:
        """The systems of the batch without atoms of new types, on the device of the module."""
        if batch is None:
            return []
        systems = self._module._scaling_move(batch).systems
        targets = scaler_of(self._module).targets.values()
        per_atom = [scales for scales in targets if scales.layout.sample_kind == "atom"]
        known = [
            system
            for system in systems
            if all(scales.has_tables_for({*system.types.tolist()}) for scales in per_atom)
        ]
        if isinstance(systems, DeclaredBatch):  # which cannot be split
            return systems if len(known) == len(systems) else []
        return known

    def _predict(self, systems: Sequence[HasTypes], scaler: Scaler) -> Parts:
        """Values and gradients of predictions in physical units, without the baseline."""
        if not systems:
            return {}
        with evaluation_mode(self._module):
            outputs = self._module._scaling_predict(systems)
            atoms = read_atoms(systems)
            physical = scaler.convert(atoms, outputs, "model", "physical", baseline=False)
        parts = {name: values_and_gradients(tensor) for name, tensor in physical.items()}
        return {
            name: [part.detach() for part in values + gradients]
            for name, (values, gradients) in parts.items()
        }


def scale_ratios(before: TargetScales, after: TargetScales) -> torch.Tensor:
    """New / old full scale of each type and property that both have, ``(n_ratios,)``."""
    ratios = [torch.empty(0, dtype=torch.float64)]
    rows = [
        [scales.types.tolist().index(z) for z in before.types.tolist() if z in after.types.tolist()]
        for scales in (before, after)
    ]
    for key in before.per_property.keys() & after.per_property.keys():
        old, new = before.values("full", key)[rows[0]], after.values("full", key)[rows[1]]
        if old.shape == new.shape:
            ratios.append((new / old)[old > 0.0])
    return torch.cat(ratios)


def _parameters_of(module: torch.nn.Module, target: str, name: str) -> list[torch.nn.Parameter]:
    known = [known for known, _ in module.named_modules() if known]
    if name not in known:
        raise ValueError(
            f"output_layers of target '{target}': {type(module).__name__} has no submodule "
            f"'{name}'; {did_you_mean(name, known)}"
        )
    parameters = list(module.get_submodule(name).parameters())
    if not parameters:
        raise ValueError(
            f"output_layers of target '{target}': the submodule '{name}' has no parameters"
        )
    return parameters


def _check_not_shared(module: torch.nn.Module, layers: Mapping[str, str]) -> None:
    """Refuse parameters that another layer of the module uses too."""
    parameters = list(module.named_parameters(remove_duplicate=False))
    for target, name in layers.items():
        inside = {_memory(p) for path, p in parameters if path.startswith(f"{name}.")}
        shared = [
            path
            for path, p in parameters
            if _memory(p) in inside and not path.startswith(f"{name}.")
        ]
        nested = [other for t, other in layers.items() if t != target and other == name]
        if shared or nested:
            raise ValueError(
                f"output_layers of target '{target}': the submodule '{name}' shares parameters "
                f"with {shared or 'that of another target'}, whose predictions would change; name "
                "a layer of its own"
            )


def _memory(parameter: torch.nn.Parameter) -> int:
    return parameter.untyped_storage().data_ptr()


def _factor(before: TargetScales, after: TargetScales) -> float:
    """Old / new scale, which must be the same for all types and properties."""
    ratios = scale_ratios(before, after)
    low, high = float(ratios.min()), float(ratios.max())
    if high > low * (1.0 + TOLERANCE):
        raise ValueError(
            f"refit='scales', target '{before.layout.name}': expected one ratio of new and old "
            f"scale, got {low:.6g} to {high:.6g} for its types and properties, which one layer "
            "cannot absorb; leave it out of output_layers, or keep its scales with "
            "refit='baseline'"
        )
    return 1.0 / low


def _difference(before: Parts, after: Parts, scaler: Scaler) -> str | None:
    """The first target whose predictions differ, in words."""
    for name, parts in before.items():
        scales = scaler.targets.get(name)
        scale = 1.0 if scales is None else float(scales.per_target[: scales.types.numel()].max())
        for old, new in zip(parts, after[name], strict=True):
            if not old.numel():
                continue
            size, change = float(old.abs().max()), float((new - old).abs().max())
            if old.dtype == torch.float64:
                allowed = TOLERANCE * size + NOISE * scale
            else:
                allowed = TOLERANCE_IN_FLOAT32 * max(scale, size)
            if not change <= allowed:
                return f"'{name}' by up to {change:.3g}, where its largest value is {size:.3g}"
    return None
