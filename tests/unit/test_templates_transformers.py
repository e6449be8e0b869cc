"""Chat templates against transformers' own renderer."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from support.templates import LLAVA_HF

utils = pytest.importorskip(
    "transformers.utils.chat_template_utils", reason="transformers is a training extra, not a test one"
)

from llava_native.messages import Message, make_content, read_messages  # noqa: E402
from llava_native.prompt import PendingImage, Text  # noqa: E402
from llava_native.templates import BUILTIN, ChatTemplate  # noqa: E402

# as published with Phi-3-mini-4k-instruct and Meta-Llama-3-8B-Instruct
PUBLISHED = {
    "phi-3": (
        "{% for message in messages %}{% if message['role'] == 'system' %}{{'<|system|>\n' + "
        "message['content'] + '<|end|>\n'}}{% elif message['role'] == 'user' %}{{'<|user|>\n' + "
        "message['content'] + '<|end|>\n'}}{% elif message['role'] == 'assistant' %}{{'<|assistant|>\n' + "
        "message['content'] + '<|end|>\n'}}{% endif %}{% endfor %}{% if add_generation_prompt %}"
        "{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
    ),
    "llama-3": (
        "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = "
        "'<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + "
        "'<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}"
        "{{ content }}{% endfor %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
    ),
}
TALKS = [
    [("user", "What is this?")],
    [("system", "Be brief."), ("user", "What is this?")],
    [("user", "  spaces \n"), ("assistant", "\tA cat.\n"), ("user", "Sure?\n\n")],
    [
        ("system", " s "),
        ("user", "a"),
        ("assistant", "b"),
        ("user", "c"),
        ("assistant", "d"),
        ("user", "é漢🙂"),
    ],
]


def theirs(source, talk):
    messages = [{"role": role, "content": text} for role, text in talk]
    rendered, _ = utils.render_jinja_template(
        conversations=[messages],
        chat_template=source,
        add_generation_prompt=True,
        bos_token="",
        eos_token="</s>",
    )
    return rendered[0]


def ours(source, talk):
    messages = [Message(role, make_content(text, [])) for role, text in talk]
    parts = ChatTemplate("x", source).parts(messages, bos="", eos="</s>")
    return "".join(part.text for part in parts if isinstance(part, Text))


def test_images_are_written_where_transformers_writes_them():
    image = PendingImage(SimpleNamespace(n_tokens=4), None)
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]},
                {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]}]  # fmt: skip
    rendered, _ = utils.render_jinja_template([messages], chat_template=LLAVA_HF, add_generation_prompt=True)
    made = ChatTemplate("x", LLAVA_HF).parts(read_messages(
        [{"role": "user", "content": [{"type": "image", "image": 1}, "What is this?"]}, messages[1]],
        lambda _: image, str,
    ))  # fmt: skip
    assert "".join(part.text if isinstance(part, Text) else "<image>" for part in made) == rendered[0]


@pytest.mark.parametrize("talk", TALKS)
@pytest.mark.parametrize("name", PUBLISHED)
def test_the_built_in_template_writes_what_the_published_one_does(name, talk):
    assert ours(BUILTIN[name], talk) == theirs(PUBLISHED[name], talk)


@pytest.mark.parametrize("talk", TALKS)
@pytest.mark.parametrize("name", [*BUILTIN, *(f"published {n}" for n in PUBLISHED)])
def test_our_bounded_jinja_writes_what_transformers_does(name, talk):
    source = PUBLISHED.get(name.removeprefix("published ")) if "published" in name else BUILTIN[name]
    assert ours(source, talk) == theirs(source, talk)
