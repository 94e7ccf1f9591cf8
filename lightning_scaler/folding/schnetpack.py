"""SchNetPack: post-processing that multiplies and shifts what a model predicts."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import torch

from ..plain_tensors import Declaration
from .folded_target import FoldedTarget, Preset


class SchNetPack(Preset):
    """Tasks of SchNetPack, whose models end with post-processing transforms."""

    def recognises(self, source: Any) -> bool:
        """Whether a module, or the content of a checkpoint, is a task of SchNetPack."""
        model = source
        if isinstance(source, dict):
            model = source.get("hyper_parameters", {}).get("model")
        bases = type(model).__mro__
        return any(base.__module__.startswith("schnetpack.") for base in bases)

    def module_class(self, checkpoint: Any) -> Any:
        """The task of SchNetPack, which checkpoints do not name."""
        return import_module("schnetpack.task").AtomisticTask

    def write(
        self, module: Any, targets: Mapping[str, FoldedTarget], declaration: Declaration
    ) -> None:
        """Append transforms to the post-processing of a model.

        Raises:
            ValueError: for a prediction that is a column of a tensor, which they cannot change.
        """
        transform = import_module("schnetpack.transform")
        processors = module.model.postprocessors
        if not any(type(part).__name__ == "CastTo64" for part in processors):
            processors.append(transform.CastTo64())
        for target in targets.values():
            value, gradients = _keys(target.target, declaration)
            for key in (value, *gradients):
                part = transform.ScaleProperty(key)
                part.scale = torch.tensor([target.scale], dtype=torch.float64)
                part._initialized = True
                processors.append(part)
            if any(target.shifts.values()):
                largest = max(target.shifts)
                part = transform.AddOffsets(value, add_atomrefs=True, zmax=max(100, largest + 1))
                part.atomref = target.table(range(len(part.atomref)))
                part._atomrefs_initialized = part._mean_initialized = True
                processors.append(part)
        module.model.do_postprocessing = True


def _keys(name: str, declaration: Declaration) -> tuple[str, list[str]]:
    """The names under which a model returns a target and its gradients."""
    keys: list[Any] = []
    for place in declaration.in_output[name]:
        address = place.paths[0]
        if len(address) != 1 or not isinstance(address[0], str):
            raise ValueError(
                f"fold: target '{name}': expected the name of an output of the model, got "
                f"{address!r}"
            )
        keys += address
    return keys[0], keys[1:]
