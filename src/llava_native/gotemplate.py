"""Read Go templates, the part of the language that Ollama's library uses, into a tree."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from typing import Final, NoReturn, TypeAlias

from llava_native.errors import TemplateError

__all__ = ["Block", "Call", "Expr", "Literal", "Node", "Output", "Set", "Value", "parse"]

MAX_SOURCE: Final = 1 << 16
MAX_NESTING: Final = 50
_TOKEN: Final = re.compile(
    r'\s*(?:(?P<string>"(?:\\.|[^"\\\n])*"|`[^`]*`)|(?P<number>-?\d+)|(?P<op>:=|=|\||\(|\)|,)'
    r"|(?P<field>(?:\$\w*|\.)?(?:\.?\w+)(?:\.\w+)*|\$|\.))"
)


@dataclasses.dataclass(frozen=True)
class Literal:
    """Text that is written as it is."""

    text: str


@dataclasses.dataclass(frozen=True)
class Output:
    """``{{ value }}``."""

    value: Expr


@dataclasses.dataclass(frozen=True)
class Set:
    """``{{ $name := value }}``, or ``=`` where it declares nothing."""

    name: str
    value: Expr
    declares: bool


@dataclasses.dataclass(frozen=True)
class Block:
    """An ``if``, ``range`` or ``with``; `names` are the variables that a range declares."""

    kind: str
    value: Expr
    body: tuple[Node, ...]
    otherwise: tuple[Node, ...]
    names: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Value:
    """A string, a number, a boolean, or a path such as ``.System`` and ``$last``."""

    kind: str
    text: str


@dataclasses.dataclass(frozen=True)
class Call:
    """A function and what it is given."""

    function: str
    arguments: tuple[Expr, ...]


Node: TypeAlias = "Literal | Output | Set | Block"
Expr: TypeAlias = "Value | Call"


def parse(source: str) -> tuple[Node, ...]:
    """Return the nodes of a template.

    Raises
    ------
    TemplateError
        It does not parse, or uses what is not supported; the line is named.
    """
    if len(source) > MAX_SOURCE:
        raise TemplateError(f"the template has {len(source)} characters; at most {MAX_SOURCE} are read")
    return _Parser(source).parse()


class _Parser:
    """Reads a template into nodes."""

    def __init__(self, source: str) -> None:
        self._items = list(self._split(source))
        self._at = 0
        self._depth = 0
        self._line = 1

    def _split(self, source: str) -> Iterator[tuple[int, str, str]]:
        """Give (line, "text" or "action", content), with the trim marks applied."""
        position, trim = 0, False
        while position < len(source):
            start = source.find("{{", position)
            text = source[position : start if start >= 0 else len(source)]
            left = start >= 0 and source[start + 2 : start + 4].rstrip() == "-"
            text = text.lstrip(" \t\r\n") if trim else text
            text = text.rstrip(" \t\r\n") if left else text
            if text:
                yield source.count("\n", 0, position) + 1, "text", text
            if start < 0:
                return
            self._line = source.count("\n", 0, start) + 1
            position, action, trim = self._action(source, start + (3 if left else 2))
            if not (action.startswith("/*") and action.endswith("*/")):
                yield self._line, "action", action

    def _action(self, source: str, start: int) -> tuple[int, str, bool]:
        """Find the end of an action, past braces inside its strings; return (end, content, trims)."""
        if source[start:].lstrip().startswith("/*"):
            end = source.find("}}", source.find("*/", start))
        else:
            inside = re.compile(r'"(?:\\.|[^"\\\n])*"?|`[^`]*`|\}\}')
            found = (match for match in inside.finditer(source, start) if match.group() == "}}")
            end = next((match.start() for match in found), -1)
        if end < 0:
            self._fail("an action {{ is not closed")
        content = source[start:end]
        trims = content.endswith("-") and content[-2:-1].isspace()
        return end + 2, (content[:-1] if trims else content).strip(), trims

    def _fail(self, what: str) -> NoReturn:
        raise TemplateError(f"the template, line {self._line}: {what}")

    def parse(self) -> tuple[Node, ...]:
        nodes, ended_by = self._nodes()
        if ended_by:
            self._fail(f"{{{{ {ended_by} }}}} without a beginning")
        return nodes

    def _nodes(self) -> tuple[tuple[Node, ...], str]:
        """Read nodes up to an ``else`` or ``end``, which is returned too."""
        nodes: list[Node] = []
        while self._at < len(self._items):
            self._line, kind, content = self._items[self._at]
            self._at += 1
            if kind == "text":
                nodes.append(Literal(content))
                continue
            word, _, rest = content.partition(" ")
            if word in ("else", "end"):
                return tuple(nodes), content
            if word in ("if", "range", "with"):
                nodes.append(self._block(word, rest))
            elif word in ("template", "block", "define", "break", "continue"):
                self._fail(f"{{{{ {word} }}}} is not supported")
            else:
                nodes.append(self._simple(content))
        return tuple(nodes), ""

    def _block(self, kind: str, head: str) -> Block:
        line = self._line
        self._depth += 1
        if self._depth > MAX_NESTING:
            self._fail(f"it nests more than {MAX_NESTING} deep")
        names: tuple[str, ...] = ()
        if kind == "range" and ":=" in head:
            declared, _, head = head.partition(":=")
            names = tuple(name.strip() for name in declared.split(","))
            if len(names) > 2 or not all(re.fullmatch(r"\$\w+", name) for name in names):
                self._fail(f"{{{{ range {declared}:= }}}} is not understood")
        value = self._expression(head)
        body, ended_by = self._nodes()
        otherwise: tuple[Node, ...] = ()
        if ended_by.startswith("else "):  # else if: a block inside, which takes this one's end
            word, _, rest = ended_by[5:].strip().partition(" ")
            if word not in ("if", "with"):
                self._fail(f"{{{{ {ended_by} }}}} is not understood")
            otherwise, ended_by = (self._block(word, rest),), "end"
        elif ended_by == "else":
            otherwise, ended_by = self._nodes()
        if ended_by != "end":
            self._line = line
            self._fail(f"{{{{ {kind} }}}} has no {{{{ end }}}}")
        self._depth -= 1
        return Block(kind, value, body, otherwise, names)

    def _simple(self, content: str) -> Node:
        assignment = re.match(r"(\$\w+)\s*(:?=)\s*", content)
        if assignment:
            value = self._expression(content[assignment.end() :])
            return Set(assignment[1], value, assignment[2] == ":=")
        return Output(self._expression(content))

    def _expression(self, text: str) -> Expr:
        tokens: list[tuple[str, str]] = []
        position = 0
        text = text.strip()
        while position < len(text):
            match = _TOKEN.match(text, position)
            if match is None or match.lastgroup is None:
                self._fail(f"{text[position:]!r} is not understood")
            tokens.append((match.lastgroup, match[match.lastgroup]))
            position = match.end()
        if sum(token in (("op", "("), ("op", "|")) for token in tokens) > MAX_NESTING:
            self._fail(f"an action has more than {MAX_NESTING} parentheses and pipes")
        tokens.reverse()  # a stack
        value = self._pipeline(tokens)
        if tokens:
            self._fail(f"{tokens[-1][1]!r} is not expected in {text!r}")
        return value

    def _pipeline(self, tokens: list[tuple[str, str]]) -> Expr:
        value = self._command(tokens, ())
        while tokens and tokens[-1] == ("op", "|"):
            tokens.pop()
            value = self._command(tokens, (value,))
        return value

    def _command(self, tokens: list[tuple[str, str]], piped: tuple[Expr, ...]) -> Expr:
        words: list[Expr] = []
        while tokens and tokens[-1] not in (("op", "|"), ("op", ")")):
            kind, text = tokens.pop()
            if (kind, text) == ("op", "("):
                words.append(self._pipeline(tokens))
                if not tokens or tokens.pop() != ("op", ")"):
                    self._fail("a parenthesis is not closed")
            elif kind == "op":
                self._fail(f"{text!r} is not expected here")
            else:
                words.append(Value(kind, text))
        if not words:
            self._fail("an action is empty")
        first = words[0]
        if isinstance(first, Value) and first.kind == "field" and first.text[0] not in ".$":
            if first.text in ("true", "false", "nil"):
                return first
            return Call(first.text, (*words[1:], *piped))
        if len(words) > 1 or piped:
            self._fail("a value is used as if it were a function")
        return first
