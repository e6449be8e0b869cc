"""The end of the interpreter: engines end before it does, and threads that wait for them end in silence."""

from __future__ import annotations

import atexit
import threading
import weakref
from typing import Protocol

from llava_native.errors import ClosedError

__all__ = ["close_at_exit", "closed_error"]


class _Closable(Protocol):
    def close(self) -> None: ...


_open: weakref.WeakSet[_Closable] = weakref.WeakSet()
_exiting = False


def close_at_exit(thing: _Closable) -> None:
    """Have something closed before the interpreter ends, if it lives so long.

    A thread that is inside the native library then would abort, and nobody would hear a child process.
    """
    _open.add(thing)


def closed_error() -> BaseException:
    """Return what a call to a closed ``Llava`` raises.

    While the interpreter ends only daemon threads can be in one. They would be ended there in silence; so is,
    by SystemExit, the one whose engine ended first.
    """
    if _exiting and threading.current_thread() is not threading.main_thread():
        return SystemExit()
    return ClosedError("this Llava was closed")


@atexit.register
def _close_all() -> None:
    global _exiting
    _exiting = True
    for thing in list(_open):
        thing.close()
