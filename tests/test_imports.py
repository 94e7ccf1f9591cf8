"""Data go one way, from the tensors up to Lightning: no module imports from a higher one."""

import ast
from pathlib import Path

import pytest

import lightning_scaler

PACKAGE = Path(lightning_scaler.__file__).parent

# From the lowest to the highest. What is not named (applications, reports of them, molecules) may
# import anything, and nothing of these may import it.
ORDER = [
    "torchscript",
    "rescaling",
    "comparisons",
    "tensormap",
    "target",
    "settings",
    "atomic_types",
    "known_tensors",
    "atoms",
    "systems",
    "system_labels",
    "matching",
    "additive",
    "contributed",
    "grouped_sums",
    "moments",
    "least_squares",
    "block_statistics",
    "batch_statistics",
    "statistics",
    "baseline",
    "scales",
    "fit",
    "offsets",
    "conversion",
    "metatrain_checkpoint",
    "metatrain",
    "scaler",
    "waiting",
    "gathered",
    "accumulator",
    "loss_space",
    "metrics",
    "logged_metrics",
    "loss",
    "batches",
    "transfer",
    "distributed",
    "repeats",
    "mixin",
    "state_tensors",
    "ranks",
    "data_pass",
    "restored",
    "report",
    "callback",
]
CORE = ORDER[: ORDER.index("loss_space") + 1]


def imported(name: str) -> set[str]:
    """Names of the modules that a module imports, those of the package with a leading dot."""
    found = set()
    for node in ast.walk(ast.parse((PACKAGE / f"{name}.py").read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level:
            assert node.level == 1, f"{name}.py reaches out of the package"
            modules = [node.module] if node.module else [alias.name for alias in node.names]
            found |= {f".{module}" for module in modules}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module)
    return {
        "." + module.removeprefix("lightning_scaler.")
        if module.startswith("lightning_scaler.")
        else module
        for module in found
    }


@pytest.mark.parametrize("name", ORDER)
def test_no_module_imports_a_higher_one(name):
    lower = {f".{module}" for module in ORDER[: ORDER.index(name)]}
    ours = {module for module in imported(name) if module.startswith(".")}
    assert ours <= lower
    assert "lightning_scaler" not in imported(name)


@pytest.mark.parametrize("name", CORE)
def test_core_knows_torch_and_metatensor_only(name):
    roots = {module.split(".")[0] for module in imported(name)} - {""}
    assert not roots & {"lightning", "lightning_utilities", "pytorch_lightning"}
    assert not roots & {"torchmetrics", "hydra", "omegaconf", "rich", "metatomic"}
