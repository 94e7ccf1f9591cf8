"""What tells others how to test, cite and publish the package: it agrees with pyproject.toml."""

import re

import yaml
from pages import ROOT

PROJECT = (ROOT / "pyproject.toml").read_text()
VERSION = re.search(r'^version = "(.*)"$', PROJECT, re.M)[1]


def read(name):
    return yaml.safe_load((ROOT / name).read_text())


def test_the_citation_is_of_this_version():
    citation = read("CITATION.cff")
    assert citation["version"] == VERSION
    assert citation["license"] == re.search(r'^license = "(.*)"$', PROJECT, re.M)[1]
    assert citation["keywords"] == re.findall(
        r'"([^"]+)"', re.search("^keywords.*", PROJECT, re.M)[0]
    )
    names = [author["name"] for author in citation["authors"]]
    assert all(name in (ROOT / "LICENSE").read_text() for name in names)
    assert names
    assert {"cff-version", "message", "title"} < citation.keys()


def test_the_workflow_tests_every_python_version_of_the_package():
    jobs = read(".github/workflows/tests.yml")["jobs"]
    versions = {*jobs["tests"]["strategy"]["matrix"]["python"], "3.11"}
    lowest, above = re.search(r'^requires-python = ">=3\.(\d+),<3\.(\d+)"', PROJECT, re.M).groups()
    assert versions == {f"3.{minor}" for minor in range(int(lowest), int(above))}
    assert jobs["everything"]["steps"][-1]["run"] == ".ci/run"


def test_the_workflow_runs_the_command_of_the_readme():
    script = read(".github/workflows/tests.yml")["jobs"]["tests"]["steps"][-1]["run"]
    pattern = re.search(r"grep -E '(.*)' README.md", script)[1]
    readme = (ROOT / "README.md").read_text().splitlines()
    assert len([line for line in readme if re.search(pattern, line)]) == 1
    assert f"grep -E '{pattern}' README.md" in (ROOT / ".ci" / "run").read_text()


def test_publishing_builds_the_package_without_a_token():
    jobs = read(".github/workflows/publish.yml")["jobs"]
    assert {"run": "python -m build"} in jobs["build"]["steps"]
    assert jobs["publish"]["permissions"] == {"id-token": "write"}
    assert "password" not in (ROOT / ".github/workflows/publish.yml").read_text()


def test_the_pages_are_built_with_the_extra_for_them():
    (install,) = read(".readthedocs.yaml")["python"]["install"]
    for extra in install["extra_requirements"]:
        assert re.search(rf"^{extra} = \[", PROJECT, re.M)
    assert "sphinx-build -W" in (ROOT / ".github/workflows/tests.yml").read_text()
