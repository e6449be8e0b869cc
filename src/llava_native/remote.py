"""Images behind URLs: those of http are fetched once, when they are needed, on a thread of their own."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from typing import Any

from llava_native.data_url import decode_data_url, is_data_url

__all__ = ["RemoteImage", "at_hand"]


class RemoteImage:
    """An image that is somewhere else until somebody needs it.

    Parameters
    ----------
    url : str
        Of http or https; see ``llava_native.fetch.load_url``, which fetches it.

    Notes
    -----
    Threads: any. The one that fetches it is a daemon, and never waited for when Python ends.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._starting = threading.Lock()
        self._data: Future[bytes] | None = None

    def fetch(self) -> Future[bytes]:
        """Return the encoded file, or what ``load_url`` raises, in future; the first call begins."""
        with self._starting:
            if self._data is None:
                self._data = Future()
                thread = threading.Thread(
                    target=_fetch, args=(self.url, self._data), name="llava_native fetch", daemon=True
                )
                thread.start()
            return self._data

    def __repr__(self) -> str:
        return f"RemoteImage({self.url!r})"


def at_hand(image: Any) -> Any:
    """Return the encoded file behind a URL, waiting for one that must be fetched; anything else as it is.

    Raises
    ------
    ImageDecodeError, ImageTooLargeError, DownloadError, InvalidInputError
        There is none.
    """
    if isinstance(image, RemoteImage):
        return image.fetch().result()
    return decode_data_url(image) if is_data_url(image) else image


def _fetch(url: str, data: Future[bytes]) -> None:
    try:
        from llava_native.fetch import load_url  # pays its imports only when used

        data.set_result(load_url(url))
    except BaseException as exc:
        data.set_exception(exc)
