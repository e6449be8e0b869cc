"""Prefixes that had to leave the context, as states in main memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from llava_native.engine.sequences import common_prefix, length
from llava_native.machine import host_room

if TYPE_CHECKING:
    from llava_native.engine.sequences import Content

__all__ = ["OffloadedPrefix", "OffloadedPrefixes"]

_LARGE = 1 << 20  # bytes; for less it is not worth asking how much memory is free


class OffloadedPrefix(NamedTuple):
    """What a sequence held, and its state."""

    content: Content
    state: bytes


class OffloadedPrefixes:
    """The least recently used first. Belongs to one thread.

    A cell of the context costs every token that is evaluated, whoever it belongs to; a state costs nothing
    until it is brought back, and that is a copy: far less than evaluating it again.
    """

    def __init__(self) -> None:
        self._held: list[OffloadedPrefix] = []
        self._bytes_per_token = 0.0

    def __len__(self) -> int:
        return len(self._held)

    @property
    def n_tokens(self) -> int:
        """Of all of them."""
        return sum(length(prefix.content) for prefix in self._held)

    def has_room(self, n_tokens: int) -> bool:
        """Whether the machine has memory to spare for the state of so many tokens."""
        wanted = self._bytes_per_token * n_tokens
        if wanted < _LARGE:
            return True
        room = host_room()
        return room is None or room.free > 2 * wanted

    def put(self, content: Content, state: bytes, limit: int) -> None:
        """Hold a state, and of all of them at most `limit` tokens."""
        self._bytes_per_token = len(state) / max(1, length(content))
        self.drop_beginnings_of(content)
        self._held.append(OffloadedPrefix(content, state))
        while self.n_tokens > limit:
            self._held.pop(0)

    def match(self, content: Content) -> tuple[OffloadedPrefix | None, int]:
        """Return the one that shares the longest prefix with `content`, and its length."""
        shared = [(common_prefix(prefix.content, content), i) for i, prefix in enumerate(self._held)]
        n, i = max(shared, default=(0, 0))  # of two, the more recent one
        return (self._held[i], n) if n else (None, 0)

    def take(self, prefix: OffloadedPrefix) -> None:
        """Give one up that is in the context again."""
        self._held = [other for other in self._held if other is not prefix]

    def drop_beginnings_of(self, content: Content) -> None:
        """Give up those that `content` begins with."""
        self._held = [p for p in self._held if common_prefix(p.content, content) < length(p.content)]

    def clear(self) -> None:
        """Give up all."""
        self._held.clear()
