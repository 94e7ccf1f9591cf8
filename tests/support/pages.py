"""The pages of the documentation, the code in them, and the messages that they list."""

import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def code_blocks(page: Path, language: str) -> list[str]:
    """The code blocks of a page, each after as many empty lines as there are lines before it."""
    text = page.read_text()
    blocks = re.finditer(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return ["\n" * text.count("\n", 0, block.start(1)) + block[1] for block in blocks]


def in_short(code: str) -> str:
    """Code with trainings of two batches."""
    options = "max_epochs=1, limit_train_batches=2, limit_val_batches=1"
    return re.sub(r"max_epochs=\d+", options, code)


def mappings_in(configuration: Any) -> Iterator[dict]:
    """All mappings inside of plain values from YAML."""
    if isinstance(configuration, dict):
        yield configuration
        configuration = list(configuration.values())
    if isinstance(configuration, list):
        for part in configuration:
            yield from mappings_in(part)


def read_messages() -> tuple:
    """The messages of the package, as docs/messages.md lists them."""
    name = "source_messages"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name].read_messages()
