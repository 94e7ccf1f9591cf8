"""The names of the package itself."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import lightning_scaler

CHECKOUT = Path(__file__).parents[1]
VERSION = re.search(r'^version = "(.*)"$', (CHECKOUT / "pyproject.toml").read_text(), re.M)[1]


def run(code, *options):
    result = subprocess.run(
        [sys.executable, *options, "-c", code], capture_output=True, text=True, check=True
    )
    return result.stdout.strip()


@pytest.mark.parametrize("name", lightning_scaler.__all__)
def test_every_public_name_is_importable(name):
    assert getattr(lightning_scaler, name).__name__ == name


def test_tab_completion_lists_the_public_names():
    assert dir(lightning_scaler) == sorted([*lightning_scaler.__all__, "__version__"])


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'lightning_scaler' has no attribute 'Scalar'"):
        lightning_scaler.Scalar  # noqa: B018


def test_version_of_the_installed_package():
    assert lightning_scaler.__version__ == VERSION


def test_version_of_a_checkout_that_is_not_installed():
    # -I and -S leave only the standard library on the path.
    on_path = f"import sys; sys.path.insert(0, {str(CHECKOUT)!r}); "
    code = on_path + "import lightning_scaler; print(lightning_scaler.__version__)"
    assert run(code, "-I", "-S") == VERSION


def test_importing_the_package_loads_neither_torch_nor_lightning():
    heavy = {"torch", "lightning", "hydra", "metatensor", "importlib.metadata"}
    code = f"import sys, lightning_scaler; print(sorted({heavy} & set(sys.modules)))"
    assert run(code) == "[]"
