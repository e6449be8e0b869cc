"""Scheduler: who is evaluated when, on a scripted mix of requests and a clock that stands still."""

from __future__ import annotations

import pytest
from support.fake_engine import LONG, Desk, FakeImage, answer_to, expect

from llava_native.errors import (
    DecodeError,
    GrammarError,
    InvalidInputError,
    NativeAbort,
    PromptTooLongError,
)

A, B, C, D = LONG[:4]


def test_one_request(desk):
    request = desk.ask(A)
    desk.finish()
    expect(desk, request, A)
    assert request.sampler.closed
    assert request.first_token_s == 0.0


def test_everybody_gets_a_token_a_step(desk):
    requests = [desk.ask(p, max_tokens=12) for p in (A, B, C)]
    for _ in range(5):
        desk.scheduler.step()
    assert [len(desk.answer(r)[0]) for r in requests] == [5, 5, 5]
    # one call of the library for all of them
    assert desk.context.calls[-1] == [(0, 1), (1, 1), (2, 1)]
    desk.finish()
    for request, prompt in zip(requests, (A, B, C), strict=True):
        expect(desk, request, prompt, max_tokens=12)


def test_first_come_first_served(desk):
    requests = [desk.ask(p, max_tokens=6) for p in (A, B, C, D)]
    desk.scheduler.step()
    assert desk.scheduler.running == requests[:3]
    assert desk.scheduler.waiting == requests[3:]
    order = []
    for request in requests:
        request.on_end = lambda r=request: order.append(r)
    desk.finish()
    assert order == requests
    assert desk.scheduler.stats().finished == 4


def test_a_request_whose_image_is_not_ready_holds_nobody_up(desk):
    slow = desk.ask(FakeImage("cat"), [8])
    quick = desk.ask(A)
    for _ in range(3):
        desk.scheduler.step()
    assert len(desk.answer(quick)[0]) == 3
    assert desk.answer(slow)[0] == []
    desk.finish()
    expect(desk, slow, FakeImage("cat"), [8])


def test_threads_are_shared_with_an_encode(desk):
    desk.ask(A, max_tokens=20)
    desk.ask(FakeImage("cat"), [8])
    seen = []
    for _ in range(3):
        desk.scheduler.step()
        seen.append(desk.context.n_threads)
        desk.encoding.run()
    desk.scheduler.step()
    assert [*seen, desk.context.n_threads] == [4, 2, 4, 4]
    desk.finish()
    desk.ask(FakeImage("dog"), [8])
    desk.finish()
    assert desk.encoding.n_threads == [2, None]  # alone it has all


def test_slices_are_short_beside_an_encode(desk):
    desk.scheduler._pace.learn(64, 60.0)
    desk.scheduler._pace._n_ubatch = 512
    desk.ask(A, max_tokens=20)
    desk.scheduler.step()
    for name in ("cat", "dog", "bird", "fish"):
        desk.ask(FakeImage(name), [8])
    seen = []
    for _ in range(3):
        seen.append((desk.context.n_threads, desk.scheduler._slice))
        desk.scheduler.step()
        desk.encoding.run()
    assert seen == [(4, 128), (4, 128), (2, 64)]
    desk.finish()


def test_an_encode_waits_while_a_long_prompt_is_evaluated():
    desk = Desk(n_ctx=512, prefix_cells=0)
    desk.scheduler._pace.slice = lambda *_: 8
    first, second = desk.ask([7], FakeImage("cat", 60), [8]), desk.ask([7], FakeImage("dog", 6), [8])
    desk.scheduler.step()
    while desk.encoding.run():
        desk.scheduler.step()
    assert desk.encoding.encoded == ["cat"]  # its rows are being evaluated
    left = []
    while not desk.encoding.run():
        left.append(first.n_content - first.n_done)
        desk.scheduler.step()
    assert left[-1] <= 16 + 16  # of 62, two slices and what the step before took
    desk.finish()
    expect(desk, second, [7], FakeImage("dog", 6), [8])
    desk.close()


def test_a_prompt_that_ends_with_an_image(desk):
    request = desk.ask([7], FakeImage("cat"))
    desk.finish()
    expect(desk, request, [7], FakeImage("cat"))


def test_images_that_many_want_are_encoded_once(desk):
    requests = [desk.ask([5], FakeImage("cat"), [n]) for n in range(10, 13)]
    desk.finish()
    assert desk.encoding.encoded == ["cat"]
    stats = desk.scheduler.stats()
    assert (stats.images_encoded, stats.images_joined) == (1, 2)
    for n, request in enumerate(requests):
        expect(desk, request, [5], FakeImage("cat"), [10 + n])


def test_a_beginning_that_is_being_evaluated_is_waited_for():
    desk = Desk(n_ctx=256, n_batch=64, prefix_cells=128)
    image = FakeImage("cat", 40)
    requests = [desk.ask([5], image, [n], max_tokens=4) for n in range(10, 13)]
    desk.finish()
    assert sum(stop - start for _, _, start, stop in desk.context.images) == 40
    assert [r.n_cached for r in requests] == [0, 41, 41]
    for n, request in enumerate(requests):
        expect(desk, request, [5], image, [10 + n], max_tokens=4)
    desk.close()


def test_an_image_that_the_prefix_cache_has_is_not_encoded():
    desk = Desk(embedding_bytes=0)
    for n in (10, 11, 12):
        request = desk.ask([5], FakeImage("cat"), [n])
        desk.finish()
        expect(desk, request, [5], FakeImage("cat"), [n])
    assert desk.encoding.encoded == ["cat"]
    assert request.n_cached == 7
    desk.close()


@pytest.mark.parametrize("prefix_cells", [0, 6, 24, 64])
def test_the_cache_changes_no_answer(prefix_cells):
    desk = Desk(prefix_cells=prefix_cells)
    for tail in range(6):
        pieces = [1, 2, 3, 4], FakeImage("cat"), [5, tail // 2, tail]
        request = desk.ask(*pieces)
        desk.finish()
        expect(desk, request, *pieces)
        desk.check()
    cached = desk.scheduler.stats().cached_tokens
    assert (cached > 0) == (prefix_cells > 0)
    desk.close()


def test_old_prefixes_make_room(desk):
    for n in range(12):
        prompt = list(range(100 * n, 100 * n + 15))
        request = desk.ask(prompt)
        desk.finish()
        expect(desk, request, prompt)
        desk.check()
    assert desk.scheduler.stats().evicted > 0
    whole = list(range(50))  # nearly all cells
    request = desk.ask(whole, max_tokens=None)
    desk.finish()
    expect(desk, request, whole, max_tokens=None)


def test_nothing_is_dropped_for_who_has_no_room_anyway():
    desk = Desk(prefix_cells=128)
    old = list(range(100, 120))
    desk.ask(old, max_tokens=1)
    desk.finish()
    first = desk.ask(A, max_tokens=12)
    second = desk.ask(list(range(40)))  # not beside the first one, even without the old prefix
    while not first.ended:
        desk.scheduler.step()
        assert second in desk.scheduler.waiting or first.ended
    assert desk.scheduler.stats().evicted == 0
    desk.finish()
    expect(desk, second, list(range(40)))
    desk.close()


def test_an_image_that_was_offloaded_is_neither_encoded_nor_evaluated_again():
    desk = Desk(prefix_cells=64, embedding_bytes=0)
    questions = ([1], [2], [3])
    for name in ("cat", "dog", "cat", "dog"):
        for question in questions:
            request = desk.ask(FakeImage(name, 30), question, max_tokens=2)
            desk.finish()
            expect(desk, request, FakeImage(name, 30), question, max_tokens=2)
    stats = desk.scheduler.stats()
    assert stats.images_encoded == 2
    assert stats.restored == 2
    assert stats.cells < 40  # the other image is not there for every token to look at
    assert sum(stop - start for _, _, start, stop in desk.context.images) == 60


def test_running_requests_make_room_for_older_ones():
    desk = Desk(n_ctx=64, n_running=3)
    requests = [desk.ask(p, max_tokens=40) for p in (A, B, C)]
    order = []
    for request in requests:
        request.on_end = lambda r=request: order.append(r)
    desk.finish()
    assert order == requests
    for request, prompt in zip(requests, (A, B, C), strict=True):
        expect(desk, request, prompt, max_tokens=40)
    assert desk.scheduler.stats().preempted > 0
    desk.close()


def test_a_context_that_is_full_against_all_reckoning(desk):
    """The library finds no cells though there should be some: prefixes go, and the request goes on."""
    first = desk.ask(list(range(20)))
    desk.finish()
    expect(desk, first, list(range(20)))
    desk.context.n_ctx = 24  # what the prefix takes; the scheduler knows of more
    request = desk.ask(A)
    desk.finish()
    expect(desk, request, A)
    assert desk.scheduler.stats().evicted > 0


# -- pausing


def test_a_caller_that_does_not_keep_up_pauses_its_request(desk):
    request = desk.ask(A, max_tokens=30, run_ahead=4)
    steps = 0
    while desk.scheduler.step():
        steps += 1
    assert steps == request.events.qsize() == 4
    desk.take(request)
    assert desk.scheduler.step()
    desk.finish()
    expect(desk, request, A, max_tokens=30)


def test_a_paused_request_gives_its_place_to_those_who_wait():
    desk = Desk(n_running=1)
    slow = desk.ask(A, max_tokens=30, run_ahead=4)
    while desk.scheduler.step():
        pass
    quick = desk.ask(B, max_tokens=4)
    while desk.scheduler.step():
        pass
    assert desk.answer(quick) == answer_to([B], 4)
    assert not slow.ended
    desk.finish()
    expect(desk, slow, A, max_tokens=30)
    assert desk.scheduler.stats().preempted == 1
    desk.close()


def test_many_that_pause_do_not_keep_others_from_beginning():
    """One caller that reads a token of each in turn, of far more than may run or be prepared."""
    desk = Desk(n_running=2, n_ctx=256)
    prompts = LONG[:15]
    requests = []
    for prompt in prompts:
        requests.append(desk.ask(prompt, max_tokens=20, run_ahead=2))
        for _ in range(200):
            if not requests[-1].events.empty():
                break
            desk.scheduler.step()
        desk.take(requests[-1])
        assert desk.got[requests[-1]]
    desk.finish()
    for request, prompt in zip(requests, prompts, strict=True):
        expect(desk, request, prompt, max_tokens=20)
    desk.close()


# -- ends


@pytest.mark.parametrize("jobs", range(4))
def test_cancelled_at_any_stage(desk, jobs):
    image = FakeImage("cat")
    request = desk.ask([7], image, [8], max_tokens=30)
    other = desk.ask(A, max_tokens=30)
    desk.scheduler.step()
    for _ in range(jobs):  # prepared, encoded, then running
        desk.encoding.run()
        desk.scheduler.step()
    request.stop.cancel()
    desk.scheduler.step()
    assert request.ended
    assert request.sampler.closed
    assert desk.answer(request)[1] == "cancelled"
    desk.finish()
    expect(desk, other, A, max_tokens=30)
    again = desk.ask([7], FakeImage("cat"), [8])
    desk.finish()
    expect(desk, again, [7], FakeImage("cat"), [8])


def test_an_encode_goes_on_while_somebody_wants_it(desk):
    one, two = (desk.ask(FakeImage("cat"), [n]) for n in (1, 2))
    desk.scheduler.step()
    assert desk.encoding.run()
    assert desk.encoding.run()  # both prepared
    one.stop.cancel()
    desk.scheduler.step()
    desk.finish()
    expect(desk, two, FakeImage("cat"), [2])
    assert desk.encoding.encoded == ["cat"]


def test_an_encode_that_nobody_wants_is_stopped(desk):
    one = desk.ask(FakeImage("cat"), [1])
    desk.scheduler.step()
    desk.encoding.run()
    desk.scheduler.step()  # its encode is begun
    assert desk.encoding.jobs
    one.stop.cancel()
    desk.scheduler.step()
    while desk.encoding.run():
        pass
    assert desk.encoding.encoded == []


def test_an_encode_that_was_stopped_is_begun_again_for_the_next(desk):
    one, two = (desk.ask(FakeImage("cat"), [n]) for n in (1, 2))
    desk.scheduler.step()
    desk.encoding.run()  # the first is prepared
    desk.scheduler.step()  # and its encode begun
    assert len(desk.encoding.jobs) == 2
    one.stop.cancel()
    desk.scheduler.step()
    desk.finish()
    expect(desk, two, FakeImage("cat"), [2])
    assert desk.encoding.encoded == ["cat"]


@pytest.mark.parametrize("stage", ["prepare", "encode"])
def test_a_bad_image_ends_its_request_only(desk, stage):
    bad = desk.ask(FakeImage("dog", fails=stage), [1])
    good = desk.ask(FakeImage("cat"), [1])
    desk.finish()
    assert isinstance(desk.got[bad][-1].error, ValueError if stage == "prepare" else DecodeError)
    expect(desk, good, FakeImage("cat"), [1])
    assert desk.scheduler.stats().failed == 1


def test_a_failing_evaluation_ends_the_culprit_only(desk):
    good, bad, other = desk.ask(A), desk.ask([999]), desk.ask(B)
    desk.context.broken = {999}
    desk.finish()
    assert isinstance(desk.got[bad][-1].error, DecodeError)
    expect(desk, good, A)
    expect(desk, other, B)


def test_a_failing_sampler_or_writer_ends_its_request_only(desk):
    good, bad = desk.ask(A), desk.ask(B)
    bad.sampler.error = GrammarError("no token is left")
    worse = desk.ask(C)
    worse.write = lambda *_: 1 / 0
    desk.finish()
    assert isinstance(desk.got[bad][-1].error, GrammarError)
    assert isinstance(desk.got[worse][-1].error, ZeroDivisionError)
    expect(desk, good, A)


def test_prompts_that_cannot_be(desk):
    empty = desk.ask()
    long = desk.ask(list(range(30)), FakeImage("cat", 34))
    desk.finish()
    assert isinstance(desk.got[empty][-1].error, InvalidInputError)
    error = desk.got[long][-1].error
    assert isinstance(error, PromptTooLongError)
    assert (error.n_tokens, error.n_ctx) == (64, 64)


def test_a_full_context_is_the_end(desk):
    prompt = list(range(40))
    request = desk.ask(prompt, max_tokens=None)
    desk.finish()
    expect(desk, request, prompt, max_tokens=None)


def test_a_context_that_aborted_leaves_nobody_waiting(monkeypatch):
    def aborted(*_, **__):
        raise NativeAbort("the native library aborted")

    desk = Desk()
    requests = [desk.ask(p) for p in (A, B, C, D)]
    desk.scheduler.step()
    for name in ("eval_batch", "truncate_sequence", "copy_sequence"):
        monkeypatch.setattr(desk.context, name, aborted)
    requests.append(desk.ask(FakeImage("cat"), [1]))
    desk.finish()
    assert all(isinstance(desk.got[request][-1].error, NativeAbort) for request in requests)
    desk.scheduler.close()


def test_an_on_end_that_fails_is_nobodys_error(desk, caplog):
    def fail():
        raise ZeroDivisionError

    one, other = desk.ask(A), desk.ask(B)
    one.on_end = fail
    desk.finish()
    expect(desk, one, A)
    expect(desk, other, B)
    assert "on_end failed" in caplog.text


def test_closing_ends_all():
    desk = Desk()
    requests = [desk.ask(p) for p in (A, B, C, D)] + [desk.ask(FakeImage("cat"), [1])]
    desk.scheduler.step()
    desk.close()
    assert all(r.ended for r in requests)
    assert all(desk.answer(r)[1] is None and desk.got[r][-1].error for r in requests)
    assert desk.encoding.closed


def test_right_guesses_save_steps_and_wrong_ones_change_nothing():
    steps, answers = [], []
    for n_guessed in (0, 4):
        desk = Desk(n_ctx=256, n_guessed=n_guessed)
        request = desk.ask([1, 1], max_tokens=20)
        desk.finish()
        desk.check()
        answers.append(desk.answer(request))
        steps.append(len(desk.context.calls))
        stats = desk.scheduler.stats()
        desk.close()
    assert answers[0] == answers[1] == answer_to([[1, 1]], 20)
    assert len(answers[0][0]) == 20
    assert steps[1] <= steps[0] // 2
    assert 0 < stats.right_tokens < stats.guessed_tokens


def test_a_guess_never_takes_the_last_cells():
    desk = Desk(n_ctx=16, n_guessed=9, prefix_cells=0)
    request = desk.ask([1, 1], max_tokens=None)
    desk.finish()
    assert desk.answer(request) == answer_to([[1, 1]], 99, 16)
    desk.close()
