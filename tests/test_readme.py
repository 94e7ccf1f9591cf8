"""The code and commands of README.md."""

import inspect
import re
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from lightning_scaler import TargetScaler

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


@pytest.mark.slow
def test_the_first_example_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    first = re.search(r"```python\n(.*?)```", README, re.DOTALL)[1]
    shorter = first.replace("max_epochs=5", "max_epochs=1, limit_train_batches=2, logger=False")
    assert shorter != first
    torch.manual_seed(0)
    names: dict = {}
    exec(shorter, names)
    # Hydrogen has no p electrons in this dataset.
    printed = " ".join(capsys.readouterr().out.split())
    assert re.search("All values are 0.*'populations'.*orbital=1.*, type 1", printed)
    energy = names["predictions"][0][0]["energy"].block()
    assert energy.values.dtype == torch.float64
    assert energy.values.max() < -25  # eV, with the baseline


def test_every_example_is_valid_python():
    examples = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(examples) == 16
    for example in examples:
        compile(example, "README.md", "exec")


def test_the_declaration_in_yaml_is_that_in_python():
    in_python = re.search(
        r"```python\n(from lightning_scaler import PerAtom.*?)\n\n\nclass", README, re.S
    )[1]
    in_yaml = re.search(r"```yaml\n(targets:.*?)```", README, re.DOTALL)[1]
    names: dict = {}
    exec(in_python, names)
    declared = TargetScaler(**OmegaConf.to_container(OmegaConf.create(in_yaml)))
    assert repr(declared) == repr(names["scaler"])
    assert "PerStructure(gradients={'positions': '-forces'})" in repr(declared)


def test_links_lead_to_files_and_headings():
    headings = re.findall(r"^#+ (.*)$", README, re.MULTILINE)
    anchors = {"#" + heading.lower().replace(" ", "-") for heading in headings}
    for link in re.findall(r"\]\(([^)]+)\)", README):
        if link.startswith("#"):
            assert link in anchors
        elif "://" not in link:
            assert (ROOT / link).exists()


def test_set_up_and_tests_are_one_command_each():
    commands = [line for line in README.splitlines() if line.startswith("python3.11 -m venv")]
    assert len(commands) == 2
    assert commands[0].endswith("&& .venv/bin/lightning-scaler-train")
    assert commands[1].endswith("&& .venv/bin/pytest")


def test_every_setting_of_the_callback_is_documented():
    parameters = inspect.signature(TargetScaler.__init__).parameters.values()
    for parameter in parameters:
        if parameter.name != "self":
            default = parameter.default
            default = f'"{default}"' if isinstance(default, str) else default
            assert f"| `{parameter.name}={default}` |" in README


def test_the_oldest_version_of_every_dependency_is_the_one_required():
    rows = re.findall(r"^\| ([\w-]+)(?: \([`\w, ]+\))? \| ([\d.]+) \| [\d.]+ \|$", README, re.M)
    project = (ROOT / "pyproject.toml").read_text()
    dependencies = re.search(r"^dependencies = \[\n(.*?)^\]", project, re.M | re.S)[1]
    extras = "".join(re.findall(r"^(?:molecules|zbl|generate|deploy) = .*", project, re.M))
    required = re.findall(r'"([\w-]+)>=([\d.]+)', dependencies + extras)
    without_zeros = [
        {name: re.sub(r"(\.0)+$", "", version) for name, version in versions}
        for versions in (rows, required)
    ]
    assert len(without_zeros[1]) == 21
    assert without_zeros[0] == without_zeros[1]
