"""Contents that are compared, and cells that are shared and counted."""

from __future__ import annotations

import pytest
from support.fake_engine import FakeContext

from llava_native.engine import offload
from llava_native.engine.prefix_cache import PrefixCache
from llava_native.engine.sequences import ImageSpan, Memory, cells, common_prefix, head, length
from llava_native.machine import Room

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


@pytest.fixture
def context():
    return FakeContext(n_ctx=64, n_seq_max=4)


@pytest.fixture
def memory(context):
    return Memory(context)


def fill(context, memory, sequence, n):
    context.eval_batch([(sequence.id, list(range(n)), False)])
    memory.grow(sequence, n)


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


# -- the prefix cache


def keep(cache, context, memory, tokens, source=None, n=0):
    sequence = memory.open(source, n)
    context.eval_batch([(sequence.id, tokens[n:], False)])
    memory.grow(sequence, len(tokens) - n)
    cache.keep(sequence, [list(tokens)])
    return sequence


def test_the_longest_prefix_is_found(context, memory):
    cache = PrefixCache(memory, 64)
    one = keep(cache, context, memory, [1, 2, 3, 4])
    two = keep(cache, context, memory, [1, 2, 9])
    assert cache.match([[1, 2, 9, 9]]) == (two, 3)
    assert cache.match([[1, 2, 3]]) == (one, 3)
    assert cache.match([[7]]) == (None, 0)


def test_what_a_longer_one_has_is_not_kept_twice(context, memory):
    cache = PrefixCache(memory, 64)
    keep(cache, context, memory, [1, 2])
    longer = keep(cache, context, memory, [1, 2, 3])
    assert len(cache) == 1
    keep(cache, context, memory, [1])
    assert len(cache) == 1
    assert cache.match([[1]]) == (longer, 1)
    assert memory.used == context.used == 3


def test_the_least_recently_used_goes_first(context, memory):
    cache = PrefixCache(memory, 20)
    one = keep(cache, context, memory, [1] * 4)
    keep(cache, context, memory, [2] * 4)
    cache.touch(one)
    keep(cache, context, memory, [3] * 4)
    assert cache.cells == 8
    assert cache.match([[1]])[1] == 1
    assert cache.match([[2]])[1] == 0
    assert cache.evicted == 1


def test_a_shared_beginning_costs_nothing(context, memory):
    cache = PrefixCache(memory, 10)
    running = memory.open()
    fill(context, memory, running, 9)
    kept = keep(cache, context, memory, [*range(9), 50], running, 9)
    assert cache.cells == 1
    assert len(cache) == 1
    memory.close(running)
    assert cache.cells == kept.n_tokens == 10


def test_off(context, memory):
    cache = PrefixCache(memory, 0)
    keep(cache, context, memory, [1, 2])
    assert len(cache) == memory.used == context.used == 0
    assert not cache.evict()


# -- what had to leave the context


def test_only_the_most_recent_large_one_stays_in_the_context(context, memory):
    cache = PrefixCache(memory, 40)
    keep(cache, context, memory, [1] * 18)
    keep(cache, context, memory, [2] * 18)
    assert (cache.cells, len(cache)) == (18, 1)
    assert cache.stats() == {"prefixes": 1, "offloaded": 1, "evicted": 1, "restored": 0}
    keep(cache, context, memory, [3] * 30)
    assert cache.cells == context.used == 30  # alone it may be larger than half of the limit
    assert cache.stats()["offloaded"] == 2
    keep(cache, context, memory, [4] * 10)
    assert cache.stats()["offloaded"] == 1  # no more tokens than the limit


def test_without_main_memory_all_stay_in_the_context_until_it_is_full(context, memory):
    cache = PrefixCache(memory, 40, offload=False)
    for token in (1, 2, 3):
        keep(cache, context, memory, [token] * 18)
    assert cache.stats() == {"prefixes": 2, "offloaded": 0, "evicted": 1, "restored": 0}
    assert cache.cells == context.used == 36
    assert not cache.restore([[1] * 18])


def test_what_was_offloaded_comes_back(context, memory):
    cache = PrefixCache(memory, 40)
    content = [[*range(100, 118)]]
    keep(cache, context, memory, content[0])
    keep(cache, context, memory, [2] * 18)
    assert cache.match(content) == (None, 0)
    assert cache.offloaded(content, 0) == 18
    assert cache.offloaded(content, 3) == 0  # hardly more than is there
    assert cache.restore(content)
    sequence, n = cache.match(content)
    assert n == 18
    assert context.sequences[sequence.id] == content[0]
    assert cache.stats() == {"prefixes": 1, "offloaded": 1, "evicted": 2, "restored": 1}
    assert memory.used == context.used == 18


def test_nothing_is_held_twice(context, memory):
    cache = PrefixCache(memory, 40)
    one = keep(cache, context, memory, [1] * 18)
    keep(cache, context, memory, [*[1] * 17, 2], one, 17)
    keep(cache, context, memory, [3] * 18)  # both leave: they differ in a token
    assert cache.stats()["offloaded"] == 1
    assert cache.restore([[1] * 18])
    keep(cache, context, memory, [*[1] * 18, 5, 5, 5], cache.match([[1] * 18])[0], 17)
    assert cache.offloaded([[1] * 18], 0) == 0


def test_what_has_no_room_is_lost(context, memory):
    cache = PrefixCache(memory, 40)
    keep(cache, context, memory, [1] * 18)
    keep(cache, context, memory, [2] * 18)
    running = memory.open()
    assert cache.evict()
    fill(context, memory, running, 30)
    fill(context, memory, running, 30)
    assert not cache.restore([[1] * 18])
    assert cache.offloaded([[1] * 18], 0) == 0
    assert cache.offloaded([[2] * 18], 0) == 18
    memory.close(running)


def test_nothing_is_offloaded_where_memory_is_short(context, memory, monkeypatch):
    monkeypatch.setattr(offload, "_LARGE", 0)
    monkeypatch.setattr(offload, "host_room", lambda: Room(10**9, 100, "this machine"))
    cache = PrefixCache(memory, 60)
    for token in (1, 2, 3):
        keep(cache, context, memory, [token] * 18)
    assert cache.evicted == 2
    assert cache.stats()["offloaded"] == 1  # the first told how large they are
    assert cache.evict()
    assert cache.stats()["offloaded"] == 1
