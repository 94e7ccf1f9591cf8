"""The messages that the documentation reads from the source."""

import ast
import re

import pytest
from pages import ROOT, read_messages

TEXTS = "\n".join(message.text for message in read_messages())


def raised_and_warned(tree):
    """The calls that make errors, warnings and lines of a run."""
    for node in ast.walk(tree):
        call = node.exc if isinstance(node, ast.Raise) else node
        names = r"(Error|Exception|\bwarn|rank_zero_\w+|print_text)$"
        if isinstance(call, ast.Call) and re.search(names, ast.unparse(call.func)):
            yield call


@pytest.mark.slow
def test_every_sentence_that_is_raised_is_there():
    checked = 0
    for path in (ROOT / "lightning_scaler").rglob("*.py"):
        for call in raised_and_warned(ast.parse(path.read_text())):
            for argument in call.args[:1]:
                parts = argument.values if isinstance(argument, ast.JoinedStr) else [argument]
                for part in parts:
                    if isinstance(part, ast.Constant) and isinstance(part.value, str):
                        assert " ".join(part.value.split()) in TEXTS, path
                        checked += 1
    assert checked > 700


@pytest.mark.parametrize(
    "words",
    [
        "expected a module with the TargetScalingMixin",
        "expected a batch that is a mapping or named tuple",  # made by a function
        "have scales of their own, so predicted forces are not",  # returned by a function
        "the process has ended without an error message",  # beside a rank
        "is used, without a data pass",  # a line, not an error
    ],
)
def test_messages_that_are_put_together_are_there_too(words):
    assert words in TEXTS


def test_values_are_placeholders_and_a_message_is_searched_by_its_first_words():
    (message,) = [m for m in read_messages() if "can be read only once" in m.text]
    assert message.text.startswith("the training loader (…) can be read only once: after the fit")
    assert message.phrases == [
        "the training loader",
        "can be read only once: after the fit of the target scales",
    ]
    assert (message.kind, message.file) == ("ValueError", "data_pass/pass_loaders.py")


HEADINGS = re.findall(r"^### (.*)$", (ROOT / "docs" / "troubleshooting.md").read_text(), re.M)


def test_the_page_on_troubleshooting_quotes_messages_that_exist():
    # Those with a capital letter are of other programs, or no messages.
    quoted = [heading for heading in HEADINGS if not heading[0].isupper()]
    assert len(quoted) > 25
    for heading in quoted:
        parts = [part.strip() for part in heading.split("…")]
        assert any(all(p in m.text for p in parts) for m in read_messages()), heading
