"""Calls are stopped by another thread, a deadline, a progress callback or Ctrl-C, and the object lives on.

How fast is the benchmarks' business: here a call must end by being stopped, long before it is done.
"""

from __future__ import annotations

import threading

import numpy as np
import pytest
from support.child import outcome
from support.threads import Background, no_switching

from llava_native import CancelToken, ImageEmbedding, ImageEncoder, Model
from llava_native.errors import CancelledError, LlavaError, TimeoutExpiredError

TEXT = "What is this?"


def logits_of(ctx, ids, seq=0):
    ctx.eval(ids, seq=seq)
    return np.array(ctx.logits)


def cancel_inside(token, call):
    """Cancel while another thread is inside `call`; return what `call` raised there."""
    with no_switching():
        background = Background(call)
        token.cancel()
        background.stop()
    return background.error


# -- tokens -------------------------------------------------------------------------------------------


def test_a_token_says_stop_once_and_for_all():
    token = CancelToken()
    assert (token.cancelled, token.expired) == (False, False)
    token.raise_if_cancelled()
    token.cancel()
    token.cancel()
    assert (token.cancelled, token.expired) == (True, False)
    with pytest.raises(CancelledError) as caught:
        token.raise_if_cancelled()
    assert not isinstance(caught.value, TimeoutError)


def test_a_deadline_passes():
    token = CancelToken(timeout=0)
    assert (token.cancelled, token.expired) == (True, True)
    with pytest.raises(TimeoutExpiredError) as caught:
        token.raise_if_cancelled()
    assert isinstance(caught.value, CancelledError)
    assert isinstance(caught.value, TimeoutError)
    assert not CancelToken(timeout=float("inf")).cancelled
    assert not CancelToken(timeout=3600).cancelled


@pytest.mark.parametrize("timeout", [-1, -1e-9, float("nan")])
def test_impossible_timeouts(timeout):
    with pytest.raises(ValueError, match="timeout"):
        CancelToken(timeout)


# -- eval ---------------------------------------------------------------------------------------------


def test_eval_is_cancelled_from_another_thread(model, slow_ctx, long_tokens):
    ids = model.tokenize(TEXT)
    before = logits_of(slow_ctx, ids)
    token = CancelToken()

    def call():
        slow_ctx.truncate_sequence(0, len(ids))
        slow_ctx.eval(long_tokens, cancel=token)

    error = cancel_inside(token, call)
    assert type(error) is CancelledError
    assert slow_ctx.n_past() == len(ids)
    slow_ctx.truncate_sequence(0, 0)
    np.testing.assert_array_equal(logits_of(slow_ctx, ids), before)


@pytest.mark.cpu("a call that has begun on a GPU goes on to its end")
def test_eval_of_rows_is_cancelled(model, slow_ctx):
    rows = ImageEmbedding.from_buffer(np.ones((5000, model.n_embd), np.float32))
    token = CancelToken()

    def call():
        slow_ctx.clear()
        slow_ctx.eval(rows, cancel=token)

    assert type(cancel_inside(token, call)) is CancelledError
    assert slow_ctx.n_past() == 0
    assert rows.exports == 0


def test_eval_runs_out_of_time(model, slow_ctx, long_tokens):
    ids = model.tokenize(TEXT)
    before = logits_of(slow_ctx, ids, seq=1)
    with pytest.raises(TimeoutExpiredError):
        slow_ctx.eval(long_tokens, cancel=CancelToken(timeout=0.05))
    assert [slow_ctx.n_past(0), slow_ctx.n_past(1)] == [0, len(ids)]
    with pytest.raises(LlavaError, match="no logits"):
        _ = slow_ctx.logits
    np.testing.assert_allclose(logits_of(slow_ctx, ids), before, atol=1e-5)


def test_a_token_that_was_cancelled_before_stops_the_call_before_any_work(ctx, encoder, pair, picture):
    token = CancelToken()
    token.cancel()
    ctx.eval([1, 2, 3])
    logits = np.array(ctx.logits)
    with pytest.raises(CancelledError):
        ctx.eval([4], cancel=token)
    assert ctx.n_past() == 3
    np.testing.assert_array_equal(ctx.logits, logits)
    with pytest.raises(CancelledError):
        encoder.encode(picture, cancel=token)
    with pytest.raises(CancelledError):
        Model(pair.text.path, cancel=token)
    with pytest.raises(CancelledError):
        ImageEncoder(pair.mmproj.path, cancel=token)


def test_a_token_that_says_nothing_changes_nothing(model, ctx, encoder, picture):
    token = CancelToken(timeout=3600)
    ids = model.tokenize(TEXT)
    expected = logits_of(ctx, ids)
    ctx.clear()
    ctx.eval(ids, cancel=token)
    np.testing.assert_array_equal(ctx.logits, expected)
    np.testing.assert_array_equal(encoder.encode(picture, cancel=token), encoder.encode(picture))


# -- encode -------------------------------------------------------------------------------------------


@pytest.mark.cpu("a call that has begun on a GPU goes on to its end")
def test_encode_is_cancelled_and_gives_the_same_rows_afterwards(slow_encoder, picture):
    before = np.array(slow_encoder.encode(picture))
    with pytest.raises(TimeoutExpiredError):
        slow_encoder.encode(picture, cancel=CancelToken(timeout=0.05))
    token = CancelToken()
    error = cancel_inside(token, lambda: slow_encoder.encode(picture, cancel=token))
    assert type(error) is CancelledError
    np.testing.assert_array_equal(slow_encoder.encode(picture), before)


# -- load ---------------------------------------------------------------------------------------------


@pytest.fixture(params=["model", "encoder"])
def load(request, pair):
    """A function that loads one of the two kinds of file."""
    if request.param == "model":
        return lambda **options: Model(pair.text.path, **options)
    return lambda **options: ImageEncoder(pair.mmproj.path, n_threads=1, **options)


def test_progress_rises_to_one(load):
    seen = []
    load(progress=seen.append).close()
    assert seen == sorted(seen)
    assert 0.0 <= seen[0] < 1.0
    assert seen[-1] == 1.0


def test_progress_returns_false(load):
    with pytest.raises(CancelledError, match="progress callback"):
        load(progress=lambda _: False)
    load(progress=lambda _: None).close()


@pytest.mark.parametrize("at", ["first", "last"])
def test_progress_raises(load, at):
    def progress(done):
        if at == "first" or done == 1.0:
            raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        load(progress=progress)
    load().close()


def test_load_is_cancelled_from_another_thread(load):
    token, loading = CancelToken(), threading.Event()
    cancelled = threading.Event()

    def cancel():
        loading.wait()
        token.cancel()
        cancelled.set()

    def progress(done):
        loading.set()
        assert cancelled.wait(60)

    thread = threading.Thread(target=cancel)
    thread.start()
    with pytest.raises(CancelledError, match="was cancelled"):
        load(progress=progress, cancel=token)
    thread.join()


def test_load_runs_out_of_time(load):
    token = CancelToken(timeout=0.2)
    with pytest.raises(TimeoutExpiredError):
        load(progress=lambda _: threading.Event().wait(0.4), cancel=token)


# -- Ctrl-C -------------------------------------------------------------------------------------------

INTERRUPT = """
    import os, signal, sys, threading
    import numpy as np
    from llava_native import Context, ImageEncoder, Model

    def interrupted(call):
        timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        try:
            while True:
                call()
        except KeyboardInterrupt:
            timer.join()
"""


def test_ctrl_c_in_eval(pair):
    code = (
        INTERRUPT
        + """
    def call():
        ctx.clear()
        ctx.eval([1] * 6000)

    options = {"n_ctx": 6400, "n_batch": 6000, "n_ubatch": 1, "n_threads": 1}
    with Model(sys.argv[1]) as model, Context(model, **options) as ctx:
        ctx.eval([1, 2, 3])
        before = np.array(ctx.logits)
        interrupted(call)
        print(ctx.n_past())
        ctx.eval([1, 2, 3])
        print(np.array_equal(ctx.logits, before))
    """
    )
    assert outcome(code, pair.text.path) == (0, "0\nTrue", "")


def test_ctrl_c_in_encode(slow_mmproj):
    code = (
        INTERRUPT
        + """
    image = np.zeros((448, 448, 3), np.uint8)
    with ImageEncoder(sys.argv[1], n_threads=1) as encoder:
        before = np.array(encoder.encode(image))
        interrupted(lambda: encoder.encode(image))
        print(np.array_equal(encoder.encode(image), before))
    """
    )
    assert outcome(code, slow_mmproj.path) == (0, "True", "")


def test_ctrl_c_in_load(pair):
    code = (
        INTERRUPT
        + """
    interrupted(lambda: Model(sys.argv[1]).close())
    interrupted(lambda: ImageEncoder(sys.argv[2]).close())
    from llava_native._native import live_counts
    Model(sys.argv[1]).close()
    print(sum(live_counts().values()))
    """
    )
    # not strict: a signal after the last look at it may come before `close`
    assert outcome(code, pair.text.path, pair.mmproj.path, strict=False) == (0, "0", "")


def test_interrupt_before_the_native_call_is_raised_and_the_context_works(ctx, monkeypatch):
    """Ctrl-C may arrive while the watch of a call is set up, which runs Python code."""

    def interrupted():
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("threading.main_thread", interrupted)
        with pytest.raises(KeyboardInterrupt):
            ctx.eval([5, 6])
        with pytest.raises(KeyboardInterrupt):
            ctx.eval_batch([(0, [5, 6], True)])
    assert ctx.n_past() == 0
    assert ctx.eval([5, 6]) == 2
