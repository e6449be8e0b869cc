"""Bytes of tokens into text, and stop strings."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llava_native.text import StopSplitter, Utf8Decoder

# text in which stop strings, and beginnings of them, are likely
stoppy = st.text("ab\n", max_size=30)
stop_lists = st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3)


def cut(data, places):
    """Split `data` at the sorted places, some of which may be equal or beyond its end."""
    places = [0, *sorted(places), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(places)]


def decode(pieces):
    decoder = Utf8Decoder()
    return [decoder.feed(piece) for piece in pieces], decoder.finish()


def split(texts, stops):
    """Feed texts until a stop; return (what was shown at each step, the held rest, whether it stopped)."""
    splitter, shown = StopSplitter(stops), []
    for text in texts:
        shown.append(splitter.feed(text))
        if splitter.stopped:
            return shown, "", True
    return shown, splitter.finish(), False


def whole_answer(text, stops):
    found = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    return text[: min(found, default=(0, len(text)))[1]]


# -- Utf8Decoder


@given(st.text(), st.lists(st.integers(0, 80)))
def test_any_split_of_any_text_streams_back_identical(text, places):
    shown, rest = decode(cut(text.encode(), places))
    assert "".join(shown) == text
    assert rest == ""


@given(st.text())
def test_byte_by_byte_no_character_is_shown_before_it_is_whole(text):
    decoder, shown = Utf8Decoder(), ""
    for n, byte in enumerate(text.encode(), 1):
        shown += decoder.feed(bytes([byte]))
        assert shown == text.encode()[:n].decode(errors="ignore")


@given(st.binary(max_size=40), st.lists(st.integers(0, 40)))
def test_broken_bytes_become_what_they_become_at_once(data, places):
    shown, rest = decode(cut(data, places))
    assert "".join(shown) + rest == data.decode("utf-8", "replace")


def test_a_character_that_never_ends():
    assert decode(["é".encode()[:1]]) == ([""], "\ufffd")
    assert decode(["🙂".encode()[:3], b"a"]) == (["", "\ufffda"], "")


# -- StopSplitter


@example("\naa", [2], ["a", "\naa"])
@given(stoppy, st.lists(st.integers(0, 40)), stop_lists)
def test_shown_text_ends_before_the_first_complete_stop_however_it_is_cut(text, places, stops):
    shown, rest, stopped = split(cut(text, places), stops)
    assert "".join(shown) + rest == whole_answer(text, stops)
    assert stopped == any(stop in text for stop in stops)


@given(stoppy, stop_lists)
def test_nothing_that_may_be_the_start_of_a_stop_is_shown(text, stops):
    splitter, shown, seen = StopSplitter(stops), "", ""
    for char in text:
        shown += splitter.feed(char)
        seen += char
        # whatever comes next, what is shown stays a part of the answer
        for stop in stops:
            for length in range(1, len(stop)):
                if seen.endswith(stop[:length]):
                    assert not shown.endswith(seen[len(seen) - length :]) or len(shown) <= len(seen) - length
        if splitter.stopped:
            break


@given(stoppy, stop_lists)
def test_no_more_is_held_back_than_a_stop_is_long(text, stops):
    splitter, shown = StopSplitter(stops), ""
    longest = max(map(len, stops), default=1)
    for n, char in enumerate(text, 1):
        shown += splitter.feed(char)
        if splitter.stopped:
            return
        assert n - len(shown) < longest


@pytest.mark.parametrize(
    ("texts", "stops", "shown", "rest", "stopped"),
    [
        (["one<|e", "nd|>two"], ["<|end|>"], ["one", ""], "", True),
        (["one<|e", "nt"], ["<|end|>"], ["one", "<|ent"], "", False),
        (["one<|e"], ["<|end|>"], ["one"], "<|e", False),
        (["xabcx"], ["bc", "abc"], ["x"], "", True),  # the longer of two that end together
        (["xab", "cd"], ["abcd", "bc"], ["x", "a"], "", True),  # what is complete first
        (["aab"], ["ab"], ["a"], "", True),
        (["aa", "b"], ["ab"], ["a", ""], "", True),
        (["ab", "ab", "c"], ["ababc"], ["", "", ""], "", True),
        (["ababab", "c"], ["ababc"], ["ab", ""], "", True),
        (["stop"], ["stop"], [""], "", True),
        (["a", "", "b"], [""], ["a", "", "b"], "", False),  # an empty stop is none
        (["a\n", "\nb"], ["\n\n"], ["a", ""], "", True),
        (["é", "è"], ["éè"], ["", ""], "", True),
    ],
)
def test_stops(texts, stops, shown, rest, stopped):
    assert split(texts, stops) == (shown, rest, stopped)


def test_finish_gives_the_held_text_once():
    splitter = StopSplitter(["abc"])
    assert splitter.feed("xab") == "x"
    assert splitter.finish() == "ab"
    assert splitter.finish() == ""
    assert splitter.feed("c") == "c"
