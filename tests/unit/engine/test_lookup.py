"""Lookup: what followed the same three tokens last time."""

from __future__ import annotations

import pytest

from llava_native.engine.lookup import Lookup
from llava_native.engine.sequences import ImageSpan

END = 0


def _lookup(*content, limit=4):
    return Lookup(list(content), limit, lambda token: token == END)


def test_guesses_what_followed_last_time():
    assert _lookup([1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3]).guess(9) == [4, 5, 6, 7]
    assert _lookup([1, 2, 3, 4, 9, 1, 2, 3, 5, 9, 1, 2, 3]).guess(2) == [5, 9]


@pytest.mark.parametrize(
    "content", [[[]], [[1, 2]], [[1, 2, 3]], [[1, 2, 3, 4, 2, 3]], [[7, 2, 3, 4, 1, 2, 3]]]
)
def test_guesses_nothing_without_three_tokens_seen_before(content):
    assert _lookup(*content).guess(9) == []


def test_no_room_no_guess():
    lookup = _lookup([1, 2, 3, 4, 1, 2, 3])
    assert lookup.guess(0) == lookup.guess(-3) == []


def test_never_guesses_an_end_or_an_image():
    assert _lookup([1, 2, 3, 4, END, 5, 1, 2, 3]).guess(9) == [4]
    assert _lookup([1, 2, 3, 4], ImageSpan("key", 5), [1, 2, 3]).guess(9) == [4]
    assert _lookup([1, 2, 3], ImageSpan("key", 5), [1, 2, 3]).guess(9) == []


def test_the_answer_is_looked_up_too():
    lookup = _lookup([9, 9])
    lookup.extend([1, 2, 3, 4, 5])
    lookup.extend([1, 2, 3])
    assert lookup.guess(2) == [4, 5]


def test_the_guess_may_reach_into_what_repeats_itself():
    assert _lookup([1, 2, 3, 1, 2, 3]).guess(9) == [1, 2, 3]


def test_a_wrong_guess_makes_the_next_one_shorter():
    lookup = _lookup([1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3], limit=8)
    assert len(lookup.guess(99)) == 8
    lookup.learn(8, 2)
    assert lookup.guess(99) == [4, 5]
    lookup.learn(2, 0)
    assert lookup.guess(99) == [4]
    lookup.learn(1, 1)
    lookup.learn(2, 2)
    assert len(lookup.guess(99)) == 4
    for _ in range(5):
        lookup.learn(4, 4)
    assert len(lookup.guess(99)) == 8
