"""Sampling parameters: ranges, defaults, seeds."""

from __future__ import annotations

import dataclasses
import math
import re

import numpy as np
import pytest

from llava_native import SamplingParams
from llava_native.errors import InvalidInputError

NUMBERS = [
    "temperature", "top_k", "top_p", "min_p", "typical_p", "xtc_probability", "xtc_threshold",
    "repeat_penalty", "frequency_penalty", "presence_penalty", "repeat_last_n", "dry_multiplier", "dry_base",
    "dry_allowed_length", "dry_penalty_last_n", "mirostat_mode", "mirostat_tau", "mirostat_eta", "seed",
]  # fmt: skip
INTEGERS = ["top_k", "repeat_last_n", "dry_allowed_length", "dry_penalty_last_n", "mirostat_mode", "seed"]


def test_every_number_is_covered_here():
    others = {"dry_sequence_breakers", "logit_bias", "grammar", "grammar_root"}
    assert {field.name for field in dataclasses.fields(SamplingParams)} == {*NUMBERS, *others}


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e30, -5])
def test_no_number_is_beyond_its_range(name, value):
    if (name, value) in (("frequency_penalty", -5), ("presence_penalty", -5)):
        assert getattr(SamplingParams(**{name: value}), name) == -5
        return
    with pytest.raises(InvalidInputError, match=rf"^{name} must be .* not {re.escape(repr(value))}$"):
        SamplingParams(**{name: value})


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", ["1", [1], {}, 1j])
def test_a_number_is_no_string_or_list(name, value):
    with pytest.raises(InvalidInputError, match=name):
        SamplingParams(**{name: value})


@pytest.mark.parametrize("name", INTEGERS)
def test_an_integer_has_no_fraction(name):
    with pytest.raises(InvalidInputError, match=rf"{name} .*0\.5"):
        SamplingParams(**{name: 0.5})


@pytest.mark.parametrize("name", sorted(set(NUMBERS) - {"seed"}))
def test_none_is_no_number(name):
    with pytest.raises(InvalidInputError, match=name):
        SamplingParams(**{name: None})


@pytest.mark.parametrize(
    "changes",
    [
        {"logit_bias": {"3": 1.0}},
        {"logit_bias": {3: "1"}},
        {"grammar": b"root ::= [a]"},
        {"grammar_root": None},
    ],
)
def test_types_of_the_rest(changes):
    with pytest.raises(InvalidInputError, match=next(iter(changes))):
        SamplingParams(**changes)


def test_numbers_of_numpy_are_numbers():
    params = SamplingParams(
        temperature=np.float32(0.5), top_k=np.int64(3), logit_bias={np.int32(1): np.float64(2)}
    )
    assert (params.temperature, params.top_k) == (0.5, 3)


def test_a_seed_is_drawn_and_kept():
    seeds = {SamplingParams().seed for _ in range(20)}
    assert len(seeds) > 1
    assert all(0 <= seed <= 2**32 - 2 for seed in seeds)
    assert SamplingParams(seed=7).seed == 7
    assert SamplingParams(seed=2**32 - 2).seed == 2**32 - 2


@pytest.mark.parametrize("seed", [-1, 2**32 - 1, 2**32, 2**64])
def test_seeds_that_llama_cpp_would_read_as_another(seed):
    with pytest.raises(InvalidInputError, match="seed"):
        SamplingParams(seed=seed)


@pytest.mark.parametrize("bias", [math.nan, math.inf])
def test_a_bias_that_would_make_every_logit_nan(bias):
    with pytest.raises(InvalidInputError, match=r"logit_bias\[3\]"):
        SamplingParams(logit_bias={3: bias})


def test_minus_infinity_forbids():
    assert SamplingParams(logit_bias={3: -math.inf}).logit_bias == {3: -math.inf}


@pytest.mark.parametrize(
    ("changes", "has"),
    [
        ({}, False),
        ({"repeat_penalty": 1.1}, True),
        ({"frequency_penalty": -0.5}, True),
        ({"presence_penalty": 0.5}, True),
        ({"repeat_penalty": 1.1, "repeat_last_n": 0}, False),
    ],
)
def test_penalties_are_left_out_where_they_do_nothing(changes, has):
    assert SamplingParams(**changes).has_penalties is has


def test_it_cannot_be_changed_and_takes_only_names():
    params = SamplingParams(top_k=3)
    with pytest.raises(dataclasses.FrozenInstanceError):
        params.top_k = 4
    with pytest.raises(TypeError):
        SamplingParams(0.5)
    with pytest.raises(TypeError, match="topk"):
        SamplingParams(topk=3)
    assert dataclasses.replace(params, top_p=0.5).top_k == 3
