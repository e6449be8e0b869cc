"""Encoding: what is taken from a caller who may change it meanwhile."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from llava_native import ImageEmbedding
from llava_native.engine.encoding import _prepare


@pytest.mark.parametrize("writable", [True, False])
def test_rows_that_may_change_are_copied_before_they_are_named(writable):
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    array.flags.writeable = writable
    given = ImageEmbedding.from_buffer(array, fingerprint="f")
    image = SimpleNamespace(piece=given, key=None, rows=None, n_tokens=None)
    _prepare(image)
    assert (image.rows is given) != writable
    if writable:
        array[:] = 0
    np.testing.assert_array_equal(np.asarray(image.rows), np.arange(12, dtype=np.float32).reshape(3, 4))
    assert (image.n_tokens, image.rows.fingerprint) == (3, "f")
