"""Token bytes into text: characters that span tokens, and stop strings that never leak."""

from __future__ import annotations

import codecs
from collections.abc import Iterable

__all__ = ["StopSplitter", "Utf8Decoder"]


class Utf8Decoder:
    """Turn the bytes of tokens into text, holding back the first bytes of an unfinished character."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, data: bytes) -> str:
        """Return the text that these bytes complete; it may be empty."""
        return self._decoder.decode(data)

    def finish(self) -> str:
        """Return what is left: U+FFFD for a character that never came to its end."""
        return self._decoder.decode(b"", final=True)


class StopSplitter:
    """Cut text at the first stop string, holding back whatever may be the start of one.

    Parameters
    ----------
    stops : iterable of str
        Empty strings are ignored.
    """

    def __init__(self, stops: Iterable[str]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""
        self.stopped = False

    def feed(self, text: str) -> str:
        """Return the text that is safe to show; ``stopped`` tells whether a stop string ended it."""
        if not self._stops:
            return text
        self._held += text
        # what is complete first wins, however the text is cut; of two with one end, the longer
        found = [(start + len(stop), start) for stop in self._stops if (start := self._held.find(stop)) >= 0]
        if found:
            self.stopped = True
            shown, self._held = self._held[: min(found)[1]], ""
            return shown
        keep = max(self._partial(stop) for stop in self._stops)
        cut = len(self._held) - keep
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown

    def finish(self) -> str:
        """Return the text that was held back for a stop string that never came."""
        shown, self._held = self._held, ""
        return shown

    def _partial(self, stop: str) -> int:
        """Length of the longest end of the held text that is a start of `stop`."""
        for length in range(min(len(stop) - 1, len(self._held)), 0, -1):
            if self._held.endswith(stop[:length]):
                return length
        return 0
