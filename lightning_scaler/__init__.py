"""Target scaling for atomistic machine learning, as a PyTorch Lightning plugin."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .baselines import ZBL, CompositionBaseline
    from .batches import join_predictions
    from .deploy import PhysicalModel, export
    from .fitting import ScaleAccumulator
    from .folding import fold
    from .metrics import PhysicalUnits, RelativeRootMeanSquaredError
    from .plain_tensors import PerAtom, PerStructure
    from .reports import ScalesOfTarget, errors_table, print_tables, scales_table
    from .scaling import Scaler
    from .steps import ScaledSteps, TargetScalingMixin
    from .tensors import InvalidStateError
    from .training import TargetScaler

    __version__: str

__all__ = [
    "ZBL",
    "CompositionBaseline",
    "InvalidStateError",
    "PerAtom",
    "PerStructure",
    "PhysicalModel",
    "PhysicalUnits",
    "RelativeRootMeanSquaredError",
    "ScaleAccumulator",
    "ScaledSteps",
    "Scaler",
    "ScalesOfTarget",
    "TargetScaler",
    "TargetScalingMixin",
    "errors_table",
    "export",
    "fold",
    "join_predictions",
    "print_tables",
    "scales_table",
]

_ROOMS = {
    "CompositionBaseline": "baselines",
    "InvalidStateError": "tensors",
    "PerAtom": "plain_tensors",
    "PerStructure": "plain_tensors",
    "PhysicalModel": "deploy",
    "PhysicalUnits": "metrics",
    "RelativeRootMeanSquaredError": "metrics",
    "ScaleAccumulator": "fitting",
    "ScaledSteps": "steps",
    "Scaler": "scaling",
    "ScalesOfTarget": "reports",
    "TargetScaler": "training",
    "TargetScalingMixin": "steps",
    "ZBL": "baselines",
    "errors_table": "reports",
    "export": "deploy",
    "fold": "folding",
    "join_predictions": "batches",
    "print_tables": "reports",
    "scales_table": "reports",
}


def __getattr__(name: str) -> Any:
    # Importing Lightning takes seconds; the core and the command's --help do not need it.
    if name == "__version__":
        return _read_version()
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with _original_torch_functions():
        return getattr(import_module(f".{_ROOMS[name]}", __name__), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


@contextmanager
def _original_torch_functions() -> Iterator[None]:
    """Put back what PyTorch Geometric replaces in torch, for as long as an import takes.

    Its Python functions cannot be compiled by TorchScript, which metatensor does when imported.
    """
    if "torch_geometric" not in sys.modules:
        yield
        return
    torch: Any = sys.modules["torch"]
    replaced = {name: getattr(torch, name) for name in ("index_select", "select")}
    try:
        for name in replaced:
            setattr(torch, name, getattr(torch._C._VariableFunctions, name))
        yield
    finally:
        for name, function in replaced.items():
            setattr(torch, name, function)


def _read_version() -> str:
    import re
    from importlib.metadata import PackageNotFoundError, version
    from pathlib import Path

    try:
        return version("lightning-scaler")
    except PackageNotFoundError:  # a checkout on the path
        project = (Path(__file__).parents[1] / "pyproject.toml").read_text()
        versions: list[str] = re.findall(r'^version = "(.+)"$', project, re.MULTILINE)
        return versions[0]


if "torch_geometric" in sys.modules:  # for modules that are imported by their own names
    with _original_torch_functions():
        import_module("metatensor.torch")
