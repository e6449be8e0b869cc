"""Pace: slices of 0.2 s."""

from __future__ import annotations

from llava_native.engine.pace import Pace


def test_a_slice_takes_a_fifth_of_a_second():
    pace = Pace(512)
    assert pace.slice == 64
    pace.learn(64, 0.1)
    assert pace.slice == 128
    pace.learn(128, 0.8)
    assert pace.slice == 32


def test_bounds():
    pace = Pace(100)
    pace.learn(64, 0.001)
    assert pace.slice == 100
    pace.learn(64, 60.0)
    assert pace.slice == 16
    assert Pace(8).slice == 8


def test_few_tokens_tell_nothing():
    pace = Pace(512)
    pace.learn(4, 1.0)
    pace.learn(64, 0.0)
    assert pace.slice == 64
