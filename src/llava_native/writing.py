"""Files that are written whole or not at all, and errors that say which file it was."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

__all__ = ["named", "replacing"]


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Give a new file, which takes the place of `path` when it is whole; only its owner may read it."""
    with named(path):
        try:
            descriptor, name = tempfile.mkstemp(prefix=".", suffix=".part", dir=path.parent)
        except OSError as exc:
            exc.filename = os.fspath(path)  # nobody knows the other name
            raise
        try:
            with os.fdopen(descriptor, "w+b") as file:
                yield file
                file.flush()
                os.fsync(descriptor)
            Path(name).replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                Path(name).unlink()
            raise


@contextlib.contextmanager
def named(path: Path) -> Iterator[None]:
    """Say in an error that names no file, such as that of a full disk, that it was this one."""
    try:
        yield
    except OSError as exc:
        exc.filename = exc.filename or os.fspath(path)
        raise
