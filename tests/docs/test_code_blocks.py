"""All code on the pages: Python is run, commands are parsed, YAML is read."""

import re
import shlex
import shutil
import sys
from importlib import import_module

import pytest
import torch
import yaml
from omegaconf import OmegaConf
from pages import PAGES, ROOT, code_blocks, in_short, mappings_in

from lightning_scaler import TargetScaler

# Those of packages that need an environment of their own (tests/peers trains with them), and those
# whose code test_readme.py runs.
NOT_RUN = ("nequip", "schnetpack", "torchmdnet", "README", "index")
METATRAIN = ROOT / "tests" / "interop" / "metatrain_fixture"


def with_code(language, without=()):
    pages = [page for page in PAGES if page.stem not in without and code_blocks(page, language)]
    return [pytest.param(page, id=page.stem) for page in pages]


@pytest.mark.slow
@pytest.mark.filterwarnings(
    # Hydrogen has no p electrons in the molecules.
    "ignore:these data are zero, .*'populations'",
)
@pytest.mark.parametrize("page", with_code("python", NOT_RUN))
def test_python_runs_from_top_to_bottom(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for checkpoint in METATRAIN.glob("*.ckpt"):
        shutil.copy(checkpoint, tmp_path)
    torch.manual_seed(0)
    names: dict = {"__name__": page.stem}
    for block in code_blocks(page, "python"):
        exec(compile(in_short(block), page, "exec"), names)


@pytest.mark.parametrize("page", with_code("python"))
def test_python_is_valid(page):
    for block in code_blocks(page, "python"):
        compile(block, page, "exec")


@pytest.mark.parametrize("page", with_code("yaml"))
def test_yaml_is_valid_and_names_settings(page):
    for block in code_blocks(page, "yaml"):
        for node in mappings_in(yaml.safe_load(block)):
            if node.get("_target_") == "lightning_scaler.TargetScaler":
                settings = {key: value for key, value in node.items() if key != "_target_"}
                TargetScaler(**OmegaConf.to_container(OmegaConf.create(settings)))
            elif node.get("class_path") == "lightning_scaler.TargetScaler":
                TargetScaler(**node["init_args"])


def our_commands():
    """Every line of a shell block that calls one of our commands, as words."""
    for page in PAGES:
        for block in code_blocks(page, "bash"):
            lines = re.sub(r"\s\\\n|bash -c|&&|'(?=lightning)|(?<=NTASKS)'", " ", block)
            for line in lines.splitlines():
                found = re.search(r"(?:^|\s)(lightning-scaler-.*)", line)
                if found:
                    words = re.sub(r"\$\([^)]*\)|\$\w+", "0", found[1]).replace("…", "folder")
                    yield shlex.split(words, comments=True)


COMMANDS = list(our_commands())
ENTRY_POINTS = {
    command: (module, function)
    for command, module, function in re.findall(
        r'^(lightning-scaler-\w+) = "(.+):(\w+)"$', (ROOT / "pyproject.toml").read_text(), re.M
    )
}


def test_the_pages_show_every_command():
    assert {words[0] for words in COMMANDS} == ENTRY_POINTS.keys()


@pytest.mark.slow
@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_commands_have_the_options_that_the_pages_show(words, tmp_path, monkeypatch, capsys):
    command, *arguments = words
    name = command.removeprefix("lightning-scaler-")
    monkeypatch.chdir(tmp_path)
    if name in ("train", "fit", "export"):
        if "--config-path=0/configs" in arguments:
            return  # the configs of the reader's own project
        # The first value of a list; the composed configuration is shown and nothing is run.
        arguments = [re.sub(r"=(\w+),[\w,]+$", r"=\1", word) for word in arguments]
        arguments = [word for word in arguments if word != "--multirun"] + ["--cfg", "job"]
    module, function = ENTRY_POINTS[command]
    monkeypatch.setattr(sys, "argv", [command, *arguments])
    try:
        getattr(import_module(module), function)()
        status = 0
    except SystemExit as stop:
        status = stop.code or 0
    # There are no such files; a usage error would say so.
    assert status == 0 or "no such file" in capsys.readouterr().err.lower()
