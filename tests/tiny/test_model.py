"""Vocabularies: text and tokens, there and back; what a file says about itself; quiet libraries."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from support.child import outcome
from support.tiny_models import CHAT_TEMPLATES, write_text_model

from llava_native import Model
from llava_native.errors import InvalidInputError

VOCABS = ["phi-3", "llama-bpe"]
# one opened model serves many examples, which is sound here; a slow machine is no failure
many = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
characters = st.characters(exclude_categories=["Cs"], exclude_characters="\0")


@pytest.fixture(params=VOCABS)
def vocab_model(request, tiny_pair):
    """Only the vocabulary of one of the two kinds."""
    with Model(tiny_pair(request.param).text.path, vocab_only=True) as model:
        yield model


@pytest.fixture
def bpe(tiny_pair):
    with Model(tiny_pair("llama-bpe").text.path, vocab_only=True) as model:
        yield model


# -- there and back -----------------------------------------------------------------------------------


@many
@given(text=st.text(characters, max_size=40))
def test_text_comes_back(vocab_model, text):
    ids = vocab_model.tokenize(text, add_special=False)
    assert all(0 <= i < vocab_model.n_vocab for i in ids)
    back = vocab_model.detokenize(ids, unparse_special=True)
    if vocab_model.is_spm and text:
        assert back in (text, f" {text}", text.removeprefix(" "))  # SentencePiece puts a space in front
    else:
        assert back == text


@many
@given(text=st.text(characters, max_size=40))
def test_the_bytes_of_the_tokens_are_those_of_the_text(vocab_model, text):
    ids = vocab_model.tokenize(text, add_special=False)
    joined = b"".join(vocab_model.token_bytes(i) for i in ids)
    prefix = b" " if vocab_model.is_spm and text else b""  # SentencePiece puts a space before a text
    assert joined == prefix + text.encode()


@many
@example(data=b"\xf4\x90\x80\x80 \xf5\x80\x80\x80 \xf7\xbf\xbf\xbf")  # UTF-8's pattern beyond U+10FFFF
@example(data=b"\xf8\xff\xed\xa0\x80\xc0\x80\xe2\x82")
@given(data=st.binary(max_size=40))
def test_any_bytes_are_tokenised(vocab_model, data):
    ids = vocab_model.tokenize(data)
    assert isinstance(vocab_model.detokenize(ids), str)


@pytest.mark.parametrize("text", ["été", "日本語", "🙂👩‍👩‍👧", "a\u0301", "\u200b", "tab\tand\r\nline"])
def test_text_that_is_not_ascii(vocab_model, text):
    ids = vocab_model.tokenize(text, add_special=False)
    assert vocab_model.detokenize(ids).removeprefix(" ") == text


def test_str_and_bytes_are_the_same(vocab_model):
    assert vocab_model.tokenize("naïve") == vocab_model.tokenize("naïve".encode())
    assert vocab_model.tokenize("naïve") == vocab_model.tokenize(bytearray("naïve".encode()))


def test_empty_text(vocab_model):
    assert vocab_model.tokenize("", add_special=False) == []
    assert vocab_model.tokenize("") == [vocab_model.bos] * vocab_model.add_bos
    assert vocab_model.detokenize([]) == ""


@pytest.mark.parametrize("bad", [None, 1.5, ["x"], "\ud800"])
def test_what_is_no_text(vocab_model, bad):
    with pytest.raises((TypeError, ValueError)):
        vocab_model.tokenize(bad)


# -- special tokens -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("vocab", "special"), [("phi-3", "<|end|>"), ("llama-bpe", "<|eot_id|>")])
def test_special_tokens_are_read_only_on_request(tiny_pair, vocab, special):
    with Model(tiny_pair(vocab).text.path, vocab_only=True) as model:
        token = model.special_tokens[special]
        assert model.tokenize(special, add_special=False, parse_special=True)[-1] == token
        as_text = model.tokenize(f"a{special}b", add_special=False)
        assert token not in as_text
        assert model.detokenize(as_text).removeprefix(" ") == f"a{special}b"
        assert token in model.tokenize(f"a{special}b", parse_special=True)
        assert model.is_eog(token)
        assert not model.is_eog(as_text[0])
        assert model.token_bytes(token) == b""
        assert model.token_bytes(token, special=True) == special.encode()
        assert model.detokenize([token]) == ""
        assert model.detokenize([token], unparse_special=True).removeprefix(" ") == special


def test_bos_is_added_and_removed(vocab_model):
    model = vocab_model
    ids = model.tokenize("Hello")
    assert ids == [model.bos] * model.add_bos + model.tokenize("Hello", add_special=False)
    assert model.add_bos  # an old BPE file does not say; what is supplied for it does
    text = model.detokenize(ids, remove_special=model.add_bos, unparse_special=True)
    assert text.removeprefix(" ") == "Hello"
    assert model.is_eog(model.eos)


# -- ids out of range ---------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["token_bytes", "is_eog", "detokenize"])
def test_ids_out_of_range(vocab_model, call):
    function = getattr(vocab_model, call)
    wrap = (lambda i: [1, i]) if call == "detokenize" else (lambda i: i)
    for token in (-1, vocab_model.n_vocab, 2**31, -(2**31), 2**40):
        with pytest.raises(InvalidInputError, match=f"token id {token} is not in 0"):
            function(wrap(token))
    for token in ("x", None):
        with pytest.raises(TypeError):
            function(wrap(token))
    function(wrap(vocab_model.n_vocab - 1))


# -- long runs ----------------------------------------------------------------------------------------

KINDS = ["1", "a", " ", ".", "_.", "1½", "é", "a_", "\x1c."]  # each repeated to 100,000 characters


def test_long_runs_are_refused_where_the_splitter_recurses(tiny_pair):
    """A BPE file without its pre-tokenizer's name is split by std::regex, which recurses per character."""
    code = f"""
        import sys
        from llava_native import Model
        from llava_native.errors import InvalidInputError
        with Model(sys.argv[1], vocab_only=True) as model:
            for kind in {KINDS!r}:
                print(repr(kind), file=sys.stderr, flush=True)  # which one ended the process, if one does
                try:
                    model.tokenize(kind * (100_000 // len(kind)))
                except InvalidInputError as exc:
                    assert "tokenizer.ggml.pre" in str(exc)
            print(len(model.tokenize("a1 ." * 25_000)) > 25_000)
    """
    status, printed, errors = outcome(code, tiny_pair("llama-bpe").text.path)
    assert (status, printed) == (0, "True"), errors


def test_long_runs_are_fine_with_the_right_pre_tokenizer(tiny_pair):
    overrides = {"tokenizer.ggml.pre": "llama-bpe"}
    with Model(tiny_pair("llama-bpe").text.path, vocab_only=True, kv_overrides=overrides) as model:
        assert model.metadata["tokenizer.ggml.pre"] == "llama-bpe"
        for kind in KINDS:
            text = kind * (100_000 // len(kind))
            assert model.detokenize(model.tokenize(text, add_special=False)) == text


def test_long_runs_are_fine_in_sentencepiece(tiny_pair):
    with Model(tiny_pair("phi-3").text.path, vocab_only=True) as model:
        assert model.detokenize(model.tokenize("1" * 20_000, add_special=False)).strip() == "1" * 20_000


def test_the_pre_tokenizer_matters(tiny_pair, bpe):
    """Why the name must be supplied: the same text falls into other tokens without it."""
    overrides = {"tokenizer.ggml.pre": "default"}  # what llama.cpp takes for a file that names none
    with Model(tiny_pair("llama-bpe").text.path, vocab_only=True, kv_overrides=overrides) as wrong:
        text = "In 1234567 days, it's DONE!!!"
        assert wrong.tokenize(text, add_special=False) != bpe.tokenize(text, add_special=False)


# -- facts --------------------------------------------------------------------------------------------


def test_what_a_file_says(pair, model):
    params = pair.text.params
    assert model.path == str(pair.text.path)
    assert (model.n_embd, model.n_layer, model.n_vocab) == (params.n_embd, params.n_layer, params.n_vocab)
    assert model.n_ctx_train == params.n_ctx_train
    assert model.n_params == sum(array.size for array in pair.text.weights.values())
    assert model.size_bytes == 4 * model.n_params
    assert model.metadata["general.architecture"] == "llama"
    assert model.metadata["llama.embedding_length"] == str(params.n_embd)
    assert "llama" in model.description
    assert model.chat_template is None
    assert model.is_spm
    assert (model.bos, model.is_eog(model.eos), model.vocab_only) == (1, True, False)


def test_changing_the_metadata_that_was_given_changes_nothing(model):
    model.metadata["general.name"] = "mine"
    assert model.metadata["general.name"] != "mine"


def test_chat_template(tmp_path):
    path = write_text_model(tmp_path / "x.gguf", chat_template=CHAT_TEMPLATES["phi-3"]).path
    with Model(path, vocab_only=True) as model:
        assert model.chat_template == CHAT_TEMPLATES["phi-3"]


@pytest.mark.parametrize("options", [{"use_mmap": False}, {"use_mmap": True}, {"n_gpu_layers": 0}], ids=str)
def test_ways_to_load(pair, model, options):
    with Model(pair.text.path, **options) as other:
        assert other.metadata == model.metadata


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="reads /proc/self/smaps")
def test_weights_are_mapped_and_not_touched_until_they_are_needed(tmp_path):
    """So that a load can be stopped at any moment (patch 0009)."""
    path = write_text_model(tmp_path / "text.gguf", n_layer=40).path
    with Model(path):
        mapped = Path("/proc/self/smaps").read_text("utf-8").split(str(path), 1)[1]
    size, resident = (int(re.search(rf"\n{name}: +(\d+) kB", mapped)[1]) for name in ("Size", "Rss"))
    assert size > 1000
    assert resident < size // 2


def test_vocab_only_has_no_weights_to_run(pair):
    from llava_native import Context

    with Model(pair.text.path, vocab_only=True) as model:
        assert model.tokenize("Hello")
        with pytest.raises(InvalidInputError, match="vocab_only"):
            Context(model)


# -- quiet --------------------------------------------------------------------------------------------


def test_nothing_is_printed_and_the_log_is_kept(capfd, caplog, tiny_pair, picture, tmp_path):
    """Neither by a run from end to end nor by refusals; what the libraries say goes to `logging`."""
    import logging

    from llava_native import Context, ImageEncoder, Sampler, devices

    caplog.set_level(logging.DEBUG, "llava_native")
    pair = tiny_pair(dtype="f16")
    devices()
    with (
        Model(pair.text.path) as model,
        ImageEncoder(pair.mmproj.path, n_threads=1) as encoder,
        Context(model, n_ctx=64, n_threads=1) as ctx,
        Sampler(model) as sampler,
    ):
        ctx.eval(model.tokenize("Hello"))
        ctx.eval(encoder.encode(picture))
        sampler.sample(ctx)
    (tmp_path / "bad.gguf").write_bytes(b"GGUF")
    for kind in (Model, ImageEncoder):
        with pytest.raises(ValueError, match=r"bad\.gguf"):
            kind(tmp_path / "bad.gguf")
    assert capfd.readouterr() == ("", "")
    assert any(record.levelno == logging.DEBUG for record in caplog.records)
    assert {record.name for record in caplog.records} == {"llava_native"}
