"""Lookup: guesses of an answer's next tokens, read from the text before them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from llava_native.engine.sequences import ImageSpan

if TYPE_CHECKING:
    from llava_native.engine.sequences import Content

__all__ = ["Lookup"]

_N_ALIKE = 3  # tokens that must agree before what followed them is believed


class Lookup:
    """What followed the same few tokens last time, in the prompt or in the answer.

    A guess costs no evaluation of its own: its tokens are evaluated together with the answer's last one, and
    those that the sampler chooses are kept. A wrong one costs their share of that evaluation, so a guess
    grows while guesses are right and shrinks where one was wrong.

    Parameters
    ----------
    content : list of Segment
        The prompt, and the answer so far.
    limit : int
        Tokens of a guess, at most.
    is_end : callable
        Whether a token ends answers: none is guessed.
    """

    def __init__(self, content: Content, limit: int, is_end: Callable[[int], bool]) -> None:
        self._tokens: list[int | None] = []  # None: an image
        self._after: dict[tuple[int | None, ...], int] = {}  # tokens: where what followed them begins
        self._limit = self._hope = limit
        self._is_end = is_end
        for segment in content:
            self.extend([None] if isinstance(segment, ImageSpan) else segment)

    def extend(self, tokens: Iterable[int | None]) -> None:
        """Note what comes next."""
        for token in tokens:
            self._after[tuple(self._tokens[-_N_ALIKE:])] = len(self._tokens)
            self._tokens.append(token)

    def guess(self, room: int) -> list[int]:
        """Return what may come next, at most `room` tokens."""
        start = self._after.get(tuple(self._tokens[-_N_ALIKE:]))
        if start is None or len(self._tokens) < _N_ALIKE:
            return []
        out: list[int] = []
        for token in self._tokens[start : start + max(0, min(room, self._hope))]:
            if token is None or self._is_end(token):
                break
            out.append(token)
        return out

    def learn(self, n_guessed: int, n_right: int) -> None:
        """Note how good a guess was."""
        self._hope = min(2 * self._hope, self._limit) if n_right == n_guessed else max(1, n_right)
