"""Without the extra ``molecules`` the error names it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

MESSAGE = (
    "No module named 'vesin'; the embedded molecules need the extra 'molecules': "
    "pip install 'lightning-scaler[molecules]'"
)
COMMAND = Path(sys.executable).with_name("lightning-scaler-train")


def run_without_vesin(folder, *command):
    """Run a command in a folder, in an environment where ``import vesin`` fails."""
    (folder / "sitecustomize.py").write_text("import sys; sys.modules['vesin'] = None")
    search_path = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.run(
        [*map(str, command)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(search_path)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_importing_the_molecules_names_the_missing_extra(tmp_path):
    code = "from lightning_scaler.molecules.datamodule import MoleculesDataModule"
    result = run_without_vesin(tmp_path, sys.executable, "-c", code)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1] == f"ModuleNotFoundError: {MESSAGE}"


@pytest.mark.slow
def test_the_command_names_the_missing_extra_without_a_traceback(tmp_path):
    result = run_without_vesin(tmp_path, COMMAND, "hydra.run.dir=.")
    assert result.returncode == 1
    assert MESSAGE in result.stderr.splitlines()
    assert "Traceback" not in result.stderr
