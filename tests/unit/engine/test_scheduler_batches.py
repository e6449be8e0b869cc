"""Batches of the scheduler: tokens of answers and slices of prompts, images and all, in one call."""

from __future__ import annotations

import pytest
from support.fake_engine import LONG, Desk, FakeImage, answer_to

from llava_native.errors import CancelledError

A = LONG[0]


def prefill_beside_an_answer(desk):
    """Let somebody bring an image of 30 rows while another is answered; both get what is theirs."""
    first = desk.ask(A, max_tokens=30)
    desk.scheduler.step()
    prompt = [7], FakeImage("cat", 30), [8]
    second = desk.ask(*prompt)
    while not desk.answer(second)[0]:
        if not desk.encoding.run():
            desk.scheduler.step()
    calls = list(desk.context.calls)
    desk.finish()
    assert desk.answer(first) == answer_to([A], 30)
    assert desk.answer(second) == answer_to(prompt, 8)
    desk.close()
    return calls


def test_an_image_comes_in_slices_with_the_tokens_of_others():
    desk = Desk(n_ctx=256)
    desk.scheduler._pace.slice = lambda *_: 4
    assert prefill_beside_an_answer(desk)[-3:] == [
        [(0, 1), (1, 1), (1, "cat", 0, 14)],
        [(0, 1), (1, "cat", 14, 29)],
        [(0, 1), (1, "cat", 29, 30), (1, 1)],
    ]


def test_a_model_that_takes_them_apart_gets_tokens_and_images_in_turns():
    desk = Desk(can_mix=False, n_ctx=256)
    calls = prefill_beside_an_answer(desk)
    at = [n for n, call in enumerate(calls) if len(call[0]) == 4]
    assert at[1] - at[0] == 2  # a token of the first one between them
    assert [calls[n] for n in at] == [[(1, "cat", 0, 15)], [(1, "cat", 15, 30)]]


def test_an_image_alone_is_not_cut():
    desk = Desk()
    desk.scheduler._pace.slice = lambda *_: 4
    desk.ask([7], FakeImage("cat", 10), [8])
    desk.finish()
    assert desk.context.calls[0] == [(0, 1), (0, "cat", 0, 10), (0, 1)]
    desk.close()


def test_the_seconds_of_a_batch_belong_to_its_pieces():
    seconds = iter(range(0, 10_000, 10))
    desk = Desk()
    desk.scheduler._clock = lambda: float(next(seconds))
    request = desk.ask([7], FakeImage("cat", 10), [8], max_tokens=1)
    desk.finish()
    assert desk.context.calls == [[(0, 1), (0, "cat", 0, 10), (0, 1)]]
    assert request.prefill_image_s == pytest.approx(10 * 10 / 12)
    assert request.prefill_text_s == pytest.approx(10 * 2 / 12)
    desk.close()


def test_a_cancelled_prompt_ends_the_call_and_the_others_go_on(monkeypatch):
    desk = Desk(n_ctx=256)
    first = desk.ask(A, max_tokens=20)
    desk.scheduler.step()
    second = desk.ask(list(range(12)))
    watched = []

    def cancelled_meanwhile(_entries, *, cancel):
        watched.append(cancel)
        cancel.cancel()
        raise CancelledError("cancelled")

    with monkeypatch.context() as patch:
        patch.setattr(desk.context, "eval_batch", cancelled_meanwhile)
        desk.scheduler.step()
    assert watched == [second.stop]  # most of the batch is its own
    assert desk.answer(second) == ([], "cancelled")
    desk.finish()
    assert desk.answer(first) == answer_to([A], 20)
    desk.close()
