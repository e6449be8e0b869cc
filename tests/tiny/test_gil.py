"""The GIL is given up in load, encode, tokenize, eval and sampling: another thread keeps ticking.

Python itself never switches threads during these tests (`no_switching`), so that each tick proves that the
library let go of the GIL. Times are not compared: the work grows until it lasts long enough.
"""

from __future__ import annotations

import time

import numpy as np
import pytest
from support.threads import ticks_during

from llava_native import Context, Model, Sampler, SamplingParams

LONG_ENOUGH = 0.25  # seconds, of which a tick needs about a millisecond
TICKS = 5


def assert_ticking(work, at_least=TICKS):
    """Call ``work(scale)`` with a growing scale until it lasts; expect ticks while it did."""
    seen = []
    for scale in (1, 4, 16, 64, 256):
        n, seconds = ticks_during(lambda scale=scale: work(scale))
        seen.append((scale, n, round(seconds, 3)))
        if seconds >= LONG_ENOUGH and n >= at_least:
            return
        if seconds >= 8 * LONG_ENOUGH:
            break
    pytest.fail(f"too few ticks (scale, ticks, seconds): {seen}")


def test_python_code_lets_nobody_tick():
    """The measure itself: where nothing gives up the GIL, nobody ticks."""

    def busy():
        end = time.perf_counter() + LONG_ENOUGH
        while time.perf_counter() < end:
            pass

    n, seconds = ticks_during(busy)
    assert seconds >= LONG_ENOUGH
    assert n <= 1


def test_load(tiny_pair):
    def load(scale):
        for _ in range(scale):
            Model(path, vocab_only=True).close()

    path = tiny_pair("llama-bpe").text.path
    assert_ticking(load, at_least=20)  # more than reading the header accounts for


def test_encode(slow_encoder, picture):
    assert_ticking(lambda scale: [slow_encoder.encode(picture) for _ in range(scale)])


def test_tokenize(model):
    text = "The quick brown fox jumps over the lazy dog. " * 10_000
    assert_ticking(lambda scale: model.tokenize(text * scale))


def test_detokenize(model):
    ids = model.tokenize("The quick brown fox jumps over the lazy dog. " * 5_000)
    assert_ticking(lambda scale: model.detokenize(ids * scale))


def test_eval(slow_ctx, long_tokens):
    def evaluate(scale):
        for _ in range(scale):
            slow_ctx.clear()
            slow_ctx.eval(long_tokens)

    assert_ticking(evaluate)


def test_eval_of_rows(model, slow_ctx):
    from llava_native import ImageEmbedding

    rows = ImageEmbedding.from_buffer(np.ones((4000, model.n_embd), np.float32))

    def evaluate(scale):
        for _ in range(scale):
            slow_ctx.clear()
            slow_ctx.eval(rows)

    assert_ticking(evaluate)


def test_sample(model):
    params = SamplingParams(seed=1, typical_p=0.9, top_k=0)
    with Context(model, n_ctx=64, n_threads=1) as ctx, Sampler(model, params) as sampler:
        ctx.eval([1, 2, 3])
        assert_ticking(lambda scale: [sampler.sample(ctx) for _ in range(30 * scale)])
