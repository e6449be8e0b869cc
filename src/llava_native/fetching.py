"""Fetching: threads that get images of URLs, a few at once, while whoever waits does something else."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final, TypeAlias
from weakref import ref

from llava_native.errors import CancelledError, detached
from llava_native.remote import RemoteImage

if TYPE_CHECKING:
    from llava_native.engine import Request

__all__ = ["Fetching"]

_AT_ONCE: Final = 16
_Done: TypeAlias = "Callable[[Request, BaseException | None], object]"
_logger = logging.getLogger("llava_native")


class Fetching:
    """Fetches images, each once however many wait for it, in the order in which they were asked for.

    Notes
    -----
    Threads: any. Its own are daemons, 16 at most, and end when nothing is left to do. A fetch that nobody
    waits for any more is not begun, or ends: where it waits for bytes within a quarter of a second, where it
    connects after 10 seconds at most.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a destructor may run, and begin anything, where it is held
        self._waiters: dict[RemoteImage, list[tuple[ref[Request], _Done]]] = {}
        self._next: deque[RemoteImage] = deque()
        self._n_threads = 0

    def fetch(self, image: RemoteImage, request: Request, done: _Done) -> None:
        """Get an image of a request, on another thread.

        Parameters
        ----------
        image : RemoteImage
        request : Request
            Not kept alive; when it is over nobody waits here.
        done : callable
            ``done(request, error)``, on any thread, unless nobody waits: None when the image is here.
        """
        with self._lock:
            waiters = self._waiters.setdefault(image, [])
            waiters.append((ref(request), done))
            if len(waiters) == 1:
                self._next.append(image)
            if not self._next or self._n_threads == _AT_ONCE:
                return
            self._n_threads += 1
        try:
            threading.Thread(target=self._run, name="llava_native fetch", daemon=True).start()
        except RuntimeError as exc:  # the system has none to give
            self._fail(exc)

    def _fail(self, error: RuntimeError) -> None:
        """Give up a thread that did not start, and with the last one what waits for it."""
        failed = []
        with self._lock:
            self._n_threads -= 1
            while self._next and not self._n_threads:
                failed += self._waiters.pop(self._next.popleft())
        _tell(failed, error)

    def _run(self) -> None:
        while (image := self._take()) is not None:
            error = _fetched(image, partial(self._is_wanted, image))
            if isinstance(error, CancelledError):
                with self._lock:
                    self._next.append(image)  # somebody may have come meanwhile
                continue
            with self._lock:
                waiters = self._waiters.pop(image)
            _tell(waiters, error)
            del image, error, waiters  # the next image may be long in coming

    def _take(self) -> RemoteImage | None:
        """Return the next image that somebody waits for; None ends this thread."""
        while True:
            with self._lock:
                if not self._next:
                    self._n_threads -= 1
                    return None
                image = self._next.popleft()
                forgotten = None if self._is_wanted(image) else self._waiters.pop(image)
            if forgotten is None:
                return image

    def _is_wanted(self, image: RemoteImage) -> bool:
        """Tell whether anybody waits for an image."""
        with self._lock:
            requests = [reference() for reference, _ in self._waiters[image]]
        return any(request is not None and not request.is_over for request in requests)


def _fetched(image: RemoteImage, is_wanted: Callable[[], bool]) -> BaseException | None:
    """Fetch an image; return what went wrong."""
    try:
        image.read(is_wanted)
    except BaseException as exc:
        return exc
    return None


def _tell(waiters: list[tuple[ref[Request], _Done]], error: BaseException | None) -> None:
    """Call who waits, each with an error of its own: what raises it is kept by its traceback."""
    for n, (reference, done) in enumerate(waiters):
        request = reference()
        if request is not None and not request.ended:
            try:
                done(request, detached(error) if n and isinstance(error, Exception) else error)
            except Exception:  # a mistake of ours must not end the thread
                _logger.exception("an image was fetched in vain")
