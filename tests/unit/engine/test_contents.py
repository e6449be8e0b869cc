"""What pieces of a prompt are to the caches, and what is written down of it."""

from __future__ import annotations

import json

import numpy as np
import pytest

from llava_native import ImageEmbedding
from llava_native.engine.contents import content_of, from_data, to_data
from llava_native.engine.sequences import ImageSpan


def test_equal_rows_are_one_image_and_others_another():
    one, same, other = (ImageEmbedding.from_buffer(np.full((3, 4), x, np.float32)) for x in (1, 1, 2))
    first, ids, second, third = content_of([one, [5, 6], same, other])
    assert first == second != third
    assert (len(first), ids) == (3, [5, 6])


def test_what_is_written_is_read():
    content = [[1, 2], ImageSpan("abc", 576), [3]]
    assert from_data(json.loads(json.dumps(to_data(content)))) == content


@pytest.mark.parametrize(
    "data", [[{"ids": [-1]}], [{"ids": [2**31]}], [{"ids": [True]}], [{}], [["a"]], [["a", 1.0]], [5], None]
)
def test_what_is_no_content_is_refused(data):
    with pytest.raises((TypeError, ValueError, LookupError)):
        from_data(data)
