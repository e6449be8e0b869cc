"""Frames over a socket: a kind, a number, JSON, bytes, and file descriptors."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import threading
from array import array
from collections import deque
from collections.abc import Sequence
from queue import SimpleQueue
from typing import IO, Any, Final, NamedTuple

__all__ = ["Channel", "Frame", "Kind", "WireError"]

_HEADER: Final = struct.Struct("<BBIII")  # kind, descriptors, number, bytes of JSON, bytes
_LIMIT: Final = 256 << 20
_CHUNK: Final = 1 << 16
_MAX_FDS: Final = 8
_INT: Final = array("i").itemsize
_ANCILLARY: Final = socket.CMSG_LEN(_MAX_FDS * _INT)
_FLAGS: Final = getattr(socket, "MSG_CMSG_CLOEXEC", 0)


class Kind:
    """What frames are."""

    LOAD, READY, PROGRESS, LOG = 1, 2, 3, 4
    CALL, REPLY, ERROR = 10, 11, 12
    SUBMIT, TOKEN, DROP, HOLD, GO_ON, FREE_SAMPLER, CLOSE = 20, 21, 22, 23, 24, 25, 26


class WireError(ValueError):
    """What came is no frame."""


class Frame(NamedTuple):
    """One message; whoever takes it owns its file descriptors."""

    kind: int
    number: int
    data: Any = None
    blob: bytes = b""
    fds: Sequence[int] = ()


class Channel:
    """One end of a socket.

    Notes
    -----
    Threads: any number send; one receives. ``send`` may be called from a destructor that runs inside
    another ``send``: frames are queued first, and who has the lock sends them all.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._waiting: SimpleQueue[tuple[bytes, IO[bytes] | None]] = SimpleQueue()
        self._sending = threading.Lock()
        self._buffer = bytearray()
        self._fds: deque[int] = deque()
        self.receiver: threading.Thread | None = None  # a thread that must never wait to send

    def send(
        self, kind: int, number: int = 0, data: Any = None, blob: bytes = b"", file: IO[bytes] | None = None
    ) -> None:
        """Send a frame; one that nobody receives any more is dropped. `file` is closed when it is sent."""
        text = b"" if data is None else json.dumps(data, separators=(",", ":"), default=_number).encode()
        header = _HEADER.pack(kind, file is not None, number, len(text), len(blob))
        self._waiting.put((header + text + blob, file))
        if self.receiver is threading.current_thread():
            # both ends would wait for each other if who must read were the one that writes
            threading.Thread(target=self._send_all, daemon=True).start()
        else:
            self._send_all()

    def _send_all(self) -> None:
        while not self._waiting.empty() and self._sending.acquire(blocking=False):
            try:
                self._flush()
            finally:
                self._sending.release()

    def _flush(self) -> None:
        try:
            while not self._waiting.empty():  # nobody else takes any: the lock is held
                data, file = self._waiting.get_nowait()
                if file is not None:
                    with file:
                        n = socket.send_fds(self._socket, [data], [file.fileno()])
                        data = data[n:]
                self._socket.sendall(data)
        except OSError:
            pass
        except BaseException:  # a frame may be half sent, and nothing after it would be understood
            self.shutdown()
            raise

    def receive(self) -> Frame | None:
        """Wait for a frame; None when the other end is gone.

        Raises
        ------
        WireError
            It is none.
        """
        if not self._have(_HEADER.size):
            return None
        kind, n_fds, number, n_text, n_blob = _HEADER.unpack_from(self._buffer)
        if n_text + n_blob > _LIMIT or n_fds > _MAX_FDS:
            raise WireError(f"a frame of {n_text} + {n_blob} bytes")
        start = _HEADER.size + n_text
        if not self._have(start + n_blob):
            return None
        text, blob = bytes(self._buffer[_HEADER.size : start]), bytes(self._buffer[start : start + n_blob])
        del self._buffer[: start + n_blob]
        if n_fds > len(self._fds):
            raise WireError("a frame lacks its file descriptors")
        fds = [self._fds.popleft() for _ in range(n_fds)]
        try:
            return Frame(kind, number, json.loads(text) if text else None, blob, fds)
        except (ValueError, RecursionError) as exc:
            close_all(fds)
            raise WireError(str(exc)) from exc

    def _have(self, n: int) -> bool:
        while len(self._buffer) < n:
            size = max(_CHUNK, n - len(self._buffer))
            try:  # as socket.recv_fds, which takes as long as all the rest
                data, messages, _, _ = self._socket.recvmsg(size, _ANCILLARY, _FLAGS)
            except OSError:
                return False
            for level, kind, numbers in messages:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    self._fds.extend(memoryview(numbers[: len(numbers) // _INT * _INT]).cast("i"))
            if not data:
                return False
            self._buffer += data
        return True

    def shutdown(self) -> None:
        """Tell the other end, and whoever is receiving here, that this is over."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the socket, and the descriptors that nobody took."""
        close_all(self._fds)
        self._fds.clear()
        self._socket.close()


def _number(value: Any) -> int | float:
    """Return a number of NumPy's, or the like, as JSON has it."""
    if hasattr(value, "__index__"):
        return int(value)
    if hasattr(value, "__float__"):
        return float(value)
    raise TypeError(f"an isolated process cannot be told of {value!r}")


def close_all(fds: Sequence[int] | deque[int]) -> None:
    """Close file descriptors."""
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)
