"""The pages of the documentation and the code in them."""

import re
from pathlib import Path

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
