"""Where an encoded image comes from: a path, a URL or a buffer becomes an open file."""

from __future__ import annotations

import io
import os
import stat
from typing import IO, Any, NamedTuple

from llava_native.data_url import decode_data_url
from llava_native.errors import ImageDecodeError, ImageTooLargeError, InvalidInputError
from llava_native.remote import RemoteImage
from llava_native.urls import is_data_url, is_web_url, shown

__all__ = ["Source", "file_of", "open_source"]


class Source(NamedTuple):
    """An encoded image: an open file, which whoever has this closes, and what to call it in messages."""

    file: IO[bytes]
    name: str


def file_of(image: Any) -> Any:
    """Return the encoded file behind a URL, fetching one that is not here; anything else as it is.

    Raises
    ------
    ImageDecodeError, ImageTooLargeError, DownloadError
        There is none.
    """
    if isinstance(image, RemoteImage):
        return image.read()
    return decode_data_url(image) if is_data_url(image) else image


def open_source(image: Any, max_bytes: int) -> Source:
    """Open an encoded image; one that is open already is used from its start."""
    if isinstance(image, Source):
        image.file.seek(0)
        return image
    if is_web_url(image):
        raise InvalidInputError(f"{shown(image)} is a URL, not a path: fetch it, then pass its bytes")
    data = file_of(image)
    if isinstance(data, (str, os.PathLike)):
        return _open_file(os.fspath(data), max_bytes)
    data = data if isinstance(data, bytes) else bytes(memoryview(data))
    name = shown(image.url) if isinstance(image, RemoteImage) else f"the image data ({len(data):,} bytes)"
    _check_bytes(len(data), max_bytes, name)
    return Source(io.BytesIO(data), name)


def _open_file(path: str | bytes, max_bytes: int) -> Source:
    file = open(path, "rb")  # noqa: PTH123, SIM115 - a path may be bytes, which Path refuses
    name = repr(os.fsdecode(path))
    try:
        info = os.fstat(file.fileno())
        if stat.S_ISREG(info.st_mode):
            _check_bytes(info.st_size, max_bytes, name)
            return Source(file, name)
        with file:  # a pipe or device: its size shows only as it is read
            data = file.read(max_bytes + 1)
        _check_bytes(len(data), max_bytes, name)
        return Source(io.BytesIO(data), name)
    except BaseException:
        file.close()
        raise


def _check_bytes(size: int, limit: int, name: str) -> None:
    if size > limit:
        raise ImageTooLargeError(
            f"{name} has {size:,} bytes or more, the limit is {limit:,}: make it smaller"
        )
    if size == 0:
        raise ImageDecodeError(f"{name} is empty")
