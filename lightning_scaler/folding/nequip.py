"""NequIP: the scales and shifts of atomic energies."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import torch

from ..plain_tensors import Declaration
from ..settings import atomic_type
from .folded_target import FoldedTarget, Preset

NAMES = ("per_type_energy_scales", "per_type_energy_shifts")


class NequIP(Preset):
    """Modules of NequIP, whose ``PerTypeScaleShift`` holds scales and shifts in float64."""

    def recognises(self, source: Any) -> bool:
        """Whether a module, or the content of a checkpoint, is of NequIP."""
        if isinstance(source, dict):
            return "training_module" in source.get("hyper_parameters", {}).get("info_dict", {})
        return any(base.__module__.startswith("nequip.train") for base in type(source).__mro__)

    def module_class(self, checkpoint: Any) -> Any:
        """The class that the checkpoint names."""
        # As NequIP's own commands do; it also sets the default dtype.
        import_module("nequip.utils.global_state").set_global_state()
        path = checkpoint["hyper_parameters"]["info_dict"]["training_module"]["_target_"]
        module, _, name = path.rpartition(".")
        return getattr(import_module(module), name)

    def batch(self, path: Any) -> Any:
        """A structure of the training data."""
        checkpoints = import_module("nequip.model.saved_models.checkpoint")
        return checkpoints.data_dict_from_checkpoint(str(path))

    def write(
        self, module: Any, targets: Mapping[str, FoldedTarget], declaration: Declaration
    ) -> None:
        """Write scale and shifts into the only ``PerTypeScaleShift`` of a module.

        Raises:
            ValueError: for several targets, layers, or trainable scales.
        """
        parts = [part for part in module.modules() if type(part).__name__ == "PerTypeScaleShift"]
        if len(targets) != 1 or len(parts) != 1:
            raise ValueError(
                f"fold: expected one target and one PerTypeScaleShift, got {list(targets)} and "
                f"{len(parts)} layers; name the layers as layers={{…}}"
            )
        (target,), (part,) = targets.values(), parts
        if part.scales_trainable or part.shifts_trainable:
            raise ValueError(
                "fold: PerTypeScaleShift has trainable scales or shifts, of which NequIP keeps "
                "averages; train without per_type_energy_scales_trainable and "
                "per_type_energy_shifts_trainable"
            )
        n_types = len(part.type_names)
        if declaration.batch.get("types") == ("atom_types",):
            types = list(range(n_types))
        else:
            types = [atomic_type("fold, type_names", name) for name in part.type_names]
        scales = target.scale * (part.scales if part.has_scales else torch.ones(1))
        shifts = target.scale * (part.shifts if part.has_shifts else torch.zeros(1))
        shifts = shifts.reshape(-1) + target.table(types).to(shifts.device)
        part.scales = scales.double().reshape(-1, 1).expand(n_types, 1).clone()
        part.shifts = shifts.reshape(-1, 1)
        part.has_scales = part.has_shifts = True
        part.scales_shortcut = part.shifts_shortcut = n_types == 1
        # The shapes of a module that is built from a checkpoint depend on these.
        model = module.hparams["model"]
        for name, values in zip(NAMES, (part.scales, part.shifts), strict=True):
            numbers = values.reshape(-1).tolist()
            model[name] = dict(zip(part.type_names, numbers, strict=True))
        cls = type(module)
        trained = module.hparams["info_dict"]["training_module"]
        trained["_target_"] = f"{cls.__module__}.{cls.__qualname__}"
        trained["model"] = model
