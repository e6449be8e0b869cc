"""Attention by blocks of cells on the CPU: against NumPy, whatever heads, cache and batch are like.

Up to 8 queries a head of keys stream the cache, 32 cells a block, and threads that outnumber the heads divide
the blocks; more queries share blocks of 64 by 64 (vendor/patches/0017).
"""

from __future__ import annotations

import numpy as np
import pytest
from support.reference import llama_logits
from support.tiny_models import write_text_model

from llava_native import Context, ImageEmbedding, Model, devices
from llava_native.machine import cpu_features

pytestmark = pytest.mark.cpu("a GPU has attention of its own")
SHAPES = {  # width, heads of queries and of keys: 16, 32, 96 and 80 numbers a head
    "narrow": (64, 4, 2),
    "one head of keys": (256, 8, 1),
    "phi-3's": (192, 2, 2),
    "phi-2's": (320, 4, 4),
}
TOKENS = [300 + 7 * i % 2000 for i in range(400)]
SIZES = (1, 64, 2, 130, 3, 9, 65, 8, 1)  # tokens at once: 283 in all


def text_model(tmp_path, shape):
    n_embd, n_head, n_head_kv = SHAPES[shape]
    return write_text_model(
        tmp_path / "text.gguf", n_embd=n_embd, n_head=n_head, n_head_kv=n_head_kv, dtype="f32"
    )


def logits_in_turns(model, sizes=SIZES, **options):
    """Return the logits after each evaluation of so many tokens."""
    rows, first = [], 0
    with Context(model, **({"n_ctx": 512, "n_threads": 1} | options)) as ctx:
        for size in sizes:
            ctx.eval(TOKENS[first : first + size])
            rows.append(np.array(ctx.logits))
            first += size
    return np.array(rows)


@pytest.mark.parametrize("n_threads", [1, 2, 3])
@pytest.mark.parametrize("shape", SHAPES)
def test_logits_are_numpys_whatever_is_evaluated_at_once(tmp_path, shape, n_threads):
    text = text_model(tmp_path, shape)
    ends = np.cumsum(SIZES)
    expected = llama_logits([TOKENS[: ends[-1]]], text.weights, text.params)[ends - 1]
    with Model(text.path) as model:
        actual = logits_in_turns(model, n_threads=n_threads)
    assert np.abs(actual - expected).max() <= 2e-3  # keys and values are float16


@pytest.mark.parametrize("shape", SHAPES)
def test_sequences_between_each_others_cells(tmp_path, shape):
    text = text_model(tmp_path, shape)
    shared, tails = TOKENS[:70], [TOKENS[100 : 100 + n] for n in (1, 2, 40)]
    with Model(text.path) as model, Context(model, n_ctx=512, n_threads=2, n_seq_max=3, n_outputs=3) as ctx:
        ctx.eval(shared)
        for seq in (1, 2):
            ctx.copy_sequence(0, seq)
        ctx.eval_batch([(seq, tail, 0) for seq, tail in enumerate(tails)])
        for token in TOKENS[200:240]:  # a cell of each in turns
            ctx.eval_batch([(seq, [token], 1) for seq in range(3)])
            actual = np.array(ctx.logits)  # of the last one
    expected = llama_logits([shared + tails[2] + TOKENS[200:240]], text.weights, text.params)[-1]
    assert np.abs(actual - expected).max() <= 2e-3


@pytest.mark.parametrize("at_once", [1, 3, 20], ids=lambda n: f"{n} at once")
def test_numbers_that_are_none_stay_in_their_sequence(tmp_path, at_once):
    text = text_model(tmp_path, "phi-3's")
    expected = llama_logits([TOKENS[:40]], text.weights, text.params)[-1]
    broken = ImageEmbedding.from_buffer(np.full((5, text.params.n_embd), np.nan, np.float32))
    with Model(text.path) as model, Context(model, n_ctx=512, n_threads=1, n_seq_max=2) as ctx:
        ctx.eval_batch([(1, TOKENS[:3], 0)])
        ctx.eval_batch([(1, broken, 0)])
        for first in range(0, 40, at_once):
            ctx.eval(TOKENS[first : min(first + at_once, 40)], seq=0)
        assert np.abs(np.asarray(ctx.logits) - expected).max() <= 2e-3


@pytest.mark.parametrize("type_k", ["f16", "bf16", "q8_0"])
@pytest.mark.parametrize("type_v", ["f16", "bf16", "q8_0"])
def test_types_of_the_cache(tmp_path, type_k, type_v):
    with Model(text_model(tmp_path, "phi-3's").path) as model:
        exact = logits_in_turns(model)
        actual = logits_in_turns(model, type_k=type_k, type_v=type_v)
        turns = np.corrcoef(exact.ravel(), actual.ravel())[0, 1]
    assert turns >= 0.9999


def test_what_is_on_by_default(tmp_path):
    assert ("FLASH_ATTN" in cpu_features(devices())) == ("AVX2" in cpu_features(devices()))
    with Model(text_model(tmp_path, "phi-3's").path) as model:
        default, on, off = (logits_in_turns(model, flash_attn=choice) for choice in (None, True, False))
    chosen = on if "FLASH_ATTN" in cpu_features(devices()) else off
    assert np.array_equal(default, chosen)
    assert not np.array_equal(on, off)
