"""Without a package of an extra, the error names the extra."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

MOLECULES = (
    "the embedded molecules need the extra 'molecules': pip install 'lightning-scaler[molecules]'"
)
GENERATE = "new molecules need the extra 'generate': pip install 'lightning-scaler[generate]'"
ZBL = "ZBL and its neighbor lists need the extra 'zbl': pip install 'lightning-scaler[zbl]'"
COMMAND = Path(sys.executable).with_name("lightning-scaler-train")


def run_without(package, folder, *command):
    """Run a command in a folder, in an environment where importing a package fails."""
    (folder / "sitecustomize.py").write_text(f"import sys; sys.modules['{package}'] = None")
    search_path = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.run(
        [*map(str, command)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(search_path)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("package", "imported", "message"),
    [
        ("e3nn", "molecules.model", MOLECULES),
        ("vesin", "molecules.datamodule", MOLECULES),
        ("tblite", "molecules.generate", GENERATE),
        ("pyscf", "molecules.generate", GENERATE),
        ("vesin", "ZBL", ZBL),
    ],
)
def test_importing_a_feature_names_its_missing_extra(tmp_path, package, imported, message):
    room, _, name = f"lightning_scaler.{imported}".rpartition(".")
    code = f"from {room} import {name}"
    result = run_without(package, tmp_path, sys.executable, "-c", code)
    assert result.returncode == 1
    last = result.stderr.splitlines()[-1]
    assert last == f"ModuleNotFoundError: No module named '{package}'; {message}"


@pytest.mark.slow
def test_the_command_names_the_missing_extra_without_a_traceback(tmp_path):
    result = run_without("e3nn", tmp_path, COMMAND, "hydra.run.dir=.")
    assert result.returncode == 1
    assert f"No module named 'e3nn'; {MOLECULES}" in result.stderr.splitlines()
    assert "Traceback" not in result.stderr
