"""RemoteImage: an image behind an http URL, which is fetched when somebody needs it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

from llava_native.errors import CancelledError
from llava_native.urls import shown, split_url

__all__ = ["RemoteImage"]

_LOOK_S: Final = 0.25


class RemoteImage:
    """An image that is elsewhere until somebody needs it, and here from then on.

    Parameters
    ----------
    url : str
        Of http or https.

    Raises
    ------
    InvalidInputError
        It is no such URL.

    Notes
    -----
    Threads: any. A fetch that failed is tried again by the next who needs it.
    """

    def __init__(self, url: str) -> None:
        self.url = url.strip()
        split_url(self.url)
        self._fetching = threading.Lock()
        self._file: bytes | None = None

    @property
    def is_here(self) -> bool:
        """Whether ``read`` returns at once."""
        return self._file is not None

    def read(self, is_wanted: Callable[[], bool] = lambda: True) -> bytes:
        """Return the encoded file, fetching it if it is not here, as ``llava_native.fetch.load_url`` does."""
        while not self._fetching.acquire(timeout=_LOOK_S):
            if not is_wanted():
                raise CancelledError("nobody waits for this image any more")
        try:
            if self._file is None:
                from llava_native.fetch import load_url  # pays its imports only when used

                self._file = load_url(self.url, is_wanted=is_wanted)
            return self._file
        finally:
            self._fetching.release()

    def __repr__(self) -> str:
        return f"RemoteImage({shown(self.url)!r})"
