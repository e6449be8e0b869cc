"""Fetching: threads that get images of URLs, a few at once, while whoever waits does something else."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, TypeAlias
from weakref import ref

from llava_native.remote import RemoteImage

if TYPE_CHECKING:
    from llava_native.engine import Request

__all__ = ["Fetching"]

_AT_ONCE: Final = 16
_Done: TypeAlias = "Callable[[Request, BaseException | None], object]"


class Fetching:
    """Fetches images, each once however many wait for it, in the order in which they were asked for.

    Notes
    -----
    Threads: any. Its own are daemons, 16 at most, and end when nothing is left to do. A fetch that nobody
    waits for any more is not begun; one that was begun ends by its own limit of time.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
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
            ``done(request, error)``, on any thread, unless nobody waits: None when the image is here. It must
            not raise.
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
            error = _fetched(image)
            with self._lock:
                waiters = self._waiters.pop(image)
            _tell(waiters, error)
            del image, error, waiters  # the next image may be long in coming

    def _take(self) -> RemoteImage | None:
        """Return the next image that somebody waits for; None ends this thread."""
        dropped = []  # after the lock is released: a destructor may run
        with self._lock:
            while self._next:
                image = self._next.popleft()
                if any(_waits(request) for request, _ in self._waiters[image]):
                    return image
                dropped.append(self._waiters.pop(image))
            self._n_threads -= 1
        return None


def _waits(reference: ref[Request]) -> bool:
    request = reference()
    return request is not None and not request.is_over


def _tell(waiters: list[tuple[ref[Request], _Done]], error: BaseException | None) -> None:
    for reference, done in waiters:
        request = reference()
        if request is not None:
            done(request, error)


def _fetched(image: RemoteImage) -> BaseException | None:
    """Fetch an image; return what went wrong."""
    try:
        image.read()
    except BaseException as exc:
        return exc
    return None
