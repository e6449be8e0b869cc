"""Translate the Go templates of Ollama's Modelfiles into Jinja chat templates.

What Ollama's library uses is understood: the old form with ``.System``, ``.Prompt`` and ``.Response``, which
Ollama runs once a turn and cuts off after the last ``.Response``, and the new one, which ranges over
``.Messages``. A template that asks for more is refused by name, never rendered half.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from typing import Final

from llava_native.errors import TemplateError
from llava_native.gotemplate import (
    MAX_SOURCE,
    Block,
    Call,
    Expr,
    Literal,
    Node,
    Output,
    Set,
    Value,
    parse,
)

__all__ = ["to_chat_template", "to_jinja"]

_TURN_FIELDS: Final = frozenset({"System", "Prompt", "Response"})
# Without a meaning here: as empty as they are in Ollama where a request has none of them.
_EMPTY: Final = frozenset({
    "Tools", "ToolCalls", "ToolName", "ToolCallID", "Suffix", "Thinking", "Think", "ThinkLevel", "IsThinkSet",
})  # fmt: skip
_MESSAGE_FIELDS: Final = {"Role": "role", "Content": "content"}

# What the named templates of this package write before and after system text, question and answer.
_NAMED: Final = {
    ("<|system|>\n", "<|end|>\n", "<|user|>\n", "<|end|>\n", "<|assistant|>\n"): "phi-3",
    (
        "<|start_header_id|>system<|end_header_id|>\n\n", "<|eot_id|>",
        "<|start_header_id|>user<|end_header_id|>\n\n", "<|eot_id|>",
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
    ): "llama-3",
    (
        "<|im_start|>system\n", "<|im_end|>\n", "<|im_start|>user\n", "<|im_end|>\n",
        "<|im_start|>assistant\n",
    ): "chatml",
}  # fmt: skip
_AFTER_ANSWER: Final = {"phi-3": "<|end|>\n", "llama-3": "<|eot_id|>", "chatml": "<|im_end|>\n"}


def to_chat_template(source: str) -> str:
    """Return the name of the built-in chat template that a Go template is, else its Jinja.

    Parameters
    ----------
    source : str
        As after ``TEMPLATE`` in a Modelfile.

    Returns
    -------
    str
        What ``Llava(chat_template=…)`` takes.

    Raises
    ------
    TemplateError
        It does not parse, or uses what has no counterpart here; the line within it is named.
    """
    nodes = parse(source)
    return _named(nodes) or _Writer(nodes).jinja()


def to_jinja(source: str) -> str:
    """Return the Jinja chat template that writes what a Go template writes.

    Parameters and errors are those of `to_chat_template`.
    """
    return _Writer(parse(source)).jinja()


# -- recognising


def _named(nodes: tuple[Node, ...]) -> str | None:
    """Return the built-in template that these nodes are, whatever conditions stand around its parts."""
    flat = list(_flatten(nodes))
    marks = [".System", ".Prompt", ".Response"]
    if [item for item in flat if item in marks] != marks:
        return None
    texts = ["".join(part) for part in _between(flat, marks)]
    for wanted, name in _NAMED.items():
        before_system, after_system, before_prompt, after_prompt, before_answer = wanted
        joined = [
            before_system, after_system + before_prompt, after_prompt + before_answer, _AFTER_ANSWER[name]
        ]  # fmt: skip
        if texts == joined and _guarded(nodes, before_system, after_system):
            return name
    return None


def _flatten(nodes: tuple[Node, ...]) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, Literal):
            yield "=" + node.text
        elif isinstance(node, Output) and isinstance(node.value, Value):
            yield node.value.text
        elif isinstance(node, Block) and node.kind == "if" and not node.otherwise:
            inside = list(_flatten(node.body))
            about = isinstance(node.value, Value) and node.value.text in inside  # {{ if .Prompt }} its prompt
            yield from inside if about else "?"
        else:
            yield "?"  # no named template has it


def _between(flat: list[str], marks: list[str]) -> list[list[str]]:
    parts: list[list[str]] = [[]]
    for item in flat:
        if item in marks:
            parts.append([])
        else:
            parts[-1].append(item[1:] if item[0] == "=" else "?")
    return parts


def _guarded(nodes: tuple[Node, ...], before: str, after: str) -> bool:
    """Tell whether the system text has its own ``if``, and nothing else stands in it."""
    first = nodes[0]
    system = Output(Value("field", ".System"))
    return (
        isinstance(first, Block)
        and first.value == system.value
        and first.body == (Literal(before), system, Literal(after))
    )


# -- writing


def _bounded(jinja: str) -> str:
    if len(jinja) > MAX_SOURCE:
        raise TemplateError(f"the template becomes more than {MAX_SOURCE} characters of Jinja")
    return jinja


class _Writer:
    """Writes nodes as Jinja: no text of the template stands outside an expression."""

    def __init__(self, nodes: tuple[Node, ...]) -> None:
        self._nodes = nodes
        self._n = 0
        self._scopes: list[dict[str, str]] = [{}]
        self._by_message = ".Messages" in _fields(nodes)

    def jinja(self) -> str:
        if self._by_message:
            return _SYSTEM_OF_MESSAGES + self._write(self._nodes, "$")
        nodes = self._nodes
        if ".Response" not in _fields(nodes):
            nodes = (*nodes, Output(Value("field", ".Response")))
        whole, cut = self._write(nodes, "$"), self._write(_until_response(nodes)[0], "$")
        made = {"WHOLE": whole, "CUT": cut}
        return re.sub("WHOLE|CUT", lambda mark: made[mark.group()], _TURNS)

    def _write(self, nodes: tuple[Node, ...], dot: str) -> str:
        return _bounded("".join(self._node(node, dot) for node in nodes))

    def _node(self, node: Node, dot: str) -> str:
        if isinstance(node, Literal):
            return "{{ " + _quoted(node.text) + " }}"
        if isinstance(node, Output):
            return "{{ " + self._expr(node.value, dot) + " }}"
        if isinstance(node, Set):
            value = self._expr(node.value, dot)
            name = self._declare(node.name) if node.declares else self._variable(node.name)
            return f"{{% set {name} = {value} %}}"
        return self._write_block(node, dot)

    def _write_block(self, node: Block, dot: str) -> str:
        known = self._known(node.value)
        if known is False or (known and node.kind == "if"):
            return self._write(node.body if known else node.otherwise, dot)
        value = self._expr(node.value, dot)
        self._scopes.append({})
        if node.kind == "range":
            self._n += 1
            item = f"item{self._n}"
            body = ""
            for name, source in zip(node.names[::-1], (item, "loop.index0"), strict=False):
                body += f"{{% set {self._declare(name)} = {source} %}}"
            body += self._write(node.body, item)
            written = f"{{% for {item} in {value} %}}{body}"
        else:
            body = self._write(node.body, value if node.kind == "with" else dot)
            written = f"{{% if {value} %}}{body}"
        self._scopes.pop()
        if node.otherwise:
            self._scopes.append({})
            written += "{% else %}" + self._write(node.otherwise, dot)
            self._scopes.pop()
        return written + ("{% endfor %}" if node.kind == "range" else "{% endif %}")

    def _known(self, expr: Expr) -> bool | None:
        """Return what a condition always is here, None where that depends on the messages."""
        if isinstance(expr, Call):
            known = [self._known(argument) for argument in expr.arguments]
            if expr.function == "not" and len(known) == 1 and known[0] is not None:
                return not known[0]
            if expr.function in ("and", "or"):
                decides = expr.function == "or"
                return decides if decides in known else None if None in known else not decides
            return None
        root, _, field = expr.text.partition(".")
        if expr.kind != "field" or root not in ("", "$"):
            return None
        if field in _EMPTY or (self._by_message and field in ("Prompt", "Response")):
            return False
        return True if field == "Messages" else None

    def _declare(self, name: str) -> str:
        self._n += 1
        self._scopes[-1][name] = f"go.v{self._n}"
        return self._scopes[-1][name]

    def _variable(self, name: str) -> str:
        for scope in reversed(self._scopes):
            if name in scope:
                return scope[name]
        raise TemplateError(f"the template uses the variable {name}, which it does not declare")

    def _expr(self, expr: Expr, dot: str) -> str:
        if isinstance(expr, Call):
            return _bounded(self._call(expr, dot))
        if expr.kind == "string":
            return _quoted(_unquoted(expr.text))
        if expr.kind == "number" or expr.text in ("true", "false"):
            return expr.text
        if expr.text == "nil":
            return "none"
        return self._path(expr.text, dot)

    def _path(self, text: str, dot: str) -> str:
        start, _, field = text.partition(".")
        base = dot if not start else "$" if start == "$" else self._variable(start)
        if not field:
            if base == "$":
                raise TemplateError("the template writes all its data at once, which is not supported")
            return base
        if field in _EMPTY:
            return "''"
        if base == "$":
            if field == "Messages":
                return "messages"
            if field == "System":
                return "system"
            if field in _TURN_FIELDS:
                return "''" if self._by_message else field.lower()
        elif field in _MESSAGE_FIELDS:
            return f"{base}.{_MESSAGE_FIELDS[field]}"
        raise TemplateError(f"the template asks for {text}, which is not known here")

    def _call(self, call: Call, dot: str) -> str:
        given = [self._expr(argument, dot) for argument in call.arguments]
        if sum(map(len, given)) > MAX_SOURCE:
            raise TemplateError(f"the template becomes more than {MAX_SOURCE} characters of Jinja")
        name, n = call.function, len(given)
        if name in ("and", "or") and n:
            return "(" + f" {name} ".join(given) + ")"
        if name == "not" and n == 1:
            return f"(not {given[0]})"
        if name == "eq" and n >= 2:
            return "(" + " or ".join(f"{given[0]} == {other}" for other in given[1:]) + ")"
        if name in _COMPARISONS and n == 2:
            return f"({given[0]} {_COMPARISONS[name]} {given[1]})"
        if name == "len" and n == 1:
            return f"({given[0]} | length)"
        if name == "slice" and n in (2, 3):
            return f"{given[0]}[{':'.join(given[1:])}{':' if n == 2 else ''}]"
        if name == "index" and n == 2:
            return f"{given[0]}[{given[1]}]"
        raise TemplateError(f"the template calls {name} with {n} arguments, which is not supported")


_COMPARISONS: Final = {"ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
_SYSTEM_OF_MESSAGES: Final = (
    "{% set go = namespace() %}"
    "{% set system = messages | selectattr('role', 'equalto', 'system') | map(attribute='content') "
    "| join('\\n\\n') %}"
)
# What Ollama does with a template of the old form: a turn is written when the next one begins, and the
# last one ends where its answer does.
_TURNS: Final = (
    "{% macro whole(system, prompt, response) %}{% set go = namespace() %}WHOLE{% endmacro %}"
    "{% macro cut(system, prompt, response) %}{% set go = namespace() %}CUT{% endmacro %}"
    "{% set now = namespace(system='', prompt='', response='') %}"
    "{% for message in messages %}"
    "{% if now.response and message.role != 'assistant' or now.prompt and message.role == 'system' %}"
    "{{ whole(now.system, now.prompt, now.response) }}"
    "{% set now.system = '' %}{% set now.prompt = '' %}{% set now.response = '' %}"
    "{% endif %}"
    "{% set content = message.content %}"  # messages of one role are one message
    "{% if message.role == 'system' %}"
    "{% set now.system = now.system + '\\n\\n' + content if now.system else content %}"
    "{% elif message.role == 'assistant' %}"
    "{% set now.response = now.response + '\\n\\n' + content if now.response else content %}"
    "{% else %}"
    "{% set now.prompt = now.prompt + '\\n\\n' + content if now.prompt else content %}"
    "{% endif %}"
    "{% endfor %}"
    "{{ cut(now.system, now.prompt, now.response) }}"
)


def _fields(nodes: tuple[Node, ...]) -> set[str]:
    """Return the fields of the root that nodes mention, anywhere."""
    found: set[str] = set()

    def look(expr: Expr) -> None:
        if isinstance(expr, Call):
            for argument in expr.arguments:
                look(argument)
        elif expr.kind == "field":
            found.add(expr.text.removeprefix("$"))

    for node in nodes:
        if isinstance(node, Block):
            look(node.value)
            found |= _fields(node.body) | _fields(node.otherwise)
        elif not isinstance(node, Literal):
            look(node.value)
    return found


def _until_response(nodes: tuple[Node, ...]) -> tuple[tuple[Node, ...], bool]:
    """Return what comes before the answer's end, and whether the answer is in it."""
    kept: list[Node] = []
    for node in nodes:
        found = isinstance(node, Output) and ".Response" in _fields((node,))
        if isinstance(node, Block):
            body, found = _until_response(node.body)
            if found and ".Response" in _fields((Output(node.value),)):
                return (*kept, *body), True  # asked whether there is an answer: there will be
            node = dataclasses.replace(node, body=body)
        kept.append(node)
        if found:
            return tuple(kept), True
    return tuple(kept), False


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _unquoted(text: str) -> str:
    if text[0] == "`":
        return text[1:-1]
    try:
        return str(json.loads(text))
    except ValueError as exc:
        raise TemplateError(f"the template's string {text} is not understood: {exc}") from exc
