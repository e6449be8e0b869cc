"""Files with the gaps of their time: what is supplied, that it is right, and that files stay as they were."""

from __future__ import annotations

import hashlib
import logging

import numpy as np
import pytest
from support.gguf_parts import Parts
from support.tiny_models import write_text_model

from llava_native import ImageEncoder, Model
from llava_native.errors import InvalidInputError, UnsupportedModelError

COLOURS = ("clip.vision.image_mean", "clip.vision.image_std")


def without(source, target, *keys):
    parts = Parts.read(source)
    for key in keys:
        del parts.kv[key]
    target.write_bytes(parts.to_bytes())
    return target


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


# -- text models


@pytest.fixture
def old_llama_3(tmp_path):
    return write_text_model(tmp_path / "old.gguf", vocab="llama-bpe", n_layer=1, n_embd=8).path


def test_llama_3_without_a_pre_tokenizer(old_llama_3, tmp_path, caplog):
    new = write_text_model(tmp_path / "new.gguf", vocab="llama-bpe", legacy=False, n_layer=1, n_embd=8).path
    before = digest(old_llama_3)
    text = "Hello world 12345678, it's I'LL  \n\n done"
    with caplog.at_level(logging.INFO, "llava_native"), Model(old_llama_3, vocab_only=True) as model:
        with Model(new, vocab_only=True) as modern:
            assert model.tokenize(text) == modern.tokenize(text)
            assert model.add_bos
            assert model.tokenize(text)[0] == model.bos
        assert model.is_eog(model.special_tokens["<|eot_id|>"])
        assert model.tokenize("7" * 60_000, add_special=False)  # no overflow of the stack, and no refusal
    assert digest(old_llama_3) == before
    lines = [r.message for r in caplog.records if "old.gguf" in r.message and r.levelno == logging.INFO]
    assert len(lines) == 2
    assert "pre-tokenizer" in lines[0]
    assert "<|eot_id|>" in lines[1]


def test_what_the_caller_says_comes_first(old_llama_3):
    with Model(old_llama_3, vocab_only=True, kv_overrides={"tokenizer.ggml.pre": "gpt-2"}) as model:
        assert model.metadata["tokenizer.ggml.pre"] == "gpt-2"


def test_phi_3_ends_its_turns(tmp_path):
    path = write_text_model(tmp_path / "phi.gguf", n_layer=1, n_embd=8).path
    with Model(path, vocab_only=True) as model:
        assert model.eot == model.special_tokens["<|end|>"]
        assert model.is_eog(model.eot)
        assert "tokenizer.ggml.pre" not in model.metadata


def test_a_vocabulary_that_is_not_llama_3s_is_left_alone(tmp_path):
    path = write_text_model(tmp_path / "t.gguf", vocab="llama-spm", n_layer=1, n_embd=8).path
    with Model(path, vocab_only=True) as model:
        assert not [
            key for key in model.metadata if key in ("tokenizer.ggml.pre", "tokenizer.ggml.eot_token_id")
        ]


# -- encoders


@pytest.mark.parametrize(
    "keys",
    [
        ("clip.projector_type",),
        ("clip.has_vision_encoder",),
        COLOURS,
        ("clip.projector_type", "clip.has_vision_encoder", *COLOURS),
    ],
)
def test_the_first_encoders(pair, tmp_path, picture, caplog, keys):
    path = without(pair.mmproj.path, tmp_path / "old.gguf", *keys)
    before = digest(path)
    with caplog.at_level(logging.INFO, "llava_native"), ImageEncoder(path, n_threads=1) as old:
        rows = np.array(old.encode(picture))
    with ImageEncoder(pair.mmproj.path, n_threads=1) as new:
        np.testing.assert_array_equal(rows, np.asarray(new.encode(picture)))
    assert digest(path) == before
    (line,) = [r.message for r in caplog.records if "LLaVA-1.5's are used" in r.message]
    assert all(key in line for key in keys)


def test_half_of_the_colours_is_damage(pair, tmp_path):
    path = without(pair.mmproj.path, tmp_path / "old.gguf", "clip.vision.image_std")
    with pytest.raises(UnsupportedModelError, match=r"lacks clip\.vision\.image_std"):
        ImageEncoder(path)


def test_a_size_is_not_guessed(pair, tmp_path):
    path = without(pair.mmproj.path, tmp_path / "old.gguf", "clip.vision.image_size")
    with pytest.raises(UnsupportedModelError, match="image_size"):
        ImageEncoder(path)


def test_overrides_are_checked_as_before(old_llama_3):
    with pytest.raises(InvalidInputError, match="kv_overrides"):
        Model(old_llama_3, vocab_only=True, kv_overrides={"tokenizer.ggml.eot_token_id": [1]})
