"""Pace: slices of 0.2 s."""

from __future__ import annotations

from support.fake_engine import LONG, Desk, answer_to

from llava_native.engine.pace import Pace

# prompts whose answers are longer than what the tests look at
A, B = LONG[:2]


def test_a_slice_takes_a_fifth_of_a_second():
    pace = Pace(512)
    assert pace.slice(1) == 64
    pace.learn(64, 0.1)
    assert pace.slice(1) == 128
    pace.learn(128, 0.5)
    assert pace.slice(1) == 48


def test_the_more_prompts_the_larger_the_slices_where_even_few_tokens_take_longer():
    pace = Pace(512)
    pace.learn(64, 6.0)
    assert [pace.slice(n) for n in (1, 2, 7, 40)] == [32, 64, 224, 256]
    assert [pace.slice(n, is_sharing=True) for n in (1, 2, 7, 40)] == [32, 64, 64, 64]
    pace.learn(512, 1.0)
    assert [pace.slice(n) for n in (1, 2, 7, 40)] == [96, 96, 224, 256]


def test_bounds():
    pace = Pace(100)
    pace.learn(64, 0.001)
    assert pace.slice(1) == 100
    pace.learn(64, 60.0)
    assert pace.slice(1) == 32
    assert Pace(8).slice(1) == 8


def test_few_tokens_tell_nothing():
    pace = Pace(512)
    pace.learn(4, 1.0)
    pace.learn(64, 0.0)
    assert pace.slice(1) == 64


def test_a_long_prompt_is_cut_while_others_are_answered():
    desk = Desk(n_ctx=256)
    first = desk.ask(A, max_tokens=30)
    desk.scheduler.step()
    prompt = list(range(101, 141))
    second = desk.ask(prompt)
    seen = []
    while not desk.answer(second)[0]:
        desk.scheduler.step()
        seen.append(len(desk.answer(first)[0]))
    assert seen == [2, 3, 4]  # 40 tokens in slices, and the stream never stopped
    assert desk.context.calls[-3:] == [[(0, 1), (1, n)] for n in (15, 15, 10)]
    desk.finish()
    assert desk.answer(first) == answer_to([A], 30)
    assert desk.answer(second) == answer_to([prompt], 8)
    desk.close()


def test_answers_and_slices_fill_whole_tiles():
    desk = Desk(n_ctx=512, n_batch=256, n_ubatch=256)
    desk.scheduler._pace.slice = lambda n_prompts, _: 16 * (1 + n_prompts)
    desk.ask(A, max_tokens=30), desk.ask(B, max_tokens=30)
    desk.scheduler.step()
    desk.ask(list(range(101, 201)))
    for _ in range(4):
        desk.scheduler.step()
    assert desk.context.calls[-4:] == [[(0, 1), (1, 1), (2, n)] for n in (30, 30, 30, 10)]
    desk.finish()
    desk.close()
