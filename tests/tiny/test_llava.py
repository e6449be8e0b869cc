"""Llava: answers, images of every kind, refusals before any work, and what it owns."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from support import damage

from llava_native import Context, ImageEmbedding, ImageEncoder, Llava, Model
from llava_native.errors import (
    BusyError,
    ClosedError,
    EmbeddingMismatchError,
    ImageDecodeError,
    InUseError,
    InvalidInputError,
    ModelFormatError,
    PromptTooLongError,
)

GREEDY = {"temperature": 0, "max_tokens": 12}


@pytest.fixture
def llava(pair):
    with Llava(pair.text.path, pair.mmproj.path, n_ctx=256, n_threads=1) as opened:
        yield opened


@pytest.fixture
def small(tmp_path):
    """Paths of a pair whose vocabulary is bytes and 41 words, loaded in a moment."""
    return damage.good_text(tmp_path / "text.gguf"), damage.good_mmproj(tmp_path / "mmproj.gguf")


# -- answers


def test_generate_tells_all_about_an_answer(llava, picture):
    result = llava.generate("What is this?", image=picture, **GREEDY)
    assert result.text
    assert result.finish_reason == "length"
    usage, times = result.usage, result.timings
    assert usage.image_tokens == llava.encoder.n_tokens == 4
    assert usage.completion_tokens == 12
    assert usage.total_tokens == usage.prompt_tokens + 12
    template = "<|user|>\n", "\nWhat is this?<|end|>\n<|assistant|>\n"
    text = sum(len(llava.model.tokenize(t, add_special=False, parse_special=True)) for t in template)
    assert usage.prompt_tokens == 1 + text + 4
    assert min(times.prepare_s, times.encode_s, times.prefill_s, times.decode_s) > 0
    assert times.first_token_s >= times.prepare_s + times.encode_s + times.prefill_s
    assert times.tokens_per_second == pytest.approx(12 / times.decode_s)


def test_greedy_answers_are_the_same_and_the_streams(llava, picture):
    one = llava.generate("What is this?", image=picture, **GREEDY)
    assert llava.generate("What is this?", image=picture, **GREEDY).text == one.text
    assert llava.describe(picture, "What is this?", max_tokens=12) == one.text
    with llava.stream("What is this?", image=picture, **GREEDY) as stream:
        tokens = list(stream)
    assert "".join(token.text for token in tokens) == one.text == stream.text
    assert len(tokens) >= 12


def test_the_answer_is_what_context_and_sampler_give(llava, picture):
    """Nothing but the parts below it: the same tokens from Context.eval and an argmax."""
    with llava.stream("What is this?", image=picture, **GREEDY) as stream:
        ids = [token.id for token in stream][:12]
    model, rows = llava.model, llava.encoder.encode(picture)
    tokenize = lambda text, first: model.tokenize(text, add_special=first, parse_special=True)  # noqa: E731
    with Context(model, n_ctx=256, n_threads=1) as ctx:
        ctx.eval(tokenize("<|user|>\n", True))
        ctx.eval(rows)
        ctx.eval(tokenize("\nWhat is this?<|end|>\n<|assistant|>\n", False))
        expected = []
        for _ in range(12):
            expected.append(int(np.argmax(ctx.logits)))
            ctx.eval(expected[-1:])
    assert ids == expected


def test_the_picture_and_the_question_matter(llava, picture):
    other = Image.fromarray(255 - np.asarray(picture))
    answers = {
        llava.generate(question, image=image, **GREEDY).text
        for question in ("What is this?", "Why?")
        for image in (picture, other, None)
    }
    assert len(answers) == 6


def test_a_seed_makes_an_answer_repeatable(llava):
    options = {"temperature": 1.5, "max_tokens": 12}
    same = {llava.generate("Hello", seed=7, **options).text for _ in range(3)}
    assert len(same) == 1
    assert len({llava.generate("Hello", seed=seed, **options).text for seed in range(4)}) > 1


def test_a_system_text_is_part_of_the_prompt(llava):
    plain, with_system = (llava.generate("Hello", system=s, **GREEDY) for s in (None, "Be brief."))
    assert with_system.usage.prompt_tokens > plain.usage.prompt_tokens
    assert with_system.text != plain.text


# -- images


def test_every_kind_of_image_is_the_same_picture(llava, picture, tmp_path):
    picture.save(tmp_path / "p.png")
    rows = llava.encoder.encode(picture)
    kinds = [
        tmp_path / "p.png", str(tmp_path / "p.png"), (tmp_path / "p.png").read_bytes(),
        memoryview((tmp_path / "p.png").read_bytes()), np.asarray(picture), picture, [picture], (picture,),
        rows, ImageEmbedding.from_buffer(np.asarray(rows)),
    ]  # fmt: skip
    answers = {llava.generate("What?", image=kind, **GREEDY).text for kind in kinds}
    assert len(answers) == 1


def test_several_images(llava, picture):
    rows = llava.encoder.encode(picture)
    one = llava.generate("What?", image=picture, **GREEDY)
    two = llava.generate("What?", image=[picture, rows], **GREEDY)
    newline = len(llava.model.tokenize("\n", add_special=False))
    assert two.usage.image_tokens == 2 * one.usage.image_tokens
    assert two.usage.prompt_tokens == one.usage.prompt_tokens + 4 + newline
    assert two.text != one.text


def test_rows_of_another_encoder_or_width(llava):
    rows = np.zeros((4, 64), np.float32)
    with pytest.raises(EmbeddingMismatchError, match="another encoder"):
        llava.generate("x", image=ImageEmbedding.from_buffer(rows, fingerprint="someone-elses"))
    with pytest.raises(EmbeddingMismatchError, match="32 floats, and this model takes 64"):
        llava.generate("x", image=ImageEmbedding.from_buffer(rows.reshape(8, 32)))
    assert llava.generate("x", image=ImageEmbedding.from_buffer(rows), **GREEDY).usage.image_tokens == 4


def test_a_bad_image_leaves_it_usable(llava, picture):
    for bad in (b"no image", b""):
        with pytest.raises(ImageDecodeError):
            llava.generate("What?", image=[picture, bad], **GREEDY)
    with pytest.raises(FileNotFoundError):
        llava.generate("What?", image="/nowhere.png", **GREEDY)
    assert llava.generate("What?", image=picture, **GREEDY).text


# -- refused before any work


def test_a_prompt_that_is_too_long_is_known_before_any_image_is_opened(llava):
    n_ctx = llava.context.n_ctx_seq
    assert n_ctx == 256
    with pytest.raises(PromptTooLongError, match="n_ctx=256") as info:
        llava.stream("word " * 300, image="/nowhere.png")
    assert info.value.n_ctx == n_ctx
    assert info.value.n_tokens > 300
    with pytest.raises(PromptTooLongError) as info:
        llava.stream("x", image=["/nowhere.png"] * 64)  # 64 x 4 rows
    assert info.value.n_tokens > 256
    with pytest.raises(FileNotFoundError):  # this one fits
        llava.generate("x", image="/nowhere.png")


def test_options_that_make_no_sense(llava, picture):
    for options in ({"max_tokens": 0}, {"temperature": -1}, {"logit_bias": {10**6: 1.0}}):
        with pytest.raises(InvalidInputError):
            llava.stream("x", image=picture, **options)
    with pytest.raises(TypeError, match="temprature"):
        llava.stream("x", temprature=1)
    assert llava.generate("x", **GREEDY).text  # none of them left it busy


# -- pairs


def test_a_mismatched_pair(small, tmp_path):
    wide = damage.good_mmproj(tmp_path / "wide.gguf", n_embd_text=128)
    with pytest.raises(EmbeddingMismatchError, match=r"wide\.gguf have 128 floats.*text\.gguf takes 64"):
        Llava(small[0], wide)


def test_swapped_files_are_named(small):
    text, mmproj = small
    with pytest.raises(ModelFormatError, match="mmproj="):
        Llava(mmproj, text)
    with pytest.raises(ModelFormatError, match="model="):
        Llava(text, text)


def test_text_only(small):
    with Llava(small[0], n_ctx=512, n_threads=1) as llava:
        assert llava.encoder is None
        result = llava.generate("Hello", **GREEDY)
        assert result.usage.image_tokens == 0
        with pytest.raises(InvalidInputError, match="no mmproj"):
            llava.generate("Hello", image="x.png")
        rows = ImageEmbedding.from_buffer(np.zeros((4, 64), np.float32))
        assert llava.generate("Hello", image=rows, **GREEDY).usage.image_tokens == 4


# -- what it owns


def test_parts_that_were_given_are_not_closed(small):
    with Model(small[0]) as model, ImageEncoder(small[1], n_threads=1) as encoder:
        with Llava(model, encoder, n_ctx=512, n_threads=1) as llava:
            assert llava.model is model
            assert llava.encoder is encoder
            with pytest.raises(InUseError):
                model.close()
        assert llava.context.closed
        assert not model.closed
        assert not encoder.closed
        with Llava(model, encoder, n_ctx=512, n_threads=1) as again:
            assert again.generate("x", **GREEDY).text


def test_parts_that_it_loaded_are_closed(small):
    llava = Llava(*small, n_ctx=512, n_threads=1)
    parts = llava.model, llava.encoder, llava.context
    llava.close()
    llava.close()
    assert llava.closed
    assert all(part.closed for part in parts)
    assert "closed" in repr(llava)
    for use in (lambda: llava.generate("x"), lambda: llava.describe("x.png"), llava.__enter__):
        with pytest.raises(ClosedError):
            use()


@pytest.mark.parametrize(
    "options", [{"n_ctx": 2}, {"chat_template": "none"}, {"n_threads": 0}, {"dtype": "q4"}]
)
def test_a_failed_construction_leaves_nothing(small, options):
    with pytest.raises(InvalidInputError):
        Llava(*small, **options)


def test_progress_is_told_of_both_files(small):
    seen: list[float] = []
    Llava(*small, n_ctx=512, progress=seen.append).close()
    assert seen.count(1.0) >= 2
    assert all(0 <= x <= 1 for x in seen)


def test_it_is_not_closed_under_a_stream(small):
    with Llava(*small, n_ctx=512, n_threads=1) as llava:
        with llava.stream("x", **GREEDY) as stream:
            next(stream)
            with pytest.raises(BusyError, match="stream"):
                llava.close()
        assert not llava.closed
