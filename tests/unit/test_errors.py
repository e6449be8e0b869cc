"""Errors: each can be copied and pickled, as other processes and logs do."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest

from llava_native import errors

ERRORS = [cls for _, cls in inspect.getmembers(errors, inspect.isclass) if issubclass(cls, BaseException)]


@pytest.mark.parametrize("cls", [cls for cls in ERRORS if cls.__module__ == errors.__name__])
@pytest.mark.parametrize("again", [copy.copy, lambda error: pickle.loads(pickle.dumps(error))])
def test_a_copy_says_the_same(cls, again):
    error = cls("what was wrong")
    error.n_ctx = 5
    made = again(error)
    assert type(made) is cls
    assert (str(made), vars(made)) == (str(error), vars(error))
