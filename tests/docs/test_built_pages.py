"""The web pages build without warnings, and their search finds names, settings and messages."""

import ast
import html
import inspect
import json
import re
import subprocess
import sys
import zlib

import pytest
from pages import ROOT
from sphinx.search.en import SearchEnglish

import lightning_scaler
from lightning_scaler import TargetScaler

pytestmark = pytest.mark.slow
MESSAGES = "messages"


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder of the pages, built as CONTRIBUTING.md says."""
    folder = tmp_path_factory.mktemp("pages")
    command = [sys.executable, "-m", "sphinx", "-W", "-n", "-q", "-b", "html", "docs", folder]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def search(built):
    """What the search box of the pages reads."""
    index = (built / "searchindex.js").read_text()
    return json.loads(index.removeprefix("Search.setIndex(").removesuffix(")"))


@pytest.fixture(scope="module")
def text_of_messages(built):
    return text_of(built / f"{MESSAGES}.html")


def text_of(page):
    return words_of(html.unescape(re.sub(r"<[^>]+>", "", page.read_text())))


def words_of(text):
    return " ".join(text.split())


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


def test_every_public_name_is_in_the_inventory_and_described(built):
    inventory = (built / "objects.inv").read_bytes().split(b"\n", 4)[4]
    names = {line.split(" ")[0] for line in zlib.decompress(inventory).decode().splitlines()}
    reference = text_of(built / "reference.html")
    for name in lightning_scaler.__all__:
        assert f"lightning_scaler.{name}" in names
        docstring = inspect.getdoc(getattr(lightning_scaler, name))
        assert " ".join(docstring.split()[:4]).replace("`", "") in reference, name


@pytest.mark.parametrize("setting", list(inspect.signature(TargetScaler).parameters))
def test_the_search_finds_every_setting(search, setting):
    assert {"settings", "reference"} <= pages_with(search, setting)


def test_the_search_finds_every_message(search):
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        from source_messages import read_messages
    finally:
        sys.path.pop(0)
    messages = read_messages()
    assert len(messages) > 350
    page = search["docnames"].index(MESSAGES)
    for message in messages:
        assert MESSAGES in pages_with(search, message.start), message
        if message.start.count(" ") > 1:
            entries = search["indexentries"][message.start.lower().replace(";", ",")]
            # The third says that it comes first among the results.
            assert [page, True] in [[entry[0], entry[2]] for entry in entries], message


def raised_and_warned(tree):
    """The calls that make errors, warnings and lines of a run."""
    for node in ast.walk(tree):
        call = node.exc if isinstance(node, ast.Raise) else node
        names = r"(Error|Exception|\bwarn|rank_zero_\w+|print_text)$"
        if isinstance(call, ast.Call) and re.search(names, ast.unparse(call.func)):
            yield call


def test_the_page_of_messages_has_every_sentence_that_is_raised(text_of_messages):
    checked = 0
    for path in (ROOT / "lightning_scaler").rglob("*.py"):
        for call in raised_and_warned(ast.parse(path.read_text())):
            for argument in call.args[:1]:
                parts = argument.values if isinstance(argument, ast.JoinedStr) else [argument]
                for part in parts:
                    if isinstance(part, ast.Constant) and isinstance(part.value, str):
                        assert words_of(part.value) in text_of_messages, (path, part.value)
                        checked += 1
    assert checked > 700


@pytest.mark.parametrize(
    "words",
    [
        "expected a module with the TargetScalingMixin",
        "the data have the block",  # in a function that several raise from
        "have scales of their own, so predicted forces are not",  # returned by a function
        "the process has ended without an error message",  # beside a rank
        "is used, without a data pass",  # a line, not an error
    ],
)
def test_messages_that_are_put_together_are_found_too(text_of_messages, words):
    assert words in text_of_messages
