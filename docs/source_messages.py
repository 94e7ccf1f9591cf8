"""The messages of the package, read from its source: errors, warnings, and lines of a run."""

import ast
from dataclasses import dataclass
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "lightning_scaler"
KINDS = {
    "warn": "warning",
    "rank_zero_warn": "warning",
    "warn_on_rank_zero": "warning",
    "rank_zero_info": "line",
    "print_text": "line",
    "_report": "line",  # of the statistics cache
}
PLACEHOLDER = "…"


@dataclass(frozen=True)
class Message:
    """A message with a placeholder for each of its values.

    Attributes:
        file: path of the module within the package.
        kind: class of the error, ``warning`` or ``line``.
        text: the message.
    """

    file: str
    kind: str
    text: str

    @property
    def phrases(self) -> list[str]:
        """What is the same in every case, to search for: the parts before the way out."""
        for text in (self.text.split(";")[0], self.text):
            parts = [part.strip(" :;,.()'[]{}") for part in text.split(PLACEHOLDER)]
            if telling := [part for part in parts if _n_words(part) > 2]:
                return [" ".join(part.split()[:12]).rstrip(",:") for part in telling]
        return [max(parts, key=len)]


@cache
def read_messages(package: Path = PACKAGE) -> tuple[Message, ...]:
    """All messages of a package, in the order of its files, each once per file and kind."""
    trees = {path: ast.parse(path.read_text()) for path in sorted(package.rglob("*.py"))}
    functions: dict[str, list[ast.FunctionDef]] = {}
    for tree in trees.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                functions.setdefault(node.name, []).append(node)
    found: dict[Message, None] = {}
    for path, tree in trees.items():
        reader = _Reader(str(path.relative_to(package)), functions)
        reader.visit(tree)
        found.update(dict.fromkeys(reader.found))
    return tuple(found)


class _Reader(ast.NodeVisitor):
    """Collects the messages of one module."""

    def __init__(self, file: str, functions: dict[str, list[ast.FunctionDef]]) -> None:
        self.file, self.functions = file, functions
        self.scopes: list[ast.FunctionDef] = []
        self.found: list[Message] = []

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self.scopes.append(node)
        self.generic_visit(node)
        self.scopes.pop()

    def visit_Raise(self, node: ast.Raise) -> None:
        if isinstance(node.exc, ast.Call):
            self._add_error(node.exc)

    def visit_Call(self, node: ast.Call) -> None:
        self.generic_visit(node)
        if _name(node.func) in KINDS and node.args:
            self._add(KINDS[_name(node.func)], node.args)

    def _add_error(self, call: ast.Call) -> None:
        name = _name(call.func)
        for made in self._returned(name):  # a function that returns the error
            if isinstance(made, ast.Call):
                self._add_error(made)
        if name not in self.functions and call.args:
            self._add(name if name.endswith(("Error", "Exception")) else "error", call.args)

    def _add(self, kind: str, arguments: list[ast.expr]) -> None:
        texts = (self._templates(argument) for argument in arguments)
        for template in next(filter(None, texts), []):
            words = " ".join(template.split())
            if any(letter.isalpha() for letter in words):
                self.found.append(Message(self.file, kind, words))

    def _templates(self, text: ast.expr, depth: int = 0) -> list[str]:
        """What an expression can say, with placeholders for what is known in the run alone."""
        if isinstance(text, ast.Constant) and isinstance(text.value, str):
            return [text.value]
        if isinstance(text, ast.JoinedStr):
            return self._joined(text, depth)
        if isinstance(text, ast.BinOp) and isinstance(text.op, ast.Add):
            left, right = (self._templates(side, depth) for side in (text.left, text.right))
            return [(left or [PLACEHOLDER])[0] + (right or [PLACEHOLDER])[0]]
        if isinstance(text, ast.IfExp):
            return self._templates(text.body, depth) + self._templates(text.orelse, depth)
        if depth > 3:
            return []
        if isinstance(text, ast.Name):
            sources = self._assigned(text.id)
        elif isinstance(text, ast.Call):
            sources = self._returned(_name(text.func))
        else:
            return []
        return [words for source in sources for words in self._templates(source, depth + 1)]

    def _joined(self, text: ast.JoinedStr, depth: int) -> list[str]:
        parts = [str(p.value) if isinstance(p, ast.Constant) else "" for p in text.values]
        if _n_words(" ".join(parts)) > 2:
            return ["".join(part or PLACEHOLDER for part in parts)]
        # Only what a value says tells this message from others.
        for i, value in enumerate(text.values):
            if isinstance(value, ast.FormattedValue) and depth < 3:
                words = self._templates(value.value, depth + 1)
                before, after = (
                    "".join(part or PLACEHOLDER for part in side)
                    for side in (parts[:i], parts[i + 1 :])
                )
                if words:
                    return [before + one + after for one in words]
        return ["".join(part or PLACEHOLDER for part in parts)]

    def _assigned(self, name: str) -> list[ast.expr]:
        return [
            node.value
            for scope in self.scopes[-1:]
            for node in ast.walk(scope)
            if isinstance(node, ast.Assign)
            and any(isinstance(target, ast.Name) and target.id == name for target in node.targets)
        ]

    def _returned(self, name: str) -> list[ast.expr]:
        return [
            node.value
            for function in self.functions.get(name, [])
            for node in ast.walk(function)
            if isinstance(node, ast.Return) and node.value is not None
        ]


def _n_words(text: str) -> int:
    return sum(word.strip(".,:;()'[]").isalpha() and len(word) > 2 for word in text.split())


def _name(function: ast.expr) -> str:
    """The last name of what is called, as in ``warnings.warn``."""
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else ""
