"""Readahead: a file is brought into memory in pieces, so that a load can be stopped between them.

llama.cpp maps a file in one system call that returns when all of it is there, which takes a slow disk
minutes, and which nothing stops.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from llava_native.machine import host_room

__all__ = ["read_ahead"]

_PIECE = 4 << 20  # bytes
_STEP = 256 << 10  # a system drops single pages, too; to look closer than this finds little, and takes long
_AHEAD = 4 * _PIECE  # asked of the disk before they are waited for


def read_ahead(path: str | os.PathLike[str], check: Callable[[], object]) -> None:
    """Read a file into the system's cache of pages, if it fits there; of what is there nothing is read.

    Parameters
    ----------
    path : path-like
    check : callable
        Called before each piece of 4 MiB; what it raises ends the reading.

    Raises
    ------
    OSError
        The file cannot be read.
    """
    if not hasattr(os, "RWF_NOWAIT"):  # macOS maps a file without reading it
        return
    with Path(path).open("rb", buffering=0) as file:
        size, number = os.fstat(file.fileno()).st_size, file.fileno()
        room = host_room()
        if room is not None and size > room.free:
            return
        piece = bytearray()  # made when the first one has to be read
        for start in range(0, size, _PIECE):
            check()
            end = min(start + _PIECE, size)
            if not all(_is_there(number, offset) for offset in (*range(start, end, _STEP), end - 1)):
                os.posix_fadvise(number, start, _AHEAD, os.POSIX_FADV_WILLNEED)
                piece = piece or bytearray(min(_PIECE, size))
                os.preadv(number, [piece], start)


def _is_there(number: int, offset: int) -> bool:
    """Whether a byte can be read without the disk."""
    try:
        return os.preadv(number, [bytearray(1)], offset, os.RWF_NOWAIT) == 1
    except OSError:  # it would have to wait, or this file system does not tell
        return False
