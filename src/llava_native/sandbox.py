"""Render Jinja templates that come with strangers' files: no way out, and bounds on time and size.

A chat template is a program of whoever made the file. Jinja's own sandbox keeps it from reaching Python;
this one also ends it when it loops for ever or grows without bound.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from llava_native.errors import TemplateError

__all__ = ["BoundedTemplate"]

MAX_SOURCE = 2**17  # characters of a template; the longest known ones have 30,000
MAX_STEPS = 200_000  # rounds of loops, calls and outputs
MAX_SIZE = 2**20  # characters or items of any value; a quarter of what is in it, and of what is written
MAX_BITS = 4096  # of a whole number
MAX_SECONDS = 5.0
_MAX_NUMBER = 10_000  # that a filter or a method of a string may be given, as a width for example
_MAX_INDENT = 64
_FILTERS = (
    "abs", "capitalize", "count", "d", "default", "dictsort", "first", "float", "groupby", "indent", "int",
    "items", "join", "last", "length", "list", "lower", "map", "max", "min", "reject", "rejectattr",
    "replace", "reverse", "round", "select", "selectattr", "sort", "string", "sum", "title", "trim",
    "unique", "upper",
)  # fmt: skip
# filters that work item by item, when somebody asks for the next
_LAZY = frozenset({"map", "reject", "rejectattr", "select", "selectattr"})
_METHODS: dict[type, frozenset[str]] = {
    str: frozenset({
        "capitalize", "center", "count", "endswith", "find", "index", "isalnum", "isalpha",
        "isdecimal", "isdigit", "islower", "isnumeric", "isspace", "istitle", "isupper", "join",
        "ljust", "lower", "lstrip", "partition", "removeprefix", "removesuffix", "replace", "rfind",
        "rindex", "rjust", "rpartition", "rsplit", "rstrip", "split", "splitlines", "startswith",
        "strip", "swapcase", "title", "upper", "zfill",
    }),
    list: frozenset({"count", "index"}),
    tuple: frozenset({"count", "index"}),
    dict: frozenset({"get", "items", "keys", "values"}),
}  # fmt: skip


class BoundedTemplate:
    """A compiled template.

    Parameters
    ----------
    source : str

    Raises
    ------
    TemplateError
        It does not parse.
    """

    def __init__(self, source: str) -> None:
        if len(source) > MAX_SOURCE:
            raise TemplateError(
                f"the chat template has {len(source)} characters; at most {MAX_SOURCE} are read"
            )
        self._lock = threading.Lock()  # the environment counts the steps of one rendering at a time
        self._environment = _Environment()
        try:
            self._template = self._environment.from_string(source)
        except jinja2.TemplateSyntaxError as exc:
            raise TemplateError(f"the chat template, line {exc.lineno}: {exc.message}") from exc
        except (
            jinja2.TemplateError, RecursionError, SyntaxError, ArithmeticError, ValueError, MemoryError
        ) as exc:  # fmt: skip
            raise TemplateError(f"the chat template does not compile: {exc}") from exc

    def render(self, **variables: Any) -> str:
        """Return what the template writes.

        Raises
        ------
        TemplateError
            It raises, or exceeds a bound.
        """
        with self._lock:
            self._environment.begin()
            try:
                return self._template.render(variables)
            except TemplateError:
                raise
            except (RecursionError, MemoryError) as exc:
                raise TemplateError("the chat template recurses or grows without bound") from exc
            except Exception as exc:  # whatever a program of a stranger's may raise
                raise TemplateError(f"the chat template failed: {type(exc).__name__}: {exc}") from exc


class _Generation(Extension):
    """Ignore ``{% generation %}``, which marks for training what the model is to say."""

    tags = {"generation"}  # noqa: RUF012 - as Jinja declares it

    def parse(self, parser: Parser) -> nodes.Node:
        """Return what is between the tags."""
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class _Environment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, which also counts."""

    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "**", "%"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,  # as transformers renders chat templates
            lstrip_blocks=True,
            optimized=False,  # nothing is computed while compiling, out of these bounds' reach
            extensions=["jinja2.ext.loopcontrols", _Generation],
            finalize=self.count_output,
        )
        self.begin()
        self.filters = {name: _bounded(name, self.filters[name], self.step) for name in _FILTERS}
        self.filters["join"] = jinja2.pass_environment(_join)
        self.filters["tojson"] = self.to_json
        self.filters["safe"] = _same  # nothing is escaped here
        self.globals = {
            "range": self.globals["range"],
            "dict": dict,
            "namespace": self.globals["namespace"],
            "raise_exception": _raise_exception,
            "strftime_now": time.strftime,
        }

    def begin(self) -> None:
        """Start counting anew."""
        self._steps = self._written = 0
        self._deadline = time.monotonic() + MAX_SECONDS

    def step(self, *_: Any) -> str:
        """Count a round; templates are rewritten to call this in every loop and macro."""
        self._steps += 1
        if self._steps > MAX_STEPS or time.monotonic() > self._deadline:
            raise TemplateError(f"the chat template does not end: it was stopped after {self._steps} steps")
        return ""

    def count_output(self, value: Any) -> Any:
        """Count what is written, into the prompt or into a variable."""
        self.step()
        self._written += _measured(value)
        if self._written > 4 * MAX_SIZE:
            _too_large()
        return value

    def concatenate(self, *values: Any) -> str:
        """Do what the operator ``~`` does."""
        _measured(values)
        return str(_checked("".join(map(str, values))))

    def literal(self, value: Any) -> Any:
        """Return a text or a new container of the template, of a size that is allowed."""
        return _checked(value)

    def to_json(
        self,
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        """Write JSON as transformers does: not escaped for HTML, nor, by default, to ASCII."""
        _check_indent(indent or 0)
        encoder = json.JSONEncoder(
            ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
        )
        chunks, size = [], 0
        for chunk in encoder.iterencode(value):
            chunks.append(chunk)
            size += len(chunk)
            if size > MAX_SIZE:
                _too_large()
        return "".join(chunks)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = _count_rounds(super()._parse(source, name, filename))
        tree.set_environment(self)
        return tree

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        self.step()
        _check_operands(operator, left, right)
        return _checked(super().call_binop(context, operator, left, right))

    def call(self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        self.step()
        owner = getattr(__obj, "__self__", None)
        if isinstance(owner, (str, bytes, int, float, list, tuple, dict, type)):
            _check_method(owner, getattr(__obj, "__name__", ""), (*args, *kwargs.values()))
        return _checked(super().call(__context, __obj, *args, **kwargs))


def _count_rounds(tree: nodes.Template) -> nodes.Template:
    """Have every loop and macro count its rounds, and texts, containers and every ``~`` their size."""

    def call(name: str, arguments: list[nodes.Expr], line: int) -> nodes.Call:
        return nodes.Call(nodes.EnvironmentAttribute(name), arguments, [], None, None, lineno=line)

    loops: list[Any] = list(tree.find_all((nodes.For, nodes.Macro, nodes.CallBlock)))
    for node in loops:
        node.body.insert(0, nodes.ExprStmt(call("step", [], node.lineno), lineno=node.lineno))

    def change(node: Any) -> Any:
        if isinstance(node, nodes.Concat):
            return call("concatenate", node.nodes, node.lineno)
        if isinstance(node, nodes.TemplateData):
            return call("literal", [nodes.Const(node.data, lineno=node.lineno)], node.lineno)
        made = isinstance(node, (nodes.List, nodes.Dict)) or (
            isinstance(node, nodes.Tuple) and node.ctx == "load"
        )
        return call("literal", [node], node.lineno) if made else node

    _replace(tree, change)
    return tree


def _replace(tree: nodes.Node, change: Callable[[Any], Any]) -> None:
    """Put ``change(node)`` in place of every node below `tree`."""
    for name, value in list(tree.iter_fields()):
        if isinstance(value, nodes.Node):
            _replace(value, change)
            setattr(tree, name, change(value))
        elif isinstance(value, list):
            for child in value:
                if isinstance(child, nodes.Node):
                    _replace(child, change)
            value[:] = [change(child) if isinstance(child, nodes.Node) else child for child in value]


def _check_operands(operator: str, left: Any, right: Any) -> None:
    """Refuse an operation whose result would be too large, before it is made."""
    if operator == "%" and isinstance(left, str):
        raise TemplateError("the chat template formats a string with %, which is not supported here")
    numbers = isinstance(left, int) and isinstance(right, int)
    _checked(left)
    _checked(right)
    if operator == "**" and not (isinstance(right, (int, float)) and abs(right) <= 64):
        _too_large()
    if operator == "*" and not numbers:
        for items, times in ((left, right), (right, left)):
            sized = isinstance(items, (str, list, tuple)) and isinstance(times, int)
            if sized and len(items) * times > MAX_SIZE:
                _too_large()


def _check_method(owner: Any, name: str, args: tuple[Any, ...]) -> None:
    """Refuse a method that templates have no need of, and a call whose result would be too large."""
    kind = next((kind for kind in _METHODS if isinstance(owner, kind)), type(owner))
    if name not in _METHODS.get(kind, ()):
        raise TemplateError(f"the chat template calls {kind.__name__}.{name}, which is not supported here")
    _check_numbers(args)
    if name == "replace" and len(args) >= 2:
        _check_replace(owner, args[0], args[1])
    if name == "join" and args:
        _join(None, args[0], owner)


def _check_replace(text: Any, old: Any, new: Any) -> None:
    _measured((text, old, new))
    text, old, new = str(text), str(old), str(new)
    if len(text) + text.count(old) * len(new) > MAX_SIZE:
        _too_large()


def _check_numbers(args: Iterable[Any]) -> None:
    if any(isinstance(value, int) and abs(value) > _MAX_NUMBER for value in args):
        _too_large()


def _bounded(name: str, function: Callable[..., Any], step: Callable[[], Any]) -> Callable[..., Any]:
    """Wrap a filter of Jinja's: what it is given and what it returns are checked, and its items count."""
    first = 1 if _takes_context(function) else 0

    def bounded(*args: Any, **kwargs: Any) -> Any:
        value, *options = args[first:]
        _check_numbers([*options, *kwargs.values()])
        _measured(value)
        if name == "replace" and len(options) >= 2:
            _check_replace(value, options[0], options[1])
        if name == "indent":
            width = kwargs.get("width", options[0] if options else 4)
            _check_indent(width)
            _check_replace(value, "\n", " " * (width if isinstance(width, int) else len(width)))
        if name == "sum" and not all(isinstance(n, (int, float, str)) for n in [*options, *kwargs.values()]):
            raise TemplateError("the chat template sums up what are no numbers, which is not supported here")
        if name in _LAZY:
            args = (*args[:first], _counted(value or (), step), *options)  # to Jinja, None is empty
        return _checked(function(*args, **kwargs))

    bounded.__dict__.update(getattr(function, "__dict__", {}))  # what Jinja passes to it besides
    return bounded


def _takes_context(function: Callable[..., Any]) -> bool:
    return hasattr(function, "jinja_pass_arg")


def _counted(values: Iterable[Any], step: Callable[[], Any]) -> Iterable[Any]:
    for value in values:
        step()
        yield value


def _same(value: Any) -> Any:
    return value


def _check_indent(width: Any) -> None:
    if not (isinstance(width, int) and abs(width) <= _MAX_INDENT) and not (
        isinstance(width, str) and len(width) <= _MAX_INDENT
    ):
        raise TemplateError(f"the chat template indents by more than {_MAX_INDENT}")


def _join(_: Any, values: Iterable[Any], separator: str = "", attribute: Any = None) -> str:
    if attribute is not None:
        raise TemplateError("the chat template joins by an attribute, which is not supported here")
    kept = list(_limited(values))
    _measured(kept)
    parts = [str(value) for value in kept]
    if sum(map(len, parts)) + len(separator) * len(parts) > MAX_SIZE:
        _too_large()
    return str(separator).join(parts)


def _limited(values: Iterable[Any]) -> Iterable[Any]:
    for n, value in enumerate(values):
        if n > MAX_SIZE:
            _too_large()
        yield value


def _raise_exception(message: object = "") -> NoReturn:
    raise TemplateError(f"the chat template refuses these messages: {message}")


def _checked(value: Any) -> Any:
    """Return a value that is not too large."""
    if isinstance(value, str):
        if len(value) > MAX_SIZE:
            _too_large()
    elif isinstance(value, int):
        if value.bit_length() > MAX_BITS:
            _too_large()
    elif isinstance(value, (list, tuple, dict)):
        if len(value) > MAX_SIZE:
            _too_large()
        _measured(value)
    return value


def _measured(value: Any) -> int:
    """Return how many characters and items are in a value, whatever it is made of; not too many."""
    size, todo = 0, [value]
    while todo:
        item = todo.pop()
        if isinstance(item, Namespace):
            item = object.__getattribute__(item, "_Namespace__attrs")
        size += len(item) if isinstance(item, (str, bytes, list, tuple, dict)) else 1
        if size > 4 * MAX_SIZE:
            _too_large()
        if isinstance(item, dict):
            todo += [*item, *item.values()]
        elif isinstance(item, (list, tuple)):
            todo += item
    return size


def _too_large() -> NoReturn:
    raise TemplateError("the chat template grows without bound; it was stopped")
