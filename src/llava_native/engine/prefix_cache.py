"""Prefixes that stay in the context when their request is over, for whoever begins alike."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llava_native.engine.sequences import cells, common_prefix, head, length

if TYPE_CHECKING:
    from llava_native.engine.sequences import Content, Memory, Sequence

__all__ = ["PrefixCache"]


class PrefixCache:
    """Sequences of finished requests, the least recently used first. Belongs to one thread.

    Parameters
    ----------
    memory : Memory
    limit : int
        Cells that may be held for nobody who is running; 0 keeps nothing.

    Attributes
    ----------
    evicted : int
        Sequences that were dropped to make room.
    """

    def __init__(self, memory: Memory, limit: int) -> None:
        self._memory = memory
        self._kept: list[Sequence] = []
        self.limit = limit
        self.evicted = 0

    def __len__(self) -> int:
        return len(self._kept)

    def __contains__(self, sequence: object) -> bool:
        return sequence in self._kept

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
        while self._kept and self.cells > self.limit:
            self.evict()

    def export(self, content: Content) -> tuple[Content, bytes] | None:
        """Return what is kept of the beginning of `content`, and its state; None where there is nothing."""
        source, n = self.match(content)
        if source is None or (n < source.n_tokens and not self._memory.has_sequence):
            return None
        return head(content, n), self._memory.state(source, n)

    def adopt(self, content: Content, state: bytes) -> bool:
        """Keep a state that was exported, perhaps by another process; return whether there is room for it.

        Raises
        ------
        InvalidInputError
            It is no state of this content.
        """
        n = length(content)
        while (self._memory.free < n or not self._memory.has_sequence) and self.evict():
            pass
        if n > self.limit or self._memory.free < n or not self._memory.has_sequence:
            return False
        self.keep(self._memory.restore(state, n), content)
        return True

    def evict(self) -> bool:
        """Free the least recently used sequence; return whether there was one."""
        if not self._kept:
            return False
        self._memory.close(self._kept.pop(0))
        self.evicted += 1
        return True

    def clear(self) -> None:
        """Free all of them."""
        for sequence in self._kept:
            self._memory.close(sequence)
        self._kept.clear()
