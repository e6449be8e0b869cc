"""Worker: a child process, the thread that hears it, and what becomes of both."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import signal
import socket
import subprocess
import tempfile
import threading
import weakref
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import IO, TYPE_CHECKING, Any, Final

from llava_native.errors import CancelledError, NativeAbort
from llava_native.exiting import closed_error
from llava_native.isolation.faults import from_data
from llava_native.isolation.interpreter import command
from llava_native.isolation.wire import Channel, Frame, Kind, WireError, close_all

if TYPE_CHECKING:
    from llava_native._cancel import CancelToken

__all__ = ["Worker", "numbers"]

_CODE: Final = "from llava_native.isolation.child import main; main(int(sys.argv[1]), int(sys.argv[2]))"
_POLL_S: Final = 0.05
_GOODBYE_S: Final = 10.0
_TAIL_BYTES: Final = 65536
_TAIL_LINES: Final = 12
_REASONS: Final = ("Fatal Python error", "llava_native: the native library aborted")
numbers = itertools.count(1)  # of calls, requests and samplers, over all workers
_logger = logging.getLogger("llava_native")


class Worker:
    """A child process that has loaded what `options` say.

    Parameters
    ----------
    options : dict
        What ``Parts`` takes, as JSON.
    events : callable
        ``events(frame)`` is told of the tokens and errors of requests, and ``events(error)`` of the end of
        the process; on this object's own thread.
    progress, cancel
        As ``Llava`` takes them.

    Raises
    ------
    NativeAbort
        The process died while loading.
    LlavaError, OSError
        What loading raised there.

    Notes
    -----
    The socket is the only tie: the child ends when it closes, so it never outlives this process.
    """

    def __init__(
        self,
        options: dict[str, Any],
        events: Callable[[Frame | BaseException], None],
        progress: Callable[[float], Any] | None = None,
        cancel: CancelToken | None = None,
    ) -> None:
        ours, theirs = socket.socketpair()
        self._pid = os.getpid()
        self._channel = Channel(ours)
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - what the child writes to stderr, should it die
        self._link = _Link(self._channel, self._errors, events)
        try:
            with theirs:
                self._link.process = subprocess.Popen(
                    command(_CODE, str(theirs.fileno()), str(os.getpid())),
                    pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                    stderr=self._errors,
                )  # fmt: skip
        except BaseException:
            self._channel.close()
            self._errors.close()
            raise
        self._thread = threading.Thread(target=self._link.run, name="llava_native isolated", daemon=True)
        self._channel.receiver = self._thread
        self._thread.start()
        self.pid = self._link.process.pid
        self._finalizer = weakref.finalize(self, _let_go, os.getpid(), self._channel)
        self._finalizer.atexit = False
        try:
            self.facts = self._load(options, progress, cancel)
        except BaseException:
            self.kill()
            raise

    def _load(
        self,
        options: dict[str, Any],
        progress: Callable[[float], Any] | None,
        cancel: CancelToken | None,
    ) -> dict[str, Any]:
        level = _logger.getEffectiveLevel()
        wanted = {**options, "log_level": level, "wants_progress": progress is not None}
        self._channel.send(Kind.LOAD, data=wanted)
        while True:
            if cancel is not None:
                cancel.raise_if_cancelled()
            try:
                told = self._link.loading.get(timeout=_POLL_S if cancel is not None else None)
            except Empty:
                continue
            if isinstance(told, BaseException):
                raise told
            if told.kind == Kind.READY:
                return dict(told.data)
            if progress is not None and progress(float(told.data)) is False:
                raise CancelledError("loading was stopped by its progress callback")

    @property
    def dead(self) -> bool:
        """Whether the process is gone."""
        return self._link.end is not None

    @property
    def end(self) -> BaseException | None:
        """Why it is gone."""
        return self._link.end

    def send(
        self, kind: int, number: int, data: Any = None, blob: bytes = b"", file: IO[bytes] | None = None
    ) -> None:
        """Tell the child something; one that is gone does not hear it, nor one of before ``os.fork()``."""
        if self._pid == os.getpid():
            self._channel.send(kind, number, data, blob, file)

    def call(
        self,
        name: str,
        data: dict[str, Any],
        file: IO[bytes] | None = None,
        *,
        blob: bytes = b"",
        number: int | None = None,
        cancel: CancelToken | None = None,
    ) -> Frame:
        """Ask the child, and wait for its answer.

        Raises
        ------
        NativeAbort
            The child died.
        LlavaError, and others
            What it raised.
        """
        number = next(numbers) if number is None else number
        answer: SimpleQueue[Frame | BaseException] = SimpleQueue()
        self._link.calls[number] = answer
        try:
            if self._link.end is not None:  # after `calls` was changed: else nobody would tell
                raise self._link.end
            self._channel.send(Kind.CALL, number, {**data, "name": name}, blob, file)
            while True:
                with contextlib.suppress(Empty):
                    told = answer.get(timeout=None if cancel is None else _POLL_S)
                    break
                if cancel is not None:
                    cancel.raise_if_cancelled()
        finally:
            self._link.calls.pop(number, None)
        if isinstance(told, BaseException):
            raise told
        return told

    def close(self) -> None:
        """End the process in good order; kill it where that takes long. May be called again."""
        self._link.closing = True
        self._channel.send(Kind.CLOSE)
        with contextlib.suppress(subprocess.TimeoutExpired):
            if self._link.process is not None:
                self._link.process.wait(_GOODBYE_S)
        self.kill()

    def kill(self) -> None:
        """End the process now, and wait until it is gone."""
        self._link.closing = True
        if self._link.process is not None:
            self._link.process.kill()
        self._channel.shutdown()
        if threading.current_thread() is not self._thread:
            self._thread.join()
        self._finalizer.detach()


class _Link:
    """What the receiving thread knows; not the Worker, which ends when nobody else knows it."""

    def __init__(
        self, channel: Channel, errors: IO[bytes], events: Callable[[Frame | BaseException], None]
    ) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self.calls: dict[int, SimpleQueue[Frame | BaseException]] = {}
        self.loading: SimpleQueue[Frame | BaseException] = SimpleQueue()
        self.closing = False
        self.end: BaseException | None = None
        self._channel = channel
        self._errors = errors
        self._events = events

    def run(self) -> None:
        """Pass on what the child says, until it is gone; then tell everybody who waits."""
        try:
            while (frame := self._channel.receive()) is not None:
                self._take(frame)
        except Exception as exc:  # it speaks nonsense: it is not to be trusted with anything
            _logger.exception("the isolated process is ended: what it says makes no sense")
            if self.process is not None:
                self.process.kill()
            why = f" ({type(exc).__name__}: {exc})" if not isinstance(exc, WireError) else f" ({exc})"
        else:
            why = ""
        self.end = self._reap(why)
        self.loading.put(self.end)
        for answer in list(self.calls.values()):
            answer.put(self.end)
        self._events(self.end)
        self._channel.close()
        self._errors.close()

    def _take(self, frame: Frame) -> None:
        if frame.kind in (Kind.READY, Kind.PROGRESS):
            self.loading.put(frame)
        elif frame.kind == Kind.LOG:
            level, text = frame.data
            _logger.log(int(level), "%s", str(text))
        elif frame.kind == Kind.ERROR and frame.number == 0:
            self.loading.put(from_data(frame.data))
        elif frame.kind == Kind.REPLY or (frame.kind == Kind.ERROR and frame.number in self.calls):
            answer = self.calls.get(frame.number)
            if answer is not None:
                answer.put(frame if frame.kind == Kind.REPLY else from_data(frame.data))
            else:
                close_all(frame.fds)
        else:
            self._events(frame)

    def _reap(self, why: str) -> BaseException:
        """Wait for the process, so that no zombie stays; return what its end means."""
        assert self.process is not None
        try:
            status = self.process.wait(_GOODBYE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            status = self.process.wait()
        if self.closing:
            return closed_error()
        with contextlib.suppress(ValueError):
            why = why or f" was killed by {signal.Signals(-status).name}" if status < 0 else why
        return NativeAbort(
            f"the isolated process{why or f' ended with status {status}'}; the next request starts it again",
            code=status,
            log=self._tail(),
        )

    def _tail(self) -> tuple[str, ...]:
        """Return why it ended, where it told, and the last lines of what it wrote to stderr."""
        size = self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(0, size - _TAIL_BYTES))
        lines = [line for line in self._errors.read().decode("utf-8", "replace").splitlines() if line.strip()]
        why = [line for line in lines[:-_TAIL_LINES] if line.startswith(_REASONS)]
        return (*why, *lines[-_TAIL_LINES:])


def _let_go(pid: int, channel: Channel) -> None:
    """Hang up on the child of a Worker that nobody closed; its thread reaps it."""
    if pid == os.getpid():
        channel.shutdown()
