"""Imports go one way, room by room, and never past the ``__init__`` of another room."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import lightning_scaler

PACKAGE = Path(lightning_scaler.__file__).parent

# From the lowest to the highest: a room imports only those before it.
ROOMS = [
    "settings",
    "reports",
    "tensors",
    "batches",
    "plain_tensors",
    "statistics",
    "baselines",
    "scaling",
    "fitting",
    "metrics",
    "deploy",
    "data_pass",
    "steps",
    "training",
    "folding",
    "interop",
    "molecules",
    "commands",
]
CORE = ROOMS[ROOMS.index("tensors") : ROOMS.index("fitting") + 1]

# Imports inside a function.
ON_CALL = {("scaling", "interop")}

LIGHTNING_AND_HYDRA = {
    "hydra",
    "lightning",
    "lightning_fabric",
    "omegaconf",
    "pytorch_lightning",
    "torchmetrics",
}
# What the core may import besides torch and metatensor, and where.
EXCEPTIONS = {
    "batches/device.py": {"lightning_utilities", "metatomic"},
    "batches/engine.py": {"metatomic"},
    "batches/inference.py": {"metatomic"},
    "baselines/zbl.py": {"metatomic", "vesin"},
    "baselines/zbl_for_engines.py": {"metatomic"},
    "plain_tensors/ase_atoms.py": {"metatomic"},
    "tensors/state_file.py": {"safetensors"},
    "scaling/scaler.py": {"matplotlib", "rich"},  # in annotations
}
ALLOWED = {"metatensor", "torch", "typing_extensions"}


def modules(room):
    folder = PACKAGE / room
    return sorted(folder.glob("*.py")) if folder.is_dir() else [PACKAGE / f"{room}.py"]


def imports(file):
    """Absolute names of the modules that a file imports."""
    package = file.relative_to(PACKAGE.parent).with_suffix("").parts[:-1]
    found = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = list(package[: len(package) - node.level + 1]) if node.level else []
            base += [node.module] if node.module else []
            if node.module is None:
                found += [".".join([*base, alias.name]) for alias in node.names]
            else:
                found.append(".".join(base))
    return found


def imported_rooms(file):
    """The rooms that a file imports, each with the rest of the module name."""
    for name in imports(file):
        root, *path = name.split(".")
        if root == "lightning_scaler" and path:
            yield path[0], path[1:]


def test_contributing_lists_the_rooms_in_order():
    text = (PACKAGE.parent / "CONTRIBUTING.md").read_text()
    table = text.split("\n## Rooms\n")[1].split("\n## ")[0]
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == ROOMS


def test_every_folder_and_module_is_a_room():
    found = {path.stem for path in PACKAGE.iterdir() if path.is_dir() or path.suffix == ".py"}
    assert found - {"__init__", "__pycache__", "py", "configs"} == set(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_rooms_below_it(room):
    for file in modules(room):
        for other, _ in imported_rooms(file):
            below = ROOMS.index(other) <= ROOMS.index(room)
            assert below or (room, other) in ON_CALL, f"{file.name} imports {other}"


@pytest.mark.parametrize("room", ROOMS)
def test_nothing_is_imported_past_the_init_of_a_room(room):
    for file in modules(room):
        for other, path in imported_rooms(file):
            assert other == room or not path, f"{file.name} imports {other}.{'.'.join(path)}"


@pytest.mark.parametrize("room", CORE)
def test_the_core_imports_neither_lightning_nor_hydra(room):
    for file in modules(room):
        roots = {name.split(".")[0] for name in imports(file)}
        assert not roots & LIGHTNING_AND_HYDRA
        standard = roots & set(sys.stdlib_module_names)
        allowed = ALLOWED | EXCEPTIONS.get(f"{room}/{file.name}", set())
        assert roots - standard - {"lightning_scaler"} <= allowed, file.name


@pytest.mark.slow
def test_importing_the_core_loads_neither_lightning_nor_hydra(tmp_path):
    code = (
        "import sys; from lightning_scaler import ScaleAccumulator, Scaler, CompositionBaseline; "
        f"print(sorted({LIGHTNING_AND_HYDRA | {'matplotlib', 'rich'}!r} & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert result.stdout.strip() == "[]"


def test_nothing_is_imported_from_a_conftest():
    """All of them have one name, so that only the first would be found."""
    for file in Path(__file__).parent.rglob("*.py"):
        assert not re.search(r"^(from|import) conftest", file.read_text(), re.MULTILINE), file
