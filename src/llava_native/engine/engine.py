"""Engine: the thread that a scheduler runs on, and the ways into it."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from functools import partial
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from llava_native._lora import adapters_of
from llava_native._native import serve_loop
from llava_native.engine.contents import content_of
from llava_native.engine.embedding_cache import DiskCache
from llava_native.engine.encoding import Encoding
from llava_native.engine.lookup import Lookup
from llava_native.engine.request import Event
from llava_native.engine.scheduler import Scheduler
from llava_native.errors import BusyError, ForkError
from llava_native.exiting import close_at_exit, closed_error
from llava_native.limits import check_range
from llava_native.threads import yield_to_others

if TYPE_CHECKING:
    from llava_native._context import Context
    from llava_native.engine.request import Request
    from llava_native.engine.sequences import Content, State
    from llava_native.engine.stats import Stats
    from llava_native.prompt import Piece
    from llava_native.stream import TokenStream

__all__ = ["Engine", "n_sequences"]

_POLL_S = 0.05  # how often limits of time are looked at, while nothing else happens
_DROP_S = 1.0
_N_PREFIXES = 12  # that are cached at most; a sequence costs next to nothing
_logger = logging.getLogger("llava_native")
_T = TypeVar("_T")
_Call: TypeAlias = "Callable[[], Any] | None"


class Engine:
    """Answers requests of any number of threads, on a thread of its own.

    Parameters
    ----------
    context : Context
        Used by this engine only, until ``close``.
    n_running : int
        Requests that run at once.
    prefix_cells : int
        Cells that the prefix cache may hold; 0 turns it off.
    offload : bool, default True
        Whether prefixes that leave the context go to main memory.
    embedding_bytes : int
        Bytes of image rows to keep; 0 keeps none.
    cache_dir : str or os.PathLike, optional
        Folder for image rows, shared with other processes.
    max_waiting : int
        Requests that may wait to run.
    prompt_lookup : int
        Tokens to guess ahead, at most; 0 for none.

    Notes
    -----
    The thread starts with the first request. Whatever is done to the scheduler is a call that its thread
    takes from a queue, so there is no lock, and a request may be dropped from a destructor.
    """

    def __init__(
        self,
        context: Context,
        *,
        n_running: int,
        prefix_cells: int,
        offload: bool = True,
        embedding_bytes: int,
        cache_dir: str | os.PathLike[str] | None = None,
        max_waiting: int = 1024,
        prompt_lookup: int = 0,
    ) -> None:
        self._calls: SimpleQueue[_Call] = SimpleQueue()
        disk = DiskCache(cache_dir) if cache_dir is not None else None
        self._encoding = Encoding(_poster(self._calls), disk)
        self._scheduler = Scheduler(
            context,
            self._encoding,
            n_running=n_running,
            prefix_cells=prefix_cells,
            offload=offload,
            embedding_bytes=embedding_bytes,
            lookup=partial(Lookup, limit=prompt_lookup, is_end=context.model.is_eog)
            if prompt_lookup
            else None,
        )
        self.model = context.model
        self.adapters = repr([(adapter.fingerprint, adapter.scale) for adapter in adapters_of(context)])
        self.n_running = n_running
        self.streams: dict[int, weakref.ref[TokenStream]] = {}  # open ones, by id
        self._max_waiting = max_waiting
        self._starting = threading.Lock()
        self._closed = self._serves_loop = False
        self._pid = os.getpid()
        # an engine that is dropped ends its thread, which knows the scheduler only
        self._threads: list[threading.Thread] = []
        self._finalizer = weakref.finalize(self, _dropped, self._calls, self._threads)
        self._finalizer.atexit = False
        close_at_exit(self)

    def check(self) -> None:
        """Raise unless requests can be made here."""
        if self._closed:
            raise closed_error()
        if self._pid != os.getpid():
            raise ForkError("this Llava was made before os.fork(); make it in the child, or use spawn")

    def submit(self, request: Request) -> None:
        """Queue a request.

        Raises
        ------
        BusyError
            Too many requests wait already.
        ClosedError, ForkError
        """
        self.check()
        asked = len(self._scheduler.queued) + len(self._scheduler.running)
        if asked >= self._max_waiting + self.n_running:
            raise BusyError(f"{self._max_waiting} requests wait already; see max_waiting")
        self._scheduler.queued.add(request)
        request.submitted = request.since = time.perf_counter()
        self._calls.put(partial(self._scheduler.submit, request))
        if not self._threads:
            self._start()
        if self._closed:  # whoever closed it meanwhile may not have seen the request
            request.deliver(Event(error=closed_error()))

    def _start(self) -> None:
        with self._starting:
            if not self._threads and not self._closed:
                thread = threading.Thread(
                    target=_run, args=(self._scheduler, self._calls), name="llava_native", daemon=True
                )
                thread.start()
                self._threads.append(thread)

    def export(self, make_pieces: Callable[[], Iterable[Piece]]) -> tuple[Content, State] | None:
        """Return what the prefix cache holds of the beginning of a prompt, and its state."""
        if not self._threads:
            return None  # nothing was evaluated yet
        return self._call(partial(self._scheduler.prefixes.export, content_of(make_pieces())))

    def adopt(self, content: Content, state: State) -> bool:
        """Give the prefix cache a state that was exported; return whether there is room for it.

        Raises
        ------
        InvalidInputError
            It is no state of this content.
        """
        self._start()
        return self._call(partial(self._scheduler.adopt, content, state))

    def _call(self, function: Callable[[], _T]) -> _T:
        """Call a function on the engine's thread."""
        self.check()
        future: Future[_T] = Future()

        def call() -> None:
            try:
                future.set_result(function())
            except BaseException as exc:
                future.set_exception(exc)

        self._calls.put(call)
        self.check()  # as in ``submit``
        return future.result()

    def wake(self) -> None:
        """Have the scheduler look at its requests now. May be called from a destructor."""
        self._calls.put(_nothing)

    def serve_loop(self) -> None:
        """Let the thread of an event loop go first from now on: it waits for an answer of this engine."""
        if not self._serves_loop:
            self._serves_loop = True
            serve_loop()
            self._calls.put(yield_to_others)
            self._calls.put(self._encoding.serve_loop)

    def drop(self, request: Request) -> None:
        """End a request, whatever its stage. May be called from a destructor."""
        request.stop.cancel()
        self._calls.put(_nothing)

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._closed

    def stats(self) -> Stats:
        """Return the counters."""
        return self._scheduler.stats()

    def close(self) -> None:
        """End all requests, and the thread. May be called again."""
        if self._pid != os.getpid():
            return
        with self._starting:
            self._closed = True
        self._scheduler.stop()
        for thread in self._threads:  # whoever closes it too waits as well
            self._calls.put(None)
            thread.join()
        self._finalizer.detach()


def n_sequences(n_running: int, n_ctx: int, n_batch: int, prefix_cells: int | None) -> int:
    """Return how many sequences a context needs: those that run, and those that the cache holds."""
    check_range("n_seq_max", n_running, 1, 256)
    check_range("prefix_cache", prefix_cells or 0, 0, 2**31 - 1)
    if prefix_cells == 0:
        return n_running
    return max(n_running, min(n_running + _N_PREFIXES, n_ctx or n_batch, n_batch, 256))


def _dropped(calls: SimpleQueue[_Call], threads: list[threading.Thread]) -> None:
    """End the thread of an engine that nobody closed, waiting for it only as long as a destructor may."""
    calls.put(None)
    for thread in threads:
        if thread is not threading.current_thread():
            thread.join(_DROP_S)


def _nothing() -> None:
    pass


def _poster(calls: SimpleQueue[_Call]) -> Callable[[Callable[[Any], None], Any], None]:
    return lambda function, argument: calls.put(partial(function, argument))


def _run(scheduler: Scheduler, calls: SimpleQueue[_Call]) -> None:
    """Serve until told to end."""
    busy = False
    while True:
        try:
            if not _take(scheduler, calls, busy):
                break
            busy = scheduler.step()
        except BaseException as exc:  # a mistake of ours must not leave anybody waiting
            _logger.exception("the engine failed")
            with contextlib.suppress(Exception):
                scheduler.fail(exc)
            busy = False
    while not calls.empty():  # a request that came too late must hear of it
        with contextlib.suppress(Exception):
            (calls.get_nowait() or _nothing)()
    scheduler.close()


def _take(scheduler: Scheduler, calls: SimpleQueue[_Call], busy: bool) -> bool:
    """Do what was asked, waiting for it unless `busy`; return whether to go on."""
    with contextlib.suppress(Empty):
        while True:
            call = calls.get_nowait() if busy else calls.get(timeout=None if scheduler.idle else _POLL_S)
            if call is None:
                return False
            call()
            del call  # a request that is over must not stay here
            busy = True  # at least one step before the next pause
    return True
