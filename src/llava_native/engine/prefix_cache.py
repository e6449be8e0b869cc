"""Prefixes that stay, in the context or in main memory, when their request is over."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from llava_native.engine.offload import OffloadedPrefixes
from llava_native.engine.sequences import cells, common_prefix, head, length
from llava_native.errors import InvalidInputError, LlavaError

if TYPE_CHECKING:
    from llava_native.engine.sequences import Content, Memory, Sequence, State

__all__ = ["PrefixCache"]

_MIN_RESTORED = 16  # tokens that an offloaded prefix must save
_BLOCK = 256  # cells that the library looks at together, in use or not


class PrefixCache:
    """Sequences of finished requests, the least recently used first. Belongs to one thread.

    Every token looks at every cell in use, also at those that are not its own. On a CPU that is dear: so the
    most recent sequence stays in the context, others only while they are small, and what has to leave is
    offloaded to main memory. On a GPU the copy is dearer than evaluating the sequence again: there they stay
    in the context until it needs the room, and are then gone.

    Parameters
    ----------
    memory : Memory
    limit : int
        Tokens that may be held in the context for nobody who is running, and in main memory; 0 keeps nothing.
    offload : bool, default True
        Whether main memory is used.

    Attributes
    ----------
    evicted, restored : int
        Sequences that left the context, and those that were brought back.
    """

    def __init__(self, memory: Memory, limit: int, offload: bool = True) -> None:
        self._memory = memory
        self._kept: list[Sequence] = []
        self._offloaded = OffloadedPrefixes()
        self._offloads = offload
        self.limit = limit
        self.evicted = self.restored = 0

    def __len__(self) -> int:
        return len(self._kept)

    def __contains__(self, sequence: object) -> bool:
        return sequence in self._kept

    def stats(self) -> dict[str, int]:
        """Return its part of the engine's counters."""
        return {
            "prefixes": len(self._kept),
            "offloaded": len(self._offloaded),
            "evicted": self.evicted,
            "restored": self.restored,
        }

    @property
    def cells(self) -> int:
        """Cells that only kept sequences hold."""
        kept = set(self._kept)
        return self._memory.used - cells(s for s in self._memory.live.values() if s not in kept)

    def match(self, content: Content) -> tuple[Sequence | None, int]:
        """Return the kept sequence that shares the longest prefix with `content`, and its length."""
        best, longest = None, 0
        for sequence in self._kept:
            n = common_prefix(sequence.content, content)
            if n >= longest and n:  # of two, the more recent one
                best, longest = sequence, n
        return best, longest

    def touch(self, sequence: Sequence) -> None:
        """Make a kept sequence the most recently used one."""
        if sequence in self._kept:
            self._kept.remove(sequence)
            self._kept.append(sequence)

    def keep(self, sequence: Sequence, content: Content) -> None:
        """Take over a sequence that holds `content`; free it where that is not worth its cells."""
        n = sequence.n_tokens
        if n > self.limit > 0:  # its beginning is what others are most likely to share
            n = self.limit
            self._memory.truncate(sequence, n)
        sequence.content = head(content, n)
        longer = next((s for s in self._kept if common_prefix(s.content, sequence.content) == n), None)
        if not n or not self.limit or longer is not None:
            self._memory.close(sequence)
            if longer is not None:
                self.touch(longer)
            return
        for shorter in [s for s in self._kept if common_prefix(s.content, sequence.content) == s.n_tokens]:
            self._kept.remove(shorter)
            self._memory.close(shorter)
        self._kept.append(sequence)
        self._offloaded.drop_beginnings_of(sequence.content)
        several = self.limit // 2 if self._offloads else self.limit
        while self._kept and self.cells > (several if len(self._kept) > 1 else self.limit):
            self.evict()

    def offloaded(self, content: Content, here: int) -> int:
        """Return how much of `content` is offloaded, 0 where that is hardly more than is `here` already."""
        n = self._offloaded.match(content)[1]
        return n if n >= here + _MIN_RESTORED else 0

    def restore(self, content: Content) -> bool:
        """Bring what is offloaded of the beginning of `content` back; where that fails it is lost."""
        prefix, _ = self._offloaded.match(content)
        if prefix is None:
            return False
        self._offloaded.take(prefix)
        if self._memory.n_sequences + len(self._kept) < 2:  # another one goes on from there
            return False
        with contextlib.suppress(InvalidInputError):  # the library found no room after all
            restored = self.adopt(*prefix)
            self.restored += restored
            return restored
        return False

    def export(self, content: Content) -> tuple[Content, State] | None:
        """Return what is kept of the beginning of `content`, and its state; None where there is nothing."""
        if self.offloaded(content, self.match(content)[1]):
            self.restore(content)
        source, n = self.match(content)
        if source is None or (n < source.n_tokens and not self._memory.has_sequence):
            return None
        return head(content, n), self._memory.state(source, n)

    def adopt(self, content: Content, state: State) -> bool:
        """Keep a state that was exported, perhaps by another process; return whether there is room for it.

        Raises
        ------
        InvalidInputError
            It is no state of this content.
        """
        n = length(content)
        if n > min(self.limit, self._memory.free + self.cells):
            return False
        if not (self.make_room(n) and self.make_sequence()):
            return False
        self.keep(self._memory.restore(state, n), content)
        return True

    def evict(self) -> bool:
        """Offload the least recently used sequence; return whether there was one."""
        if not self._kept:
            return False
        self._offload(self._kept[0])
        self._drop(self._kept[0])
        return True

    def set_aside(self, content: Content) -> None:
        """Offload what a request that begins shares little with: its tokens would look at those cells."""
        for sequence in list(self._kept):
            shares_little = 2 * common_prefix(sequence.content, content) < sequence.n_tokens
            if shares_little and self.cells > _BLOCK and self._offload(sequence):
                self._drop(sequence)

    def tidy(self) -> None:
        """Move the most recent sequence to the first cells, where it lies behind many that are free again."""
        if not (self._kept and self._offloads) or self._memory.span <= 2 * self._memory.used + _BLOCK:
            return
        if not self._offloaded.has_room(self.cells):
            return
        while len(self._kept) > 1:
            self.evict()
        (last,) = self._kept
        content, n = last.content, last.n_tokens
        with contextlib.suppress(LlavaError, MemoryError):
            state = self._memory.state(last, n)
            self._kept.clear()
            self._memory.close(last)
            moved = self._memory.restore(state, n)
            moved.content = content
            self._kept.append(moved)

    def _drop(self, sequence: Sequence) -> None:
        self._kept.remove(sequence)
        self._memory.close(sequence)
        self.evicted += 1

    def _offload(self, sequence: Sequence) -> bool:
        """Copy a sequence to main memory; return whether most of it is there, or in another sequence."""
        if not self._offloads:
            return False
        content, n = sequence.content, sequence.n_tokens
        shared = [common_prefix(other.content, content) for other in self._kept if other is not sequence]
        if max([*shared, self._offloaded.match(content)[1]]) * 2 > n:
            return True
        if not self._offloaded.has_room(n):
            return False
        with contextlib.suppress(LlavaError, MemoryError):
            self._offloaded.put(content, self._memory.state(sequence, n), self.limit)
            return True
        return False

    def make_room(self, n: int) -> bool:
        """Evict until there are `n` free cells; return whether there are."""
        while self._memory.free < n and self.evict():
            pass
        return self._memory.free >= n

    def make_sequence(self) -> bool:
        """Evict until the memory can open a sequence; return whether it can."""
        while not self._memory.has_sequence and self.evict():
            pass
        return self._memory.has_sequence

    def clear(self) -> None:
        """Free all of them."""
        for sequence in self._kept:
            self._memory.close(sequence)
        self._kept.clear()
        self._offloaded.clear()
