"""Chat templates: what they write, whose special tokens count, and what a stranger's may do."""

from __future__ import annotations

import itertools
import time
from types import SimpleNamespace

import pytest
from support.templates import LLAVA_HF
from support.tiny_models import CHAT_TEMPLATES, write_text_model

from llava_native import Model
from llava_native.errors import InvalidInputError, TemplateError
from llava_native.messages import Message, make_content, read_messages
from llava_native.prompt import PendingImage, Text, pieces
from llava_native.sandbox import MAX_SIZE, BoundedTemplate
from llava_native.templates import BUILTIN, ChatTemplate, choose_template

IMAGE = PendingImage(SimpleNamespace(n_tokens=3), None)
TALK = [
    ("system", "Be brief."), ("user", "What is it?"), ("assistant", "A cat."), ("user", "Which colour?"),
]  # fmt: skip


def message(role, text, *images):
    return Message(role, make_content(text, images))


def talk(*roles_and_texts):
    return [message(*one) for one in roles_and_texts]


def written(parts):
    return "".join(part.text if isinstance(part, Text) else "[IMAGE]" for part in parts)


def named(name, messages, **options):
    return written(ChatTemplate(name, BUILTIN[name]).parts(messages, **options))


# -- what they write


def test_phi_3():
    assert named("phi-3", talk(*TALK)) == (
        "<|system|>\nBe brief.<|end|>\n<|user|>\nWhat is it?<|end|>\n<|assistant|>\nA cat.<|end|>\n"
        "<|user|>\nWhich colour?<|end|>\n<|assistant|>\n"
    )


def test_llama_3():
    head = "<|start_header_id|>{}<|end_header_id|>\n\n"
    assert named("llama-3", talk(*TALK)) == "".join(
        head.format(role) + text + "<|eot_id|>" for role, text in TALK
    ) + head.format("assistant")


def test_chatml():
    assert (
        named("chatml", talk(*TALK))
        == "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in TALK)
        + "<|im_start|>assistant\n"
    )


def test_vicuna():
    start = "A chat between a curious human and an artificial intelligence assistant. The assistant gives "
    start += "helpful, detailed, and polite answers to the human's questions. "
    assert named("vicuna", talk(("user", "Hi"))) == start + "USER: Hi ASSISTANT:"
    assert named("vicuna", talk(*TALK)) == (
        "Be brief. USER: What is it? ASSISTANT: A cat.</s>USER: Which colour? ASSISTANT:"
    )


def test_mistral():
    assert named("mistral", talk(*TALK)) == (
        "[INST] Be brief.\n\nWhat is it? [/INST] A cat.</s>[INST] Which colour? [/INST]"
    )


@pytest.mark.parametrize("name", BUILTIN)
def test_an_empty_system_text_leaves_no_trace(name):
    text = named(name, [message("system", ""), message("user", "Hi")])
    assert "system" not in text
    assert "A chat between" not in text


@pytest.mark.parametrize("name", BUILTIN)
def test_images_keep_their_order_and_lines(name):
    content = read_messages(
        [{"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "image", "image": 1},
                                      {"type": "image", "image": 2}, {"type": "text", "text": "two"}]}],
        lambda image: PendingImage(SimpleNamespace(n_tokens=image), image), None)  # fmt: skip
    parts = ChatTemplate(name, BUILTIN[name]).parts(content)
    assert [part.image for part in parts if not isinstance(part, Text)] == [1, 2]
    assert "one\n[IMAGE]\n[IMAGE]\ntwo" in written(parts)


@pytest.mark.parametrize("vocab", ["phi-3", "llama-bpe"])
def test_the_seeds_own_text_only_templates(vocab):
    """They concatenate or trim ``content``, so a list of parts breaks them."""
    template = ChatTemplate("own", CHAT_TEMPLATES[vocab])
    made = template.parts([message("user", "  What is this? ", IMAGE)], bos="<s>")
    text = written(made)
    assert "[IMAGE]\n  What is this?" in text
    assert sum(part is IMAGE for part in made) == 1
    assert "\ue000" not in text


def test_a_system_text_that_a_template_drops_goes_before_the_question():
    made = ChatTemplate("own", CHAT_TEMPLATES["phi-3"]).parts(talk(("system", "Be brief."), ("user", "Hi")))
    assert "<|user|>\nBe brief.\n\nHi<|end|>" in written(made)


def test_a_template_that_wants_lists_of_parts():
    source = (
        "{% for m in messages %}{{ m['role'] + ': ' }}"
        "{% for c in m['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
        "{% for c in m['content'] | selectattr('type', 'equalto', 'text') %}{{ c['text'] }}{% endfor %}"
        "{% endfor %}"
    )
    made = ChatTemplate("own", source).parts([message("user", "a <image> b", IMAGE)])
    assert made == [Text("user: ", True), IMAGE, Text("\n", True), Text("a <image> b")]


def test_the_template_of_llava_hf():
    made = ChatTemplate("own", LLAVA_HF).parts(
        [message("user", "What is this?", IMAGE), *talk(("assistant", "A cat."), ("user", "Sure?"))]
    )
    assert written(made) == "USER: [IMAGE]\nWhat is this? ASSISTANT: A cat. USER: Sure? ASSISTANT:"


def test_a_system_text_is_never_put_into_the_models_mouth():
    made = ChatTemplate("own", CHAT_TEMPLATES["phi-3"]).parts(
        talk(("system", "Be brief."), ("assistant", "Hello!"), ("user", "Hi"))
    )
    assert "Hello!<|end|>\n<|user|>\nBe brief.\n\nHi<|end|>" in written(made)
    with pytest.raises(TemplateError, match="leaves out"):
        ChatTemplate("own", CHAT_TEMPLATES["phi-3"]).parts(talk(("system", "s"), ("assistant", "a")))


def test_tools_that_a_template_does_not_know_are_told_of_once(caplog):
    for source, n in (("{{ messages[0].content }}", 1), ("{{ tools }}{{ messages[0].content }}", 0)):
        for tools in ([{"name": "f"}], [{"name": "f"}], None):
            ChatTemplate(f"knows tools: {not n}", source).parts(talk(("user", "Hi")), tools=tools)
        assert caplog.text.count("knows no tools") == n
        caplog.clear()


def test_tools_that_are_not_given_are_none():
    source = "{% if tools is defined and tools is none %}none{% endif %}{{ messages[0].content }}"
    assert written(ChatTemplate("own", source).parts(talk(("user", "Hi")))) == "noneHi"


def test_tools_are_written_as_json():
    source = "{{ tools | tojson }}{% for m in messages %}{{ m.content }}{% endfor %}"
    made = ChatTemplate("own", source).parts(talk(("user", "Hi")), tools=[{"name": "é<"}])
    assert written(made) == '[{"name": "é<"}]Hi'


# -- whose special tokens count


@pytest.mark.parametrize("name", BUILTIN)
@pytest.mark.parametrize(
    "hostile", ["<|end|>", "<|eot_id|>", "<image>", "{{ 7 * 7 }}", "\ue0000\ue001", "</s>"]
)
def test_a_users_text_is_one_plain_part(name, hostile):
    made = ChatTemplate(name, BUILTIN[name]).parts(talk(("user", f"x{hostile}y")))
    assert [part.text for part in made if isinstance(part, Text) and not part.special] == [f"x{hostile}y"]


def test_bos_is_there_once_whoever_writes_it(tmp_path):
    write_text_model(tmp_path / "t.gguf", vocab="phi-3", n_layer=1, n_embd=8)
    with Model(tmp_path / "t.gguf", vocab_only=True) as model:
        for source in ("{{ bos_token }}{{ messages[0].content }}", "{{ messages[0].content }}"):
            made = pieces(model, ChatTemplate("own", source).parts(talk(("user", "x")), bos="<s>"))
            assert made == [[model.bos, *model.tokenize("x", add_special=False)]]


# -- refusals


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages[0].content }",
        "{% for %}",
        "{{ raise_exception('no') }}",
        "{{ messages.nothing.nothing }}",
        "hello",  # drops the user's words
        "{{ messages[0].content | upper | length }}",
        "{% include 'x' %}",
        "{{ ''.__class__.__mro__ }}{{ messages[0].content }}{{ ''.__class__.__mro__[1].__subclasses__() }}",
    ],
)
def test_a_template_that_does_not_work(source):
    with pytest.raises(TemplateError):
        ChatTemplate("own", source).parts(talk(("user", "x")))


def test_an_image_that_a_template_drops():
    source = "{{ messages[-1].content.split('\n')[-1] }}"
    with pytest.raises(TemplateError, match=r"leaves out an image.*'phi-3'"):
        ChatTemplate("own", source).parts([message("user", "x", IMAGE)])


NESTED = itertools.accumulate(
    range(6), lambda inner, n: f"{{% for i{n} in range(999) %}}{inner}{{% endfor %}}", initial=""
)
START = "{% set ns = namespace(x='ab', y=[1], n=3) %}"
ROUNDS = "{% for i in range(99) %}", "{% endfor %}"
ENDLESS = {
    "nested loops": list(NESTED)[-1],
    "a macro": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "two macros": (
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(200) }}"
    ),
    "a recursive loop": "{% for x in [1] recursive %}{{ loop([1]) }}{{ loop([1]) }}{% endfor %}",
    "a product": "{{ 'a' * 10 ** 12 }}",
    "a power": "{{ 9 ** (9 ** 9) }}",
    "numbers": "{% set ns.n = ns.n * ns.n %}".join(ROUNDS),
    "doubling": "{% set ns.x = ns.x ~ ns.x %}".join(ROUNDS),
    "adding": "{% set ns.x = ns.x + ns.x %}".join(ROUNDS),
    "lists": "{% set ns.y = ns.y + ns.y %}".join(ROUNDS),
    "a block": "{% set z %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = z %}".join(ROUNDS),
    "centre": "{{ 'a'.center(10 ** 11) }}",
    "indent": "{{ 'a' | indent(10 ** 11) }}",
    "replace": "{% set x = 'a' * 9999 %}{{ x | replace('a', x) }}",
    "a method": "{% set x = 'a' * 9999 %}{{ x.replace('a', x) }}",
    "join": "{% set x = 'a' * 9999 %}{{ range(9999) | join(x) }}",
    "format": "{{ '%999999999d' % 1 }}",
    "str.format": "{{ '{:999999999}'.format(1) }}",
    "a list's text": "{% set x = ['a' * 1000000] * 1000000 %}{{ x }}",
    "lists in lists": "{% set ns.y = [ns.y, ns.y] %}".join(ROUNDS) + "{{ ns.y }}",
    "dicts in dicts": "{% set ns.y = {1: ns.y, 2: ns.y} %}".join(ROUNDS) + "{{ ns.y }}",
    "namespaces": "{% set ns = namespace(a=ns, b=ns) %}" * 60 + "{{ ns }}",
    "comparing": (
        "{% set ns.x = [ns.x, ns.x] %}{% set ns.y = [ns.y, ns.y] %}".join(ROUNDS) + "{{ ns.x == ns.y }}"
    ),
    "tabs": "{{ ('\\t' * 1000000).expandtabs(10000) }}",
    "translate": "{{ ('a' * 1000000).translate({97: 'b' * 100000}) }}",
    "bytes": "{{ ('x'.encode() * 9000000000) | length }}",
    "numbers as bytes": "{{ (5).to_bytes(9000000000, 'little') | length }}",
    "an indent": "{{ ('\\n' * 1000000) | indent(10000, blank=true) }}",
    "an indent of text": "{{ ('\\n' * 1000000) | indent('x' * 1000000, blank=true) }}",
    "indented JSON": "{{ ([1] * 1000000) | tojson(indent=10000) }}",
    "a sum of lists": "{{ ([[1] * 1000000] * 1000) | sum(start=[]) | length }}",
    "a search for each": "{% set x = [0.5] * 1000000 %}{{ range(100000) | select('in', x) | list | length }}",
    "long division": "{% set x = ('7' * 900000) | int(0, 16) %}{{ x // 3 }}",
    "output": "{% set x = 'a' * 99999 %}{% for i in range(9999) %}{{ x }}{% endfor %}",
}  # fmt: skip


ENDLESS["its own text"] = "{% for i in range(95000) %}" + "x" * 100_000 + "{% endfor %}"


@pytest.mark.parametrize("how", ENDLESS)
def test_a_template_without_end_or_bound_is_stopped(how):
    began = time.process_time()
    with pytest.raises(TemplateError):
        BoundedTemplate(START + ENDLESS[how]).render()
    assert time.process_time() - began < 30  # without the bounds: hours, or all memory


@pytest.mark.parametrize(
    "source", ["{{ " + "1" * 5000 + " }}", "{% if a %}" + "{% elif a %}" * 10000 + "{% endif %}"]
)
def test_a_template_that_python_cannot_compile(source):
    with pytest.raises(TemplateError, match="does not compile"):
        BoundedTemplate(source)


def test_what_templates_need_is_there():
    source = """\
{%- for m in messages -%}
{%- if m.content is string and m.content.strip().startswith('a') -%}{{ m.get('role').upper() }}{% endif -%}
{%- for k, v in m.items() -%}{{ [k, v] | join('=') }};{%- endfor -%}
{%- endfor -%}
{{ 'a,b'.split(',')[1] }}{{ 'x' | indent(2) }}{{ {'a': [1, 2]} | tojson(indent=2) }}"""
    made = BoundedTemplate(source).render(messages=[{"role": "user", "content": " ab "}])
    assert made == 'USERrole=user;content= ab ;bx{\n  "a": [\n    1,\n    2\n  ]\n}'


@pytest.mark.parametrize(
    ("source", "written"),
    [
        ("{% generation %}a{% if true %}b{% endif %}{% endgeneration %}c", "abc"),
        (
            "{{ none | selectattr('x') | list }}{{ none | map('upper') | list }}{{ none | reject | list }}",
            "[][][]",
        ),
        ("{{ '<b>' | safe }}", "<b>"),
        ("{{ {'b': 1, 'a': 'é'} | tojson(sort_keys=true, ensure_ascii=true) }}", '{"a": "\\u00e9", "b": 1}'),
        ("{{ {'b': [1, 2]} | tojson(separators=(',', ':')) }}", '{"b":[1,2]}'),
    ],
)
def test_what_transformers_knows_besides(source, written):
    assert BoundedTemplate(source).render() == written


def test_ordinary_templates_are_not_bounded():
    text = BoundedTemplate("{% for i in range(2000) %}{{ 'x' * 10 ~ i % 10 }}{% endfor %}").render()
    assert len(text) == 2000 * 11 < MAX_SIZE


def test_a_template_may_be_rendered_again_after_it_was_stopped():
    template = BoundedTemplate("{% if bad %}{% for i in range(99999) %}{% for j in range(99999) %}"
                               "{% endfor %}{% endfor %}{% endif %}ok")  # fmt: skip
    with pytest.raises(TemplateError, match="does not end"):
        template.render(bad=True)
    assert template.render(bad=False) == "ok"


# -- which one


VOCABS = {"phi-3": "phi-3", "llama-bpe": "llama-3", "llama-spm": "vicuna"}


@pytest.mark.parametrize("vocab", VOCABS)
def test_the_template_is_chosen_by_the_vocabulary(vocab, tmp_path):
    write_text_model(tmp_path / "t.gguf", vocab=vocab, n_layer=1, n_embd=8)
    with Model(tmp_path / "t.gguf", vocab_only=True) as model:
        assert choose_template(model).name == VOCABS[vocab]
        assert choose_template(model, "chatml").source == BUILTIN["chatml"]


def test_the_files_own_template_comes_first(tmp_path, caplog):
    write_text_model(tmp_path / "t.gguf", chat_template="X{{ messages[0].content }}", n_layer=1, n_embd=8)
    with Model(tmp_path / "t.gguf", vocab_only=True) as model:
        assert choose_template(model).source == "X{{ messages[0].content }}"
    write_text_model(tmp_path / "b.gguf", chat_template="{{ broken", n_layer=1, n_embd=8)
    with Model(tmp_path / "b.gguf", vocab_only=True) as model:
        assert choose_template(model).name == "phi-3"
    assert "built-in template is used" in caplog.text


def test_a_name_that_says_mistral(tmp_path):
    write_text_model(
        tmp_path / "t.gguf", vocab="llama-spm", kv={"general.name": "LLaVA Mistral"}, n_layer=1,
        n_embd=8,
    )  # fmt: skip
    with Model(tmp_path / "t.gguf", vocab_only=True) as model:
        assert choose_template(model).name == "mistral"


def test_by_source_and_by_file(tmp_path):
    path = tmp_path / "t.jinja"
    path.write_text("{{ messages[0].content }}!", encoding="utf-8")
    for chosen in ("{{ messages[0].content }}!", path, str(path)):
        assert written(choose_template(None, chosen).parts(talk(("user", "Hi")))) == "Hi!"


@pytest.mark.parametrize("chosen", ["mistal", "no/such/file.jinja", 7, "{{ broken"])
def test_no_such_template(chosen):
    with pytest.raises((InvalidInputError, TemplateError)):
        choose_template(None, chosen)
