"""The web pages build without warnings, and their search finds names, settings and messages."""

import html
import inspect
import json
import re
import subprocess
import sys
import zlib

import pytest
from pages import ROOT, read_messages
from sphinx.search.en import SearchEnglish

import lightning_scaler
from lightning_scaler import TargetScaler


def build(folder):
    """Build the pages, as CONTRIBUTING.md says."""
    command = [sys.executable, "-m", "sphinx", "-W", "-n", "-q", "-b", "html", "docs", folder]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def pages_with(search, text):
    """The pages that the search box finds for a text: those that contain all of its words."""
    language = SearchEnglish({})
    stems = [language.stem(word.lower()) for word in language.split(text)]
    found = set(range(len(search["docnames"])))
    for stem in stems:
        if len(stem) > 2 and language.word_filter(stem):
            numbers = [search[kind].get(stem, []) for kind in ("terms", "titleterms")]
            found &= {n for one in numbers for n in ([one] if isinstance(one, int) else one)}
    return {search["docnames"][number] for number in found}


def check_public_names(folder):
    inventory = (folder / "objects.inv").read_bytes().split(b"\n", 4)[4]
    names = {line.split(" ")[0] for line in zlib.decompress(inventory).decode().splitlines()}
    page = html.unescape(re.sub(r"<[^>]+>", "", (folder / "reference.html").read_text()))
    for name in lightning_scaler.__all__:
        assert f"lightning_scaler.{name}" in names
        docstring = inspect.getdoc(getattr(lightning_scaler, name))
        assert " ".join(docstring.split()[:4]).replace("`", "") in " ".join(page.split()), name


def check_messages(search):
    page = search["docnames"].index("messages")
    messages = read_messages()
    assert len(messages) > 350
    for message in messages:
        for phrase in message.phrases:
            assert "messages" in pages_with(search, phrase), message
            entries = search["indexentries"][phrase.lower().replace(";", ",")]
            # The third says that it comes first among the results.
            assert [page, True] in [[entry[0], entry[2]] for entry in entries], message


# One test: with several processes, each would build the pages for its part.
@pytest.mark.slow
def test_pages_build_without_warnings_and_their_search_finds_everything(tmp_path):
    build(tmp_path)
    index = (tmp_path / "searchindex.js").read_text()
    search = json.loads(index.removeprefix("Search.setIndex(").removesuffix(")"))
    check_public_names(tmp_path)
    for setting in inspect.signature(TargetScaler).parameters:
        assert {"settings", "reference"} <= pages_with(search, setting), setting
    check_messages(search)
