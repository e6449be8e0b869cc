"""The checks of a grammar before llama.cpp reads it."""

from __future__ import annotations

import contextlib
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llava_native.errors import GrammarError
from llava_native.grammar import check_grammar


@pytest.mark.parametrize(
    "grammar",
    [
        'root ::= "a"',
        'root ::= root2\nroot2 ::= "a" root2 | "b"',
        'root ::= "(" root ")" | "x"',
        'root ::= ( "a" | "b" root )* "c"',
        'root ::= item ("," item)*\nitem ::= [^"\\]\\n]+ | "\\"" root # root root',
        'root ::= "" | "a"{2,3} [0-9]{2} .{0,} x{,5}\nx ::= "b"',
        'root ::= <think> !</think>* <[5]> "x"',
        'value ::= object | array\nobject ::= "{" ws (pair ("," ws pair)*)? "}"\npair ::= "k:" value\n'
        'array ::= "[" ws (value ("," ws value)*)? "]"\nws ::= [ \\t\\n]*\nroot ::= value',
        "root ::= a-b\na-b ::=\n  [x]\n  | [y]",
        "Answer in JSON, please.",  # for llama.cpp to refuse
        "root ::= (",
        "root ::= ) x",
        '"',
    ],
)
def test_sound_grammars_pass(grammar):
    check_grammar(grammar)


@pytest.mark.parametrize(
    ("grammar", "says"),
    [
        ("", "empty"),
        (" \n ", "empty"),
        ('root ::= "a"\0', "NUL"),
        ("root ::= root", "root > root"),
        ('root ::= root "a" | "b"', "left-recursive"),
        ('root ::= x "a"\nx ::= y\ny ::= "b" | root', "left-recursive"),
        ('root ::= x root "a"\nx ::= "b"?', "left-recursive"),
        ('root ::= x y root "a"\nx ::= "b"*\ny ::= x | "c"', "left-recursive"),
        ('root ::= "" root "a"', "left-recursive"),
        ('root ::= ( ( root ) "x" )', "left-recursive"),
        ('root ::= "b"{0,3} root "a"', "left-recursive"),
        ('root ::= ("b" | ) root "a"', "left-recursive"),
        ('root ::= "a"{2,1}', "{2,1}"),
        ('root ::= "a"{ 3 , 2 }', "smaller"),
        ("root ::= " + "(" * 201 + '"a"' + ")" * 201, "nests"),
        ("\n".join(f'r{i} ::= "a"' for i in range(4001)), "4000 rules"),
        ("root ::= " + '"a" | ' * 200_000 + '"b"', "at most 1048576"),
    ],
)
def test_what_llama_cpp_would_not_survive(grammar, says):
    with pytest.raises(GrammarError, match="grammar") as info:
        check_grammar(grammar)
    assert says in str(info.value)


@given(st.text('ab"[](){}|*+?:=<>!.#\\ \n\t09,-', max_size=60))
def test_anything_is_passed_on_or_refused(text):
    with contextlib.suppress(GrammarError):
        check_grammar("root ::= " + text)


@pytest.mark.parametrize(
    "text", ["(" * 10**6, "a" * 10**6, '"' * 10**6, "a ::= " * 10**5, "\\" * 10**6, "[" * 10**6]
)
def test_no_text_takes_long(text):
    began = time.process_time()
    with contextlib.suppress(GrammarError):
        check_grammar("root ::= " + text)
    assert time.process_time() - began < 10
