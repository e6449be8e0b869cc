"""Constraints: truth values as schemas, and the token that ends an answer."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from llava_native.constraint import Constraint, Vocabulary, _Words
from llava_native.errors import GrammarError


def model(eos, eot):
    return SimpleNamespace(
        n_vocab=4, bos=-1, eos=eos, eot=eot, special_tokens={"</s>": 3}, is_spm=False,
        token_bytes=lambda token, **_: b"ab</s>"[token : token + 1],
        is_eog=lambda token: token == 3,
    )  # fmt: skip


def test_a_schema_that_allows_all_and_one_that_allows_nothing():
    assert Constraint.json_schema(True) == Constraint.json_schema({})
    with pytest.raises(GrammarError, match="no JSON can meet the schema false"):
        Constraint.json_schema(False)


@pytest.mark.parametrize(("eos", "eot", "end"), [(2, 3, 2), (-1, 3, 3), (-1, -1, -1)])
def test_the_end_token_is_the_first_that_there_is(eos, eot, end):
    assert _Words(model(eos, eot)).eos_token_id == end


def test_a_vocabulary_without_an_end_of_sequence():
    assert Vocabulary(model(-1, 3)).tokenizer.eos_token == 3
