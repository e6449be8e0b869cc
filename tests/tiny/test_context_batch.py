"""Context.eval_batch and parts of image rows: the same logits as one sequence after the other."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from llava_native import CancelToken, Context, Model, Sampler, SamplingParams
from llava_native.errors import (
    CancelledError,
    ClosedError,
    ContextFullError,
    InvalidInputError,
    TimeoutExpiredError,
)

PROMPTS = ([1, 5, 9, 300], [1, 7], [1, 5, 9, 11, 12, 13, 400])


@pytest.fixture
def sampler(model):
    with Sampler(model, SamplingParams(temperature=0)) as opened:
        yield opened


def alone(ctx, tokens):
    """The likeliest token after `tokens`, evaluated in a sequence of their own."""
    ctx.truncate_sequence(3, 0)
    ctx.eval(tokens, seq=3)
    return int(np.argmax(ctx.logits))


def test_every_sequence_gets_its_own_row(ctx, sampler):
    expected = [alone(ctx, prompt) for prompt in PROMPTS]
    assert len(set(expected)) > 1
    rows = ctx.eval_batch([(seq, prompt, True) for seq, prompt in enumerate(PROMPTS)])
    assert rows == [3, 5, 12]
    assert [ctx.n_past(seq) for seq in range(3)] == [4, 2, 7]
    chosen = [sampler.sample(ctx, row) for row in rows]
    assert chosen == expected
    # the rows can be asked for in any order, and again
    assert [sampler.sample(ctx, row=row) for row in reversed(rows)] == expected[::-1]
    rows = ctx.eval_batch([(2, [chosen[2]], True), (0, [chosen[0]], False), (1, [chosen[1]], True)])
    assert rows == [0, 2]
    again = [sampler.sample(ctx, row) for row in rows]
    assert again == [alone(ctx, [*PROMPTS[seq], chosen[seq]]) for seq in (2, 1)]


def test_the_last_tokens_of_a_sequence_may_each_have_a_row(ctx, sampler):
    prompt = PROMPTS[2]
    expected = [alone(ctx, prompt[:n]) for n in range(len(prompt) - 2, len(prompt) + 1)]
    rows = ctx.eval_batch([(0, PROMPTS[0], 1), (2, prompt, 3)])
    assert rows == [3, 8, 9, 10]
    assert [sampler.sample(ctx, row) for row in rows[1:]] == expected


def test_only_wanted_rows_have_logits(ctx, sampler):
    assert ctx.eval_batch([(0, [1, 2], False), (1, [1], False)]) == []
    with pytest.raises(InvalidInputError, match="no logits"):
        sampler.sample(ctx)
    rows = ctx.eval_batch([(0, [3, 4], False), (1, [5], True)])
    assert rows == [2]
    for row in (0, 1, 3, -1, 2**40):
        with pytest.raises(InvalidInputError, match="row"):
            sampler.sample(ctx, row)
    assert sampler.sample(ctx, 2) == sampler.sample(ctx)
    ctx.truncate_sequence(0, 1)
    with pytest.raises(InvalidInputError, match="no logits"):
        sampler.sample(ctx, 2)


@pytest.mark.parametrize(
    "entries",
    [
        [],
        [(0, [], True)],
        [(0, [1] * 40, True), (0, [2] * 30, True)],
        [(4, [1], True)],
        [(-1, [1], True)],
        [(0, [1], True), (1, [10**6], True)],
        [(0, [1], True), (1, [-1], True)],
        [(0, [1] * 65, True)],
        [(0, [1, 2], 3)],
        [(0, [1] * 6, 3), (1, [1] * 6, 2)],  # five rows of logits in a context of four
        [(0, [1, 2], -1)],
        [(0, [1] * 40, True), (1, [1] * 40, True)],
    ],
)
def test_batches_that_cannot_be(ctx, entries):
    ctx.eval([1, 2, 3])
    with pytest.raises(InvalidInputError):
        ctx.eval_batch(entries)
    assert [ctx.n_past(seq) for seq in range(2)] == [3, 0]
    assert ctx.eval_batch([(0, [4], True)]) == [0]


def test_a_batch_without_room_changes_nothing(ctx):
    for seq in range(4):
        ctx.eval([1] * 60, seq=seq)  # of 256 cells
    with pytest.raises(ContextFullError, match="no free cells"):
        ctx.eval_batch([(0, [1] * 10, True), (1, [1] * 10, True)])
    assert [ctx.n_past(seq) for seq in range(4)] == [60] * 4
    assert len(ctx.eval_batch([(0, [1] * 8, True), (1, [1] * 8, True)])) == 2


def test_a_cancelled_batch_changes_nothing(model, slow_ctx):
    ids = model.tokenize("What is this?")
    slow_ctx.eval(ids, seq=1)
    before = np.array(slow_ctx.logits)
    entries = [(0, [model.bos] * 3000, True), (1, [model.bos] * 2900, True)]
    with pytest.raises(TimeoutExpiredError):
        slow_ctx.eval_batch(entries, cancel=CancelToken(timeout=0.05))
    token = CancelToken()
    token.cancel()
    with pytest.raises(CancelledError):
        slow_ctx.eval_batch(entries, cancel=token)
    assert [slow_ctx.n_past(0), slow_ctx.n_past(1)] == [0, len(ids)]
    slow_ctx.truncate_sequence(1, 0)
    slow_ctx.eval(ids, seq=1)
    np.testing.assert_allclose(slow_ctx.logits, before, atol=1e-5)


@pytest.mark.cpu("how many rows are multiplied at once decides how exactly")
def test_image_rows_in_pieces(ctx, encoder, picture):
    rows = encoder.encode(picture)
    ctx.eval(rows)
    whole = np.array(ctx.logits)
    for cuts in ([0, 1, 4], [0, 3, 4], [0, 1, 2, 3, 4]):
        ctx.clear()
        for start, stop in itertools.pairwise(cuts):
            n_past = ctx.eval(rows[start:stop], logits=stop == 4)
            assert ctx.last_input_address == rows.address + start * rows.n_embd * 4
        assert n_past == 4
        np.testing.assert_allclose(ctx.logits, whole, atol=1e-3)
    assert rows.exports == 0


def test_rows_without_logits(ctx, encoder, picture):
    ctx.eval(encoder.encode(picture), logits=False)
    with pytest.raises(InvalidInputError, match="no logits"):
        _ = ctx.logits
    assert ctx.n_past() == 4


def test_threads_can_be_changed(ctx):
    ctx.eval([1, 2, 3])
    one = np.array(ctx.logits)
    ctx.set_n_threads(2)
    assert ctx.n_threads == 2
    ctx.clear()
    ctx.eval([1, 2, 3])
    np.testing.assert_allclose(ctx.logits, one, atol=1e-5)
    with pytest.raises(InvalidInputError, match="n_threads"):
        ctx.set_n_threads(0)


def test_a_shared_prefix_goes_two_ways(pair):
    """Sequences that share cells and then differ, in one batch."""
    with Model(pair.text.path) as model, Context(model, n_ctx=64, n_seq_max=4, n_threads=1) as ctx:
        tails = [[20, 21], [30]]
        expected = [alone(ctx, [1, 5, 9, *tail]) for tail in tails]
        ctx.truncate_sequence(3, 0)
        ctx.eval([1, 5, 9])
        ctx.copy_sequence(0, 1, 3)
        with Sampler(model, SamplingParams(temperature=0)) as sampler:
            rows = ctx.eval_batch([(seq, tail, True) for seq, tail in enumerate(tails)])
            assert [sampler.sample(ctx, row) for row in rows] == expected


class Meddler:
    """A number that does something to the context when it is read."""

    def __init__(self, value, act):
        self._value, self._act = value, act

    def __index__(self):
        self._act()
        return self._value


def test_a_number_that_uses_the_context_while_it_is_read(pair, model):
    with Context(model, n_ctx=64, n_batch=8, n_seq_max=2) as ctx:
        rows = ctx.eval_batch([(0, [Meddler(1, lambda: ctx.eval([1] * 8, seq=1)), *[1] * 7], 1)])
        assert rows == [7]
        assert [ctx.n_past(0), ctx.n_past(1)] == [8, 8]
        ctx.copy_sequence(0, 1, Meddler(4, lambda: ctx.truncate_sequence(1, 0)))
        assert ctx.n_past(1) == 4


def test_a_number_that_closes_the_context_while_it_is_read(pair, model):
    for use in (
        lambda ctx, n: ctx.eval_batch([(0, [n], 1)]),
        lambda ctx, n: ctx.eval([n]),
        lambda ctx, n: ctx.copy_sequence(0, 1, n),
    ):
        ctx = Context(model, n_ctx=64, n_batch=8, n_seq_max=2)
        with pytest.raises(ClosedError):
            use(ctx, Meddler(1, ctx.close))


def test_a_batch_that_is_refused_leaves_the_context_usable(pair, model):
    with Context(model, n_ctx=64, n_batch=8, n_seq_max=2) as ctx:
        for entries in ([], [(9, [1], 1)], [(0, [1], 1), (0, [], 1)], [(0, [10**6], 1)]):
            with pytest.raises(InvalidInputError):
                ctx.eval_batch(entries)
        assert ctx.eval([1]) == 1
