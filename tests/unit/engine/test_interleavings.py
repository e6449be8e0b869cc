"""Any interleaving of submit, cancel, steps and slow callers: no token lost or mixed, no sequence kept."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.fake_engine import Desk, FakeImage, answer_to

from llava_native.engine import prefix_cache

TEXT = st.lists(st.integers(1, 3), min_size=1, max_size=12)
IMAGE = st.tuples(st.sampled_from("abc"), st.sampled_from(["", "", "", "prepare", "encode"]))
PROMPT = st.lists(st.one_of(TEXT, IMAGE), min_size=1, max_size=3).filter(
    lambda pieces: any(isinstance(piece, list) for piece in pieces)
)
ASK = st.tuples(st.just("ask"), PROMPT, st.integers(1, 12), st.sampled_from([None, 2, 64]), st.booleans())
DO = st.tuples(st.sampled_from(["step", "job", "take"]), st.integers(0, 7))
CANCEL = st.tuples(st.just("cancel"), st.integers(0, 7))
SHAPE = st.fixed_dictionaries({
    "n_running": st.integers(1, 3),
    "prefix_cells": st.sampled_from([0, 10, 48]),
    "embedding_bytes": st.sampled_from([0, 150, 1000]),
    "n_batch": st.sampled_from([8, 32]),
    "n_ubatch": st.sampled_from([3, 8]),
    "n_seq_max": st.integers(3, 6),
    "n_guessed": st.sampled_from([0, 1, 5]),
    "can_mix": st.booleans(),
})  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def every_cell_counts():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefix_cache, "_BLOCK", 0)
        yield


def make(piece):
    name_and_failure = isinstance(piece, tuple)
    return FakeImage(piece[0] + piece[1], 5 + ord(piece[0]) % 3, piece[1]) if name_and_failure else piece


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(SHAPE, st.lists(st.one_of(ASK, DO, DO, CANCEL), max_size=60))
def test_no_token_is_lost_or_mixed_and_every_sequence_comes_back(shape, script):
    desk = Desk(n_ctx=64, **shape)
    asked = []
    for what, *arguments in script:
        if what == "ask":
            pieces, max_tokens, run_ahead, keep = arguments
            pieces = [make(piece) for piece in pieces]
            options = {"max_tokens": max_tokens, "run_ahead": run_ahead, "keep_images": keep}
            asked.append((desk.ask(*pieces, **options), pieces, max_tokens))
        elif what == "step":
            for _ in range(arguments[0]):
                desk.scheduler.step()
        elif what == "job":
            desk.encoding.run()
        elif asked:
            request = asked[arguments[0] % len(asked)][0]
            desk.take(request) if what == "take" else request.stop.cancel()
        desk.check()
    desk.finish()
    desk.check()
    assert not desk.scheduler.running
    for request, pieces, max_tokens in asked:
        tokens, reason = desk.answer(request)
        expected = answer_to(pieces, max_tokens, 64)
        ends = [event for event in desk.got[request] if event.reason or event.error]
        assert len(ends) == 1
        if request.stop.cancelled:
            assert tokens == expected[0][: len(tokens)]
        elif any(isinstance(piece, FakeImage) and piece.fails for piece in pieces):
            assert ends[0].error is not None
        else:
            assert (tokens, reason) == expected
    desk.close()
