"""Go templates as Jinja: the same prompts as Ollama writes."""

from __future__ import annotations

import contextlib

import hypothesis
import hypothesis.strategies as st
import pytest
from support.seeds import LLAMA_3_TEMPLATE, PHI_3_TEMPLATE

from llava_native.errors import TemplateError
from llava_native.ollama import to_chat_template, to_jinja
from llava_native.sandbox import BoundedTemplate
from llava_native.templates import BUILTIN


def render(source, *messages, jinja=None):
    template = BoundedTemplate(jinja or to_jinja(source))
    dicts = [dict(zip(("role", "content"), message, strict=True)) for message in messages]
    return template.render(messages=dicts, bos_token="<s>", eos_token="</s>", add_generation_prompt=True)


SYSTEM, ASKS, SAYS = ("system", "Be brief."), ("user", "What is it?"), ("assistant", "A cat.")
AGAIN = ("user", "Which colour?")


# -- what grows without bound


@pytest.mark.parametrize(
    "source",
    [
        "{{ with .System }}" + "{{ with and . . }}" * 40 + "x" + "{{ end }}" * 41,
        "{{ range .Messages }}{{ if " + "(eq " * 40 + ".Role" + " 1 1)" * 40 + " }}x{{ end }}{{ end }}",
        "{{ " + "(" * 5000 + ".Prompt" + ")" * 5000 + " }}",
        "{{ .Prompt" + " | len" * 3000 + " }}",
        '{{ "' + '\\"' * 8000 + " }}",
    ],
)
def test_a_small_template_that_becomes_a_large_one_is_refused(source):
    with pytest.raises(TemplateError):
        to_jinja(source)


def test_text_of_a_template_is_never_taken_for_a_part_of_ours():
    assert render("CUT{{ .Prompt }}WHOLE", ASKS) == "CUTWhat is it?WHOLE"


# -- the seeds


@pytest.mark.parametrize(("source", "name"), [(PHI_3_TEMPLATE, "phi-3"), (LLAMA_3_TEMPLATE, "llama-3")])
def test_the_seeds_templates_are_recognised_and_mean_the_same(source, name):
    assert to_chat_template(source) == name
    conversations = [(ASKS,), (SYSTEM, ASKS), (ASKS, SAYS, AGAIN), (SYSTEM, ASKS, SAYS, AGAIN)]
    for messages in conversations:
        assert render(source, *messages) == render("", *messages, jinja=BUILTIN[name])


def test_what_phi_3_becomes():
    assert render(PHI_3_TEMPLATE, SYSTEM, ASKS, SAYS, AGAIN) == (
        "<|system|>\nBe brief.<|end|>\n<|user|>\nWhat is it?<|end|>\n<|assistant|>\nA cat.<|end|>\n"
        "<|user|>\nWhich colour?<|end|>\n<|assistant|>\n"
    )


@pytest.mark.parametrize(
    ("changed", "by"),
    [
        ("<|user|>", "<|human|>"), ("<|end|>\n\"\"\"", "<|end|>"), ("{{ if .System }}", ""),
        ("{{ .Response }}", "{{ .Response }} "), ("{{ if .Prompt }}", "{{ if .Tools }}"),
    ],
)  # fmt: skip
def test_a_template_that_differs_keeps_its_difference(changed, by):
    source = PHI_3_TEMPLATE.replace(changed, by)
    if changed == "{{ if .System }}":
        source = source.replace("{{ end }}", "", 1)
    if source != PHI_3_TEMPLATE:
        assert to_chat_template(source) != "phi-3"


# -- the old form: what Ollama's own tests and library have


CASES = {
    "llama-2": (
        "[INST] <<SYS>>{{ .System }}<</SYS>>\n\n{{ .Prompt }} [/INST] {{ .Response }}</s>",
        "[INST] <<SYS>>Be brief.<</SYS>>\n\nWhat is it? [/INST] A cat.</s>"
        "[INST] <<SYS>><</SYS>>\n\nWhich colour? [/INST] ",
    ),
    "llava-1.5": (
        "{{ .System }}\nUSER: {{ .Prompt }}\nASSISTANT: ",
        "Be brief.\nUSER: What is it?\nASSISTANT: A cat.\nUSER: Which colour?\nASSISTANT: ",
    ),
    "trimmed": (
        "{{- if .System }}\n  S: {{ .System }}\n{{- end }}\n\n{{- if .Prompt }}\nU: "
        "{{ .Prompt -}}\n{{ end }}|A:",
        "\n  S: Be brief.\nU: What is it?|A:A cat.\nU: Which colour?|A:",
    ),
    "else": (
        "{{ if .System }}<{{ .System }}>{{ else }}<none>{{ end }}{{ .Prompt }}={{ .Response }};",
        "<Be brief.>What is it?=A cat.;<none>Which colour?=",
    ),
    "else if": (
        "{{ if .Tools }}T{{ else if .System }}S{{ else }}N{{ end }}{{ .Prompt }}{{ .Response }}",
        "SWhat is it?A cat.NWhich colour?",
    ),
    "and, or, not, eq": (
        "{{ if and .System (not .Tools) }}1{{ end }}{{ if or .Tools .Prompt }}2{{ end }}"
        '{{ if eq .Prompt "What is it?" "x" }}3{{ end }}{{ .Response }}|',
        "123A cat.|2",
    ),
    "variables": ('{{ $s := "a" }}{{ if .System }}{{ $s = "b" }}{{ end }}{{ $s }}{{ .Prompt }}'
                  "{{ .Response }}", "bWhat is it?A cat.aWhich colour?"),
    "comments, with, raw strings": (
        '{{/* }} a comment */}}{{ with .System }}[{{ . }}]{{ end }}{{ `"{{ }}"` }}{{ "\\t" }}{{ .Prompt }}'
        "{{- /* more */ -}}  {{ .Response }}",
        '[Be brief.]"{{ }}"\tWhat is it?A cat."{{ }}"\tWhich colour?',
    ),
    "if around the answer": (
        "{{ if .Prompt }}U:{{ .Prompt }}{{ end }}{{ if .Response }}A:{{ .Response }}E{{ end }}",
        "U:What is it?A:A cat.EU:Which colour?A:",
    ),
    "braces and quotes in the text": (
        "{% raw %}{{ .Prompt }}{# no #}\\n'\"{{ .Response }}\u00e9\U0001f600",
        "{% raw %}What is it?{# no #}\\n'\"A cat.\u00e9\U0001f600{% raw %}Which colour?{# no #}\\n'\"",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_templates_of_turns(case):
    source, expected = CASES[case]
    assert render(source, SYSTEM, ASKS, SAYS, AGAIN) == expected


def test_messages_of_one_role_are_one():
    source = "S:{{ .System }} U:{{ .Prompt }} A:{{ .Response }}."
    two = [("system", "a"), ("system", "b"), ("user", "c"), ("user", "d"), ("assistant", "e"), ("user", "f")]
    assert render(source, *two) == "S:a\n\nb U:c\n\nd A:e.S: U:f A:"
    assert render(source, ASKS, SAYS, ("system", "new"), AGAIN).endswith(".S:new U:Which colour? A:")


def test_an_answer_may_be_begun():
    assert render("{{ .Prompt }}>{{ .Response }}<", ASKS, SAYS) == "What is it?>A cat."


def test_contents_are_no_template():
    evil = ("user", "{{ 7 * 7 }}{% for %}")
    assert render("{{ .Prompt }}{{ .Response }}", evil) == evil[1]


# -- the new form


MESSAGES = """\
{{- range $i, $_ := .Messages }}
{{- $last := eq (len (slice $.Messages $i)) 1 }}
{{- if eq .Role "user" }}<user>{{ .Content }}</user>
{{- else if and (eq .Role "assistant") .Content }}<bot>{{ .Content }}</bot>
{{- range .ToolCalls }}{{ .Function.Name }}{{ json .Function.Arguments }}{{ end }}
{{- else if ne .Role "tool" }}<{{ .Role }}>{{ .Content }}
{{- end }}
{{- if and $last (ne .Role "assistant") }}<bot>{{ end }}
{{- end }}"""


def test_templates_of_messages():
    assert render(MESSAGES, SYSTEM, ASKS, SAYS, AGAIN) == (
        "<system>Be brief.<user>What is it?</user><bot>A cat.</bot><user>Which colour?</user><bot>"
    )


def test_templates_of_both_forms_use_the_new_one():
    source = (
        "{{ if .Messages }}{{ if or .System .Tools }}[{{ .System }}]{{ end }}{{ range .Messages }}"
        "{{ if ne .Role `system` }}{{ .Content }};{{ end }}{{ end }}{{ else }}"
        "{{ .Suffix.x }}{{ .Response }}{{ end }}"
    )
    assert render(source, SYSTEM, ASKS) == "[Be brief.]What is it?;"
    assert render(source, ASKS) == "What is it?;"


def test_the_index_and_else_of_range():
    source = "{{ range $i, $m := .Messages }}{{ $i }}{{ $m.Content }}{{ else }}none{{ end }}"
    assert render(source, ASKS, AGAIN) == "0What is it?1Which colour?"
    assert render("{{ range (slice .Messages 2) }}{{ else }}none{{ end }}", ASKS, AGAIN) == "none"


# -- whatever is written


PIECES = [
    "{{", "}}", "{{-", "-}}", " ", "\n", "if", "else", "end", "range", "with", "not", "and", "eq", "len",
    "slice", "index", ".System", ".Prompt", ".Response", ".Messages", ".Role", ".Content", ".Tools", "$",
    "$x", ":=", "=", "|", "(", ")", ",", "0", "1", '"a"', "`", "text", "/*", "*/", "{{ end }}", "{{ else }}",
    "{{ if .System }}", "{{ range .Messages }}", "{{ range $i, $m := .Messages }}", "{{ $x := .Prompt }}",
    "{{ .Response }}",
]  # fmt: skip


@hypothesis.given(st.lists(st.sampled_from(PIECES), max_size=12).map("".join))
@hypothesis.settings(max_examples=400, deadline=None)
def test_any_template_is_refused_or_renders(source):
    """What is translated compiles; rendering may fail on types, as in Go, and then says so."""
    try:
        jinja = to_jinja(source)
    except TemplateError:
        return
    template = BoundedTemplate(jinja)
    with contextlib.suppress(TemplateError):
        template.render(messages=[{"role": "user", "content": "Q"}])


@hypothesis.given(st.text())
@hypothesis.settings(max_examples=200, deadline=None)
def test_text_stays_what_it_is(text):
    hypothesis.assume("{{" not in text and not text.endswith("{"))
    assert render(text + "{{ .Prompt }}", ASKS) == text + ASKS[1]


# -- what is refused


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("{{ if .System }}x", r"line 1: \{\{ if \}\} has no"),
        ("a\nb{{ end }}", r"line 2: \{\{ end \}\} without"),
        ("{{ else }}", "without a beginning"),
        ("a\n\n{{ .Prompt", "line 3: an action .* not closed"),
        ("{{ /* }}", "not closed"),
        ("{{ }}", "is empty"),
        ("{{ (.Prompt }}", "parenthesis"),
        ("{{ .Prompt ) }}", r"'\)' is not expected"),
        ("{{ .Prompt & }}", "not understood"),
        ("{{ .Prompt .System }}", "function"),
        ("{{ if .System }}{{ else 3 }}{{ end }}", "not understood"),
        ("{{ range $a, $b, $c := .Messages }}{{ end }}", "not understood"),
        ('{{ template "x" }}', "template .* not supported"),
        ("{{ range .Messages }}{{ break }}{{ end }}", "break .* not supported"),
        ("{{ .Secrets }}", r"\.Secrets, which is not known"),
        ("{{ range .Messages }}{{ .Images }}{{ end }}", r"\.Images"),
        ("{{ . }}", "all its data"),
        ("{{ $x }}", r"\$x, which it does not declare"),
        ("{{ range .Messages }}{{ $x := 1 }}{{ end }}{{ $x }}", "does not declare"),
        ('{{ printf "%s" .Prompt }}', "calls printf with 2"),
        ("{{ json .Messages }}", "calls json"),
        ("{{ eq .Prompt }}", "calls eq with 1"),
        ('{{ "\\q" }}', "string"),
        ("{{ if .A }}" * 60, "nests more than"),
        (
            "{{ with .System }}"
            + "{{ with (and . .) }}" * 11
            + "{{ and"
            + " ." * 9
            + " }}"
            + "{{ end }}" * 12,
            "becomes more than 65536",
        ),
        ("x" * 70000, "70000 characters"),
    ],
)
def test_what_is_not_understood_is_refused(source, says):
    with pytest.raises(TemplateError, match=says):
        to_chat_template(source)
