"""The classic names against ImageEncoder and Context: the same bytes, the same logits."""

from __future__ import annotations

import io

import numpy as np
import pytest

from llava_native import Context, classic
from llava_native.errors import (
    ClosedError,
    ContextFullError,
    EmbeddingMismatchError,
    ImageDecodeError,
    InvalidInputError,
    ModelFormatError,
)


@pytest.fixture
def clip(pair):
    ctx = classic.clip_model_load(pair.mmproj.path, verbosity=0)
    yield ctx
    classic.clip_free(ctx)


@pytest.fixture(scope="session")
def png(picture):
    out = io.BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()


def test_sizes(clip, encoder):
    assert classic.clip_n_mmproj_embd(clip) == encoder.n_embd == 64
    assert classic.clip_image_size(clip) == encoder.image_size == 28
    assert classic.clip_n_patches(clip) == encoder.n_tokens == 4
    assert classic.clip_embd_nbytes(clip) == 4 * 64 * 4


def test_the_rows_are_the_encoders(clip, encoder, png, tmp_path):
    expected = np.asarray(encoder.encode(png))
    (tmp_path / "p.png").write_bytes(png)
    made = [classic.llava_image_embed_make_with_bytes(clip, 1, data) for data in
            (png, bytearray(png), memoryview(png), np.frombuffer(png, np.uint8))]  # fmt: skip
    made += [classic.llava_image_embed_make_with_filename(clip, 1, p) for p in
             (tmp_path / "p.png", str(tmp_path / "p.png"))]  # fmt: skip
    for embed in made:
        assert embed.n_image_pos == 4
        assert np.asarray(embed.embed).tobytes() == expected.tobytes()
        assert memoryview(embed.embed).nbytes == classic.clip_embd_nbytes(clip)


def test_threads_change_between_calls(clip, png):
    rows = [classic.llava_image_embed_make_with_bytes(clip, n, png).embed for n in (1, 2, 1)]
    np.testing.assert_allclose(np.asarray(rows[1]), np.asarray(rows[0]), atol=1e-5)
    assert clip.encoder().n_threads == 1
    with pytest.raises(InvalidInputError, match="n_threads"):
        classic.llava_image_embed_make_with_bytes(clip, 0, png)
    assert classic.llava_image_embed_make_with_bytes(clip, 1, png).n_image_pos == 4


def test_the_logits_are_the_contexts(clip, encoder, model, ctx, png):
    assert classic.llava_validate_embed_size(ctx, clip) is True
    start, end = model.tokenize("USER: "), model.tokenize("What?", add_special=False)
    embed = classic.llava_image_embed_make_with_bytes(clip, 1, png)
    n_past = ctx.eval(start)
    for n_batch in (1, 2, 512):  # the number of slices has no say
        n_past = len(start)
        n_past = classic.llava_eval_image_embed(ctx, embed, n_batch, n_past)
        assert n_past == len(start) + 4
        assert ctx.eval(end) == n_past + len(end)
        found = np.array(ctx.logits)
    with Context(model, n_ctx=256, n_batch=64, n_threads=1) as other:
        other.eval(start)
        other.eval(encoder.encode(png))
        other.eval(end)
        np.testing.assert_array_equal(found, np.asarray(other.logits))


def test_rows_outlive_the_encoder_and_the_struct(pair, png):
    clip = classic.clip_model_load(str(pair.mmproj.path))
    embed = classic.llava_image_embed_make_with_bytes(clip, 1, png)
    rows = np.asarray(embed.embed)
    before = rows.copy()
    classic.clip_free(clip)
    classic.clip_free(clip)
    classic.llava_image_embed_free(embed)
    classic.llava_image_embed_free(embed)
    np.testing.assert_array_equal(rows, before)
    with pytest.raises(ClosedError):
        _ = embed.embed
    for use in (classic.clip_image_size, classic.clip_n_patches, classic.clip_embd_nbytes):
        with pytest.raises(ClosedError):
            use(clip)
    with pytest.raises(ClosedError):
        classic.llava_image_embed_make_with_bytes(clip, 1, png)


def test_failures_are_exceptions(pair, clip, ctx, png, tmp_path):
    with pytest.raises(FileNotFoundError):
        classic.clip_model_load(tmp_path / "nowhere.gguf")
    with pytest.raises(ModelFormatError, match="model="):
        classic.clip_model_load(pair.text.path)
    with pytest.raises(InvalidInputError, match="verbosity"):
        classic.clip_model_load(pair.mmproj.path, -1)
    for bad in (b"", b"no image", png[: len(png) // 2]):
        with pytest.raises(ImageDecodeError):
            classic.llava_image_embed_make_with_bytes(clip, 1, bad)
    with pytest.raises(FileNotFoundError):
        classic.llava_image_embed_make_with_filename(clip, 1, tmp_path / "nowhere.png")
    embed = classic.llava_image_embed_make_with_bytes(clip, 1, png)
    for n_batch, n_past in ((0, 0), (-1, 0), (512, -1), (512, 1), (512, 2**40)):
        with pytest.raises(InvalidInputError):
            classic.llava_eval_image_embed(ctx, embed, n_batch, n_past)
    ctx.eval([1] * 254)
    with pytest.raises(ContextFullError):
        classic.llava_eval_image_embed(ctx, embed, 512, 254)
    assert ctx.n_past() == 254


def test_another_models_projector(ctx, tmp_path):
    from support.tiny_models import write_mmproj

    other = classic.clip_model_load(write_mmproj(tmp_path / "m.gguf", n_embd_text=32).path)
    with pytest.raises(EmbeddingMismatchError, match=r"64 floats.*32"):
        classic.llava_validate_embed_size(ctx, other)
    embed = classic.llava_image_embed_make_with_bytes(other, 1, _gif())
    with pytest.raises(EmbeddingMismatchError):
        classic.llava_eval_image_embed(ctx, embed, 512, 0)
    classic.clip_free(other)


def _gif():
    from PIL import Image

    out = io.BytesIO()
    Image.new("RGB", (9, 9), "red").save(out, "GIF")
    return out.getvalue()
