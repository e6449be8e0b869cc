"""Contents that are compared, and cells that are shared and counted."""

from __future__ import annotations

import pytest
from support.fake_engine import fill

from llava_native.engine.sequences import ImageSpan, cells, common_prefix, head, length

CAT, DOG = ImageSpan("cat", 4), ImageSpan("dog", 4)


@pytest.mark.parametrize(
    ("a", "b", "n"),
    [
        ([[1, 2, 3]], [[1, 2, 4]], 2),
        ([[1, 2, 3]], [[1, 2]], 2),
        ([[1], CAT, [2]], [[1], CAT, [2]], 6),
        ([[1], CAT, [2]], [[1], CAT, [3]], 5),
        ([[1], CAT, [2]], [[1], DOG, [2]], 1),
        ([[1, 2], CAT], [[1], CAT], 1),
        ([[1], ImageSpan("cat", 2)], [[1], CAT, [5]], 3),  # cut in the middle of the image
        ([[1], ImageSpan("cat", 2), [5]], [[1], CAT, [5]], 3),
        ([CAT], [[1]], 0),
        ([], [[1]], 0),
    ],
)
def test_common_prefix(a, b, n):
    assert common_prefix(a, b) == common_prefix(b, a) == n


@pytest.mark.parametrize("n", range(8))
def test_head(n):
    content = [[1, 2], CAT, [3]]
    cut = head(content, n)
    assert length(cut) == min(n, 7)
    assert common_prefix(cut, content) == min(n, 7)
    if n >= 2:
        assert cut[0] == [1, 2]
        assert cut[0] is not content[0]


def test_shared_cells_count_once(context, memory):
    a = memory.open()
    fill(context, memory, a, 10)
    b = memory.open(a, 6)
    fill(context, memory, b, 3)
    fill(context, memory, a, 2)
    c = memory.open(b, 9)
    assert (a.n_tokens, b.n_tokens, c.n_tokens) == (12, 9, 9)
    assert memory.used == context.used == cells([a, b, c]) == 15
    assert cells([b, c]) == 9
    memory.close(a)
    assert memory.used == context.used == 9
    fill(context, memory, c, 1)
    fill(context, memory, b, 1)  # both go on from the same cell, in cells of their own
    assert memory.used == context.used == 11
    memory.truncate(b, 2)
    assert memory.used == context.used == 10
    memory.close(c)
    memory.close(b)
    assert memory.used == context.used == 0


def test_the_span_is_where_the_last_cell_in_use_may_lie(context, memory):
    a, b = memory.open(), memory.open()
    fill(context, memory, a, 10)
    fill(context, memory, b, 5)
    memory.close(a)
    assert (memory.used, memory.span, context.span) == (5, 15, 15)
    c = memory.open()
    fill(context, memory, c, 10)  # in the gap
    assert memory.span == context.span == 15
    fill(context, memory, c, 1)
    assert memory.span == context.span == 16
    memory.close(b)
    memory.close(c)
    assert memory.span == context.span == 0


def test_a_sequence_that_grows_from_a_whole_copy_leaves_the_first_alone(context, memory):
    a = memory.open()
    fill(context, memory, a, 4)
    b = memory.open(a, 4)
    fill(context, memory, b, 2)
    fill(context, memory, a, 2)
    assert memory.used == context.used == 8


def test_sequences_run_out(memory):
    opened = [memory.open() for _ in range(4)]
    assert not memory.has_sequence
    memory.close(opened[2])
    assert memory.has_sequence
    assert memory.open().id == opened[2].id
