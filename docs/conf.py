"""Settings of Sphinx: `sphinx-build -W -n docs docs/_build` makes the web pages."""

import re
import sys
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from source_messages import PACKAGE, read_messages  # noqa: E402

from lightning_scaler import __version__  # noqa: E402

project = "lightning_scaler"
author = "the lightning_scaler developers"
copyright = f"2026, {author}"
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "examples"]
default_role = "code"
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = f"lightning_scaler {release}"
html_copy_source = False
html_static_path = ["_static"]
html_css_files = ["wide.css"]
html_math_renderer = "mathml"

autodoc_typehints = "none"
autodoc_member_order = "bysource"
napoleon_numpy_docstring = False
# `-n` reports links to nowhere; the inventory of Python is not at hand in a build without network.
nitpick_ignore_regex = [("py:.*", r"collections\.abc\..*")]


class Messages(SphinxDirective):
    """The messages of modules, each with an entry in the index, which the search reads too.

    The content names modules; without content, they are those that no other list of the page names.
    """

    has_content = True

    def run(self) -> list[nodes.Node]:
        """Make the list."""
        messages = read_messages()
        files = set(" ".join(self.content).split())
        if not files:
            page = Path(self.env.doc2path(self.env.docname)).read_text()
            files = {m.file for m in messages} - set(re.findall(r"\S+\.py\b", page))
        without = sorted(files - {message.file for message in messages})
        if without:
            raise self.error(f"these modules have no messages, or do not exist: {without}")
        items = []
        for message in messages:
            if message.file in files:
                target = f"message-{self.env.new_serialno('message')}"
                # As main entries, they come first among the results of a search.
                phrases = [phrase.replace(";", ",") for phrase in message.phrases]
                entries = [("single", phrase, target, "main", None) for phrase in phrases]
                label = f" ({message.kind})" if message.kind != "line" else ""
                paragraph = nodes.paragraph()
                paragraph += addnodes.index(entries=entries)
                paragraph += nodes.target(ids=[target])
                paragraph += nodes.literal(text=message.text)
                paragraph += nodes.Text(label)
                items.append(nodes.list_item("", paragraph))
        for path in [HERE / "source_messages.py", *(PACKAGE / file for file in files)]:
            self.env.note_dependency(str(path))
        return [nodes.bullet_list("", *items)]


def write_inline_math(translator: Any, node: nodes.math) -> None:
    """Write a formula in the MathML of browsers, which needs no script."""
    translator.body.append(tex2mathml(node.astext()))
    raise nodes.SkipNode


def write_display_math(translator: Any, node: nodes.math_block) -> None:
    """Write a formula on a line of its own."""
    translator.body.append(tex2mathml(node.astext(), as_block=True))
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.add_directive("messages", Messages)
    app.add_html_math_renderer("mathml", (write_inline_math, None), (write_display_math, None))
