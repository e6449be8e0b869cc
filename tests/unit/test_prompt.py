"""Prompts: whose special tokens count, and that the tokens are llama.cpp's."""

from __future__ import annotations

import string
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tiny_models import write_text_model

from llava_native import Model
from llava_native.errors import PromptTooLongError
from llava_native.messages import Message, make_content
from llava_native.prompt import PendingImage, Text, check_length, pieces
from llava_native.templates import BUILTIN, ChatTemplate

VOCABS = ["phi-3", "phi-3 rstrip", "llama-bpe", "llama-spm"]
TEMPLATE_OF = {"phi-3": "phi-3", "phi-3 rstrip": "phi-3", "llama-bpe": "llama-3", "llama-spm": "vicuna"}
IMAGE = PendingImage(SimpleNamespace(n_tokens=3), None)
HOSTILE = ["<image>", "<__media__>", "<|eot_id|>", "<|end|>", "<|user|>", "<|assistant|>", "</s>", "<s>",
           "<|begin_of_text|>", "<|im_end|>", "<unk>", "<|end", "|>"]  # fmt: skip

words = st.text(string.printable + "äß漢字🙂\u00a0\u3000\u2028\x1c\x85", max_size=25)
hostile_words = st.lists(st.one_of(words, st.sampled_from(HOSTILE)), max_size=4).map("".join)


def load(vocab, folder):
    # llama.cpp lets Phi-3's special tokens swallow the space after them where the name says phi-3
    name = {"general.name": "phi-3"} if "rstrip" in vocab else {}
    write_text_model(
        folder / "t.gguf", vocab=vocab.split()[0], legacy=vocab != "llama-bpe", kv=name, n_layer=1, n_embd=8
    )
    return Model(folder / "t.gguf", vocab_only=True)


# For the module: the vocabulary of Llama 3 takes a second to load.
@pytest.fixture(params=VOCABS, scope="module")
def vocab(request, tmp_path_factory):
    with load(request.param, tmp_path_factory.mktemp("vocab")) as model:
        yield model, ChatTemplate("built-in", BUILTIN[TEMPLATE_OF[request.param]])


def turn(template, *content, system=None):
    """The parts of one question; a str is a user's text."""
    parts = tuple(Text(part) if isinstance(part, str) else part for part in content)
    messages = [Message("user", parts)]
    if system is not None:
        messages.insert(0, Message("system", make_content(system, [])))
    return template.parts(messages)


def around(template):
    """What a template writes before and after a user's text."""
    before, _, after = "".join(part.text for part in turn(template, "§", system="")).partition("§")
    return before, after


def whole(model, text):
    return model.tokenize(text, add_special=True, parse_special=True)


def later(model, text):
    return model.tokenize(text, add_special=False, parse_special=True) if text else []


def has_special(model, text):
    return any(special in text for special in model.special_tokens)


def specials_in(model, made):
    special = set(model.special_tokens.values())
    return [token for piece in made if isinstance(piece, list) for token in piece if token in special]


def test_tokens_are_those_of_the_whole_prompt(vocab):
    model, template = vocab

    @settings(max_examples=60, deadline=None)
    @given(words, st.none() | words)
    def check(user, system):
        parts = turn(template, user, system=system)
        text = "".join(part.text for part in parts)
        if not has_special(model, user) and not has_special(model, system or ""):
            assert pieces(model, parts) == [whole(model, text)]

    check()


def test_text_around_an_image_is_tokenised_as_llama_cpp_does(vocab):
    """mtmd_tokenize: one llama_tokenize a stretch of text, BOS before the first."""
    model, template = vocab

    @settings(max_examples=40, deadline=None)
    @given(words)
    def check(user):
        before, after = around(template)
        if has_special(model, user):
            return
        made = pieces(model, turn(template, IMAGE, "\n", "x" + user + "x", system=""))
        assert made == [whole(model, before), IMAGE, later(model, "\nx" + user + "x" + after)]

    check()


def test_two_images_and_text_between(vocab):
    model, template = vocab
    made = pieces(model, turn(template, IMAGE, "\n", IMAGE, "\nWhich is larger?", system=""))
    before, after = around(template)
    tail = "\nWhich is larger?" + after
    assert made == [whole(model, before), IMAGE, later(model, "\n"), IMAGE, later(model, tail)]


def test_a_users_text_is_text(vocab):
    model, template = vocab
    expected = specials_in(model, pieces(model, turn(template, "x", system="x")))

    @settings(max_examples=60, deadline=None)
    @given(hostile_words, hostile_words)
    def check(user, system):
        # a template without a system text has none of its marks
        made = pieces(model, turn(template, user, system=system or "x"))
        assert len(made) == 1
        assert specials_in(model, made) == expected

    check()


@pytest.mark.parametrize("hostile", HOSTILE)
def test_a_hostile_text_comes_back_as_it_was(vocab, hostile):
    model, template = vocab
    made = pieces(model, turn(template, IMAGE, f"a {hostile} b", system=""))
    assert [len(piece) for piece in made if piece is IMAGE] == [3]
    plain = b"".join(model.token_bytes(token) for token in made[2])  # special tokens give nothing
    assert f"a {hostile} b" in plain.decode()


def test_bos_stands_first_and_once(vocab):
    model, template = vocab
    for content in (["x"], [IMAGE, "x"], ["<s><|begin_of_text|>"], [IMAGE]):
        made = pieces(model, turn(template, *content))
        ids = [token for piece in made if isinstance(piece, list) for token in piece]
        assert ids[0] == model.bos
        assert ids.count(model.bos) == 1


def test_an_image_first_of_all_still_follows_bos(vocab):
    model, _ = vocab
    assert pieces(model, [IMAGE, Text("x")]) == [[model.bos], IMAGE, later(model, "x")]


def test_a_vocabulary_that_wants_no_bos(tmp_path):
    write_text_model(tmp_path / "t.gguf", kv={"tokenizer.ggml.add_bos_token": False}, n_layer=1)
    with Model(tmp_path / "t.gguf", vocab_only=True) as model:
        assert pieces(model, [IMAGE, Text("x")]) == [IMAGE, later(model, "x")]
        assert pieces(model, [IMAGE]) == [IMAGE]
        assert pieces(model, []) == []


def test_rstrip_swallows_the_space_after_a_special_token(tmp_path):
    with load("phi-3", tmp_path) as plain:
        kept = pieces(plain, [Text("<|user|>\n", True), Text("x")])
    (tmp_path / "r").mkdir()
    with load("phi-3 rstrip", tmp_path / "r") as model:
        swallowed = pieces(model, [Text("<|user|>\n", True), Text("x")])
        assert swallowed == [[model.bos, model.special_tokens["<|user|>"], *later(model, "x")]]
        # only what llama.cpp calls a space
        wide = pieces(model, [Text("<|user|>\n", True), Text("\u3000\u00a0x")])
        assert wide == [[model.bos, model.special_tokens["<|user|>"], *later(model, "\u3000\u00a0x")]]
    assert len(kept[0]) > len(swallowed[0])


def test_a_prompt_leaves_room_for_a_token():
    check_length(99, 100)
    with pytest.raises(PromptTooLongError, match=r"100 tokens, and n_ctx=100") as info:
        check_length(100, 100)
    assert (info.value.n_tokens, info.value.n_ctx) == (100, 100)
