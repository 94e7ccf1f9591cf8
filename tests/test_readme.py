"""The code and commands of README.md, and what the pages in docs/ say of settings and versions."""

import inspect
import re

import pytest
import torch
from omegaconf import OmegaConf
from pages import PAGES, ROOT, code_blocks, in_short

from lightning_scaler import TargetScaler

README = (ROOT / "README.md").read_text()
DOCS = ROOT / "docs"


@pytest.mark.slow
def test_the_first_example_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    first = code_blocks(ROOT / "README.md", "python")[0]
    shorter = in_short(first).replace("max_epochs=1", "max_epochs=1, logger=False")
    assert shorter != first
    torch.manual_seed(0)
    names: dict = {}
    exec(shorter, names)
    # Hydrogen has no p electrons in this dataset.
    printed = " ".join(capsys.readouterr().out.split())
    assert re.search(
        r"All values of these are 0.*'populations'.*orbital=1.*, type H \(1\)", printed
    )
    assert "energy structure eV/atom" in printed
    energy = names["predictions"][0][0]["energy"].block()
    assert energy.values.dtype == torch.float64
    assert energy.values.max() < -25  # eV, with the baseline


def test_the_second_example_declares_the_targets(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    examples = code_blocks(ROOT / "README.md", "python")
    assert len(examples) == 2
    names: dict = {}
    exec(examples[1], names)
    assert "PerStructure(gradients={'positions': '-forces'})" in repr(names["scaler"])


def test_the_first_page_has_the_first_example():
    first = code_blocks(ROOT / "README.md", "python")[0].strip()
    assert [block.strip() for block in code_blocks(DOCS / "index.md", "python")] == [first]


def test_the_readme_is_the_first_screens():
    assert len(README.splitlines()) < 150


def test_the_declaration_in_yaml_is_that_in_python():
    page = (DOCS / "data.md").read_text()
    names: dict = {}
    exec(code_blocks(DOCS / "data.md", "python")[0], names)
    in_yaml = re.search(r"```yaml\n(targets:.*?)```", page, re.DOTALL)[1]
    declared = TargetScaler(**OmegaConf.to_container(OmegaConf.create(in_yaml)))
    assert repr(declared) == repr(names["scaler"])
    assert "PerStructure(gradients={'positions': '-forces'})" in repr(declared)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_to_files_and_headings(page):
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if "://" not in link:
            file, _, anchor = link.partition("#")
            target = page.parent / file if file else page
            assert target.exists(), link
            if anchor:
                headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
                assert anchor in [heading.lower().replace(" ", "-") for heading in headings], link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_scripts_and_files_that_a_page_names_exist(page):
    for path in re.findall(r"\b(?:tests|configs|docs)/[\w/.]+\.\w+", page.read_text()):
        assert (ROOT / path).exists(), path


def test_every_page_is_found_from_the_readme():
    for page in DOCS.glob("*.md"):
        if page.stem not in ("index", "examples", "molecules", "changelog"):
            assert f"(docs/{page.name})" in README


def test_set_up_and_tests_are_one_command_each():
    commands = [line for line in README.splitlines() if line.startswith("python3.11 -m venv")]
    assert len(commands) == 2
    assert commands[0].endswith("&& .venv/bin/lightning-scaler-train")
    assert commands[1].endswith("&& .venv/bin/pytest -n auto")


def test_every_setting_of_the_callback_is_documented():
    page = (DOCS / "settings.md").read_text()
    parameters = inspect.signature(TargetScaler.__init__).parameters.values()
    for parameter in parameters:
        if parameter.name != "self":
            default = parameter.default
            default = f'"{default}"' if isinstance(default, str) else default
            assert f"| `{parameter.name}={default}` |" in page


def test_the_oldest_version_of_every_dependency_is_the_one_required():
    row = r"^\| ([\w-]+)(?: \([`\w, ]+\))? \| ([\d.]+) \| [\d.]+ \|$"
    rows = re.findall(row, (DOCS / "versions.md").read_text(), re.M)
    project = (ROOT / "pyproject.toml").read_text()
    dependencies = re.search(r"^dependencies = \[\n(.*?)^\]", project, re.M | re.S)[1]
    extras = "".join(re.findall(r"^(?:molecules|zbl|generate|deploy|plot) = .*", project, re.M))
    required = re.findall(r'"([\w-]+)>=([\d.]+)', dependencies + extras)
    without_zeros = [
        {name: re.sub(r"(\.0)+$", "", version) for name, version in versions}
        for versions in (rows, required)
    ]
    assert len(without_zeros[1]) == 22
    assert without_zeros[0] == without_zeros[1]
