"""States of sequences: what is no state is refused before a byte of it is read."""

from __future__ import annotations

import pytest

from llava_native import Context, Model
from llava_native._state import set_state
from llava_native.errors import InvalidInputError


@pytest.mark.parametrize("n", [2**62, 2**60, 2, 0, -1, -(2**62)])
@pytest.mark.parametrize("state", [b"", b"x", bytes(16), bytes(28)])
def test_a_number_of_tokens_that_the_bytes_cannot_hold(pair, state, n):
    with Model(pair.text.path) as model, Context(model, n_ctx=64, n_threads=1) as context:
        with pytest.raises(InvalidInputError):
            set_state(context, state, n)
        assert context.n_past() == 0
