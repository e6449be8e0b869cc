"""The prefix cache: what stays in the context, what goes to main memory, and what comes back."""

from __future__ import annotations

import pytest
from support.fake_engine import fill

from llava_native.engine import offload, prefix_cache, sequences
from llava_native.engine.prefix_cache import PrefixCache
from llava_native.errors import InvalidInputError
from llava_native.machine import Room


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


# -- cells that others look at in vain


@pytest.fixture
def every_cell_counts(monkeypatch):
    monkeypatch.setattr(prefix_cache, "_BLOCK", 0)


@pytest.mark.usefixtures("every_cell_counts")
def test_what_a_lonely_request_does_not_share_is_set_aside(context, memory):
    cache = PrefixCache(memory, 40)
    one = keep(cache, context, memory, [1] * 10)
    keep(cache, context, memory, [2] * 10)
    cache.set_aside([[1] * 6])
    assert cache.match([[1]])[0] is one
    assert cache.stats() == {"prefixes": 1, "offloaded": 1, "evicted": 1, "restored": 0}
    cache.set_aside([[1] * 4])  # less than half of it
    assert cache.stats()["offloaded"] == 2
    assert memory.used == context.used == 0
    assert cache.restore([[2] * 10])


def test_few_cells_are_not_worth_a_copy(context, memory):
    cache = PrefixCache(memory, 40)
    keep(cache, context, memory, [1] * 18)
    cache.set_aside([[2]])
    assert len(cache) == 1


@pytest.mark.usefixtures("every_cell_counts")
@pytest.mark.parametrize("reason", ["no main memory", "short of memory", "cannot be copied"])
def test_nothing_is_lost_by_setting_it_aside(context, memory, monkeypatch, reason):
    cache = PrefixCache(memory, 40, offload=reason != "no main memory")
    if reason == "short of memory":
        monkeypatch.setattr(offload.OffloadedPrefixes, "has_room", lambda *_: False)
    elif reason == "cannot be copied":
        monkeypatch.setattr(sequences, "get_state", refuse)
    keep(cache, context, memory, [1] * 18)
    memory.span = 60
    cache.set_aside([[2]])
    cache.tidy()
    assert cache.match([[1] * 18])[1] == memory.used == context.used == 18
    assert cache.stats()["evicted"] == 0


def refuse(context, seq):
    raise InvalidInputError("no state")


@pytest.mark.usefixtures("every_cell_counts")
def test_tidying_moves_the_last_one_to_the_first_cells(context, memory):
    cache = PrefixCache(memory, 60)
    running = memory.open()
    fill(context, memory, running, 30)
    keep(cache, context, memory, [1] * 4)
    keep(cache, context, memory, [2] * 8)
    cache.tidy()
    assert context.span == 42  # all are in use
    memory.close(running)
    cache.tidy()
    assert context.span == memory.span == memory.used == 8
    sequence, n = cache.match([[2] * 9])
    assert (n, context.sequences[sequence.id]) == (8, [2] * 8)
    assert cache.stats() == {"prefixes": 1, "offloaded": 1, "evicted": 1, "restored": 0}
