"""Tokens and image rows in one batch: what each is evaluated to does not depend on its neighbours."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from gguf.quants import dequantize, quantize
from support.gguf_file import read_kv, write_gguf
from support.gguf_parts import Parts, RawTensor
from support.reference import llama_logits
from support.tiny_models import write_recurrent_model, write_text_model

from llava_native import Context, ImageEmbedding, Model, Sampler, SamplingParams
from llava_native._lora import LoraAdapter, set_adapters
from llava_native.errors import ContextFullError, EmbeddingMismatchError, InvalidInputError

BEFORE, AFTER, OTHER = [1, 5, 9, 300], [11, 12, 13], [1, 7]


@pytest.fixture
def image(model):
    return ImageEmbedding.from_buffer(random_rows(6, model.n_embd))


def random_rows(n, width, seed=0):
    return np.random.default_rng(seed).standard_normal((n, width), dtype=np.float32)


def together(ctx, parts, seq=0):
    """Evaluate in one batch; return the logits after the last."""
    entries = [(seq, part, False) for part in parts[:-1]]
    assert ctx.eval_batch([*entries, (seq, parts[-1], True)]) == [sum(map(len, parts)) - 1]
    return np.array(ctx.logits)


def apart(ctx, parts, seq=0):
    for part in parts:
        ctx.eval(part, seq=seq)
    return np.array(ctx.logits)


@pytest.mark.parametrize("vocab", ["phi-3", "llama-bpe"])
@pytest.mark.parametrize("dtype", ["f32", "f16"])
def test_the_logits_are_those_of_numpy(tiny_pair, vocab, dtype):
    text = tiny_pair(vocab, dtype=dtype).text
    rows = random_rows(6, text.params.n_embd)
    with Model(text.path) as model, Context(model, n_ctx=64, n_threads=1) as ctx:
        assert ctx.can_mix
        found = together(ctx, [BEFORE, ImageEmbedding.from_buffer(rows), AFTER])
        assert ctx.n_past() == 13
    expected = llama_logits([BEFORE, rows, AFTER], text.weights, text.params)[-1]
    assert np.abs(found - expected).max() <= 1e-2
    assert found.argmax() == expected.argmax()


@pytest.mark.parametrize("kind", ["Q8_0", "Q5_0", "BF16"])
def test_tokens_of_quantised_tables(tmp_path, kind):
    text = write_text_model(tmp_path / "text.gguf", dtype="f32")
    parts, number = Parts.read(text.path), gguf.GGMLQuantizationType[kind]
    table = quantize(text.weights["token_embd.weight"], number)
    parts.tensors["token_embd.weight"] = RawTensor(
        parts.tensors["token_embd.weight"].shape, number, table.tobytes()
    )
    text.path.write_bytes(parts.to_bytes())
    rows = random_rows(6, text.params.n_embd)
    exact = {"n_ctx": 64, "type_k": "f32", "type_v": "f32"}
    with Model(text.path) as model, Context(model, n_threads=1, **exact) as ctx:
        found = together(ctx, [BEFORE, ImageEmbedding.from_buffer(rows), AFTER])
    weights = text.weights | {"token_embd.weight": dequantize(table, number)}
    right, wrong = (
        np.abs(found - llama_logits([BEFORE, rows, AFTER], used, text.params)[-1]).max()
        for used in (weights, text.weights)
    )
    assert right <= min(1e-3, 0.2 * wrong)


def test_sequences_and_slices_in_any_order(model, ctx, image):
    other = ImageEmbedding.from_buffer(random_rows(5, model.n_embd, seed=1))
    contents = [[BEFORE, image, AFTER], [OTHER], [other], [other, image]]
    expected = [int(apart(ctx, parts, seq).argmax()) for seq, parts in enumerate(contents)]
    assert len(set(expected)) > 1
    ctx.clear()
    ctx.eval(BEFORE[:2])
    rows = ctx.eval_batch([
        (1, OTHER, 1), (0, BEFORE[2:], 0), (2, other, 1), (0, image[:1], 0), (3, other[:2], 0),
        (0, image[1:], 0), (3, other[2:], 0), (0, AFTER, 1), (3, image, 1),
    ])  # fmt: skip
    assert rows == [1, 8, 22, 28]
    assert [ctx.n_past(seq) for seq in range(4)] == [13, 2, 5, 11]
    with Sampler(model, SamplingParams(temperature=0)) as sampler:
        by_row = [sampler.sample(ctx, row) for row in rows]
    assert by_row == [expected[seq] for seq in (1, 2, 0, 3)]


def test_one_image_is_read_where_it_lies_and_two_are_copied(ctx, image):
    ctx.eval_batch([(0, image[2:], True)])
    assert ctx.last_input_address == image.address + 2 * image.n_embd * 4
    ctx.eval_batch([(1, image, True), (2, image, True)])
    assert ctx.last_input_address != image.address
    assert image.exports == 0


def phi3(kv, weights, params):
    for i in range(params.n_layer):
        block = f"blk.{i}."
        qkv = [weights.pop(f"{block}attn_{part}.weight") for part in "qkv"]
        weights[f"{block}attn_qkv.weight"] = np.concatenate(qkv)
        up = [weights.pop(f"{block}ffn_{part}.weight") for part in ("gate", "up")]
        weights[f"{block}ffn_up.weight"] = np.concatenate(up)


def qwen2(kv, weights, params):
    for i in range(params.n_layer):
        for part in "qkv":
            width = len(weights[f"blk.{i}.attn_{part}.weight"])
            weights[f"blk.{i}.attn_{part}.bias"] = np.linspace(-1, 1, width, dtype=np.float32)


@pytest.mark.parametrize("change", [phi3, qwen2])
def test_other_architectures(pair, tmp_path, change):
    kv, weights = read_kv(pair.text.path), dict(pair.text.weights)
    kv = {key.replace("llama.", f"{change.__name__}.", key.startswith("llama.")): kv[key] for key in kv}
    change(kv, weights, pair.text.params)
    write_gguf(tmp_path / "a.gguf", kv | {"general.architecture": change.__name__}, weights)
    parts = [BEFORE, ImageEmbedding.from_buffer(random_rows(6, pair.text.params.n_embd)), AFTER]
    with Model(tmp_path / "a.gguf") as model, Context(model, n_ctx=64, n_seq_max=2, n_threads=1) as ctx:
        assert ctx.can_mix
        np.testing.assert_allclose(together(ctx, parts), apart(ctx, parts, seq=1), atol=2e-3)


def test_a_model_that_takes_them_apart_says_so(tmp_path):
    path = write_recurrent_model(tmp_path / "mamba.gguf")
    with Model(path) as model, Context(model, n_ctx=64, n_seq_max=3, n_threads=1) as ctx:
        rows = ImageEmbedding.from_buffer(random_rows(3, model.n_embd))
        assert not ctx.can_mix
        with pytest.raises(InvalidInputError, match="batches of their own"):
            together(ctx, [BEFORE, rows])
        expected = apart(ctx, [rows])
        assert ctx.eval_batch([(1, rows, False), (2, rows, True)]) == [5]
        np.testing.assert_allclose(ctx.logits, expected, atol=1e-3)


@pytest.mark.parametrize(("name", "can_mix"), [("token_embd", False), ("blk.0.ffn_down", True)])
def test_adapters(pair, tmp_path, name, can_mix):
    n_out, n_in = pair.text.weights[f"{name}.weight"].shape
    if name == "token_embd":  # stored the other way round
        n_out, n_in = n_in, n_out
    halves = {
        f"{name}.weight.lora_a": random_rows(*((n_in, 4) if name == "token_embd" else (4, n_in))),
        f"{name}.weight.lora_b": random_rows(n_out, 4) * np.float32(0.2),
    }
    kv = {"general.architecture": "llama", "general.type": "adapter", "adapter.type": "lora"}
    write_gguf(tmp_path / "a.gguf", kv | {"adapter.lora.alpha": 4.0}, halves)
    with Model(pair.text.path) as model:
        rows = ImageEmbedding.from_buffer(random_rows(6, model.n_embd))
        adapter = LoraAdapter(model, tmp_path / "a.gguf")
        with Context(model, n_ctx=64, n_seq_max=2, n_threads=1) as ctx:
            set_adapters(ctx, [adapter])
            assert ctx.can_mix == can_mix
            if can_mix:
                parts = [BEFORE, rows, AFTER]
                np.testing.assert_allclose(together(ctx, parts), apart(ctx, parts, seq=1), atol=2e-3)
            ctx.clear()
            set_adapters(ctx, [])
            assert ctx.can_mix
        del adapter


def test_what_cannot_be_evaluated_changes_nothing(ctx, model, image):
    ctx.eval(BEFORE)
    narrow = ImageEmbedding.from_buffer(random_rows(4, model.n_embd - 1))
    with pytest.raises(EmbeddingMismatchError, match="another model"):
        together(ctx, [OTHER, narrow])
    with pytest.raises(InvalidInputError, match="wanted logits"):
        ctx.eval_batch([(0, image, 7)])
    with pytest.raises(InvalidInputError, match="n_batch"):
        ctx.eval_batch([(0, image, False)] * 11)
    assert ctx.n_past() == 4
    ctx.eval([1] * 246)
    with pytest.raises(ContextFullError, match="sequence 0 holds 256 of 256"):
        together(ctx, [image, AFTER])
    assert ctx.n_past() == 250
    ctx.truncate_sequence(0, 4)
    assert together(ctx, [image, AFTER]).shape == (model.n_vocab,)
