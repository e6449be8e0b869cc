"""Checks of a GBNF grammar that llama.cpp does not make: each of these ends the process, or takes its memory.

Whether the grammar parses at all is left to llama.cpp; what cannot be read here is passed on to it.
"""

from __future__ import annotations

import graphlib
import re
from typing import NamedTuple

from llava_native.errors import GrammarError

__all__ = ["check_grammar"]

MAX_BYTES = 2**20  # every alternative is tried against every token
MAX_NESTING = 200  # upstream's parser calls itself once a parenthesis
MAX_RULES = 4000  # and its check of left recursion once a rule in a chain
_TOKEN = re.compile(
    r'(?P<terminal>"(?P<literal>(?:\\.|[^"\\])*)"|\[(?:\\.|[^\]\\])*\]|!?<[^>\s]*>|\.)'
    r"|(?P<rule>[\w-]+)\s*::="
    r"|(?P<name>[\w-]+)|(?P<repeat>[*+?]|\{\s*\d*\s*,?\s*\d*\s*\})|(?P<other>[|()])|\s+|#[^\n]*",
    re.DOTALL,
)


class _Item(NamedTuple):
    """A part of an alternative: a rule's name, None for characters; whether it may be left out."""

    rule: str | None
    optional: bool


_Rules = dict[str, list[list[_Item]]]


def check_grammar(grammar: str) -> None:
    """Raise GrammarError for a grammar that llama.cpp would not survive.

    Parameters
    ----------
    grammar : str
        In GBNF.
    """
    if not grammar.strip() or "\0" in grammar:
        raise GrammarError("the grammar is empty, or has a NUL in it")
    if len(grammar) > MAX_BYTES:
        raise GrammarError(f"the grammar has {len(grammar):,} characters; at most {MAX_BYTES} are taken")
    rules = _parse(grammar)
    empty = _may_be_empty(rules)
    edges = {name: {rule for items in rules[name] for rule in _leftmost(items, empty)} for name in rules}
    try:
        graphlib.TopologicalSorter(edges).prepare()
    except graphlib.CycleError as exc:
        circle = " > ".join(reversed([name for name in exc.args[1] if not name.startswith("(")]))
        raise GrammarError(
            f"the grammar is left-recursive: {circle}; a rule must not begin with itself"
        ) from None


def _parse(grammar: str) -> _Rules:
    """Read rules and, under names of their own, groups in parentheses."""
    rules: _Rules = {}
    open_groups: list[str] = []
    current, position, n_groups = "", 0, 0
    while match := _TOKEN.match(grammar, position):
        position = match.end()
        kind, text = match.lastgroup, match.group()
        if kind == "rule":
            current = match["rule"]
            open_groups = []
            rules.setdefault(current, []).append([])
            if len(rules) - n_groups > MAX_RULES:
                raise GrammarError(f"the grammar has more than {MAX_RULES} rules")
        elif kind is None or not rules:
            continue
        elif text == "|":
            rules[current].append([])
        elif text == "(":
            if len(open_groups) == MAX_NESTING:
                raise GrammarError(f"the grammar nests parentheses more than {MAX_NESTING} deep")
            n_groups += 1
            group = f"({n_groups}"
            rules[current][-1].append(_Item(group, False))
            rules[group] = [[]]
            open_groups.append(current)
            current = group
        elif text == ")":
            if not open_groups:
                break
            current = open_groups.pop()
        elif kind == "repeat":
            _repeat(rules[current][-1], text)
        else:
            rules[current][-1].append(_Item(match["name"], match["literal"] == ""))
    return rules


def _repeat(items: list[_Item], text: str) -> None:
    """Apply a repetition to the last item."""
    bounds = [int(bound) for bound in re.findall(r"\d{1,9}", text)]
    if len(bounds) == 2 and bounds[0] > bounds[1]:  # upstream would go on almost forever
        raise GrammarError(f"the grammar repeats something {text}: the second number is the smaller one")
    least = 0 if text in ("*", "?") or text.replace(" ", "").startswith(("{0", "{,")) else 1
    if items and not least:
        items[-1] = items[-1]._replace(optional=True)


def _may_be_empty(rules: _Rules) -> set[str]:
    """Return the rules that can match nothing, directly or through others."""
    empty: set[str] = set()
    changed = True
    while changed:
        found = {
            name
            for name, alternatives in rules.items()
            if any(all(item.optional or item.rule in empty for item in items) for items in alternatives)
        }
        changed, empty = found != empty, found
    return empty


def _leftmost(items: list[_Item], empty: set[str]) -> set[str]:
    """Return the rules that an alternative can begin with."""
    out: set[str] = set()
    for item in items:
        if item.rule is not None:
            out.add(item.rule)
        if not (item.optional or item.rule in empty):
            break
    return out
