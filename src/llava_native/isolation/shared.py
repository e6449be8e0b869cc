"""Images, rows and states in memory that both processes map: nameless, so that nothing is left whoever dies.

On Linux it is a memfd, elsewhere a temporary file that was unlinked at once. It travels as a descriptor.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

from llava_native._embedding import ImageEmbedding
from llava_native.images import rgb_pixels
from llava_native.isolation.wire import WireError
from llava_native.remote import RemoteImage
from llava_native.urls import is_data_url

if TYPE_CHECKING:
    from llava_native.engine.sequences import State

__all__ = ["map_bytes", "new_file", "pack", "pack_bytes", "read_bytes", "read_rows", "unpack"]

_ALIGN: Final = 64


def pack(images: Sequence[Any]) -> tuple[list[dict[str, Any]], IO[bytes] | None]:
    """Describe images, and put what they hold into one shared file.

    Parameters
    ----------
    images : sequence of image-like or ImageEmbedding
        Paths go as paths; ``data:`` URLs, encoded files, pixels and rows as bytes.

    Returns
    -------
    descriptions : list of dict
        As JSON.
    file : file or None
        None where all are paths.

    Raises
    ------
    ImageDecodeError, TypeError
        As ``open_image``, of Pillow images and arrays.
    """
    described = [_describe(image) for image in images]  # before there is a file to close
    if all(data is None for _, data in described):
        return [description for description, _ in described], None
    file = new_file()
    try:
        for description, data in described:
            if data is not None:
                start = -(-file.tell() // _ALIGN) * _ALIGN
                file.seek(start)
                file.write(data)
                description |= {"start": start, "size": data.nbytes}
        file.flush()
    except BaseException:
        file.close()
        raise
    return [description for description, _ in described], file


def _describe(image: Any) -> tuple[dict[str, Any], memoryview | None]:
    if isinstance(image, ImageEmbedding):
        shape = {"shape": [image.n_tokens, image.n_embd], "fingerprint": image.fingerprint}
        return {"kind": "rows", **shape}, memoryview(image).cast("B")
    if is_data_url(image):
        return {"kind": "url"}, memoryview(image.encode("utf-8", "surrogatepass"))
    if isinstance(image, RemoteImage):
        image = image.read()
    if isinstance(image, (str, os.PathLike)):
        return {"kind": "path", "path": str(Path(os.fsdecode(image)).absolute())}, None
    try:
        view = memoryview(image)
    except TypeError:
        view = None
    if view is not None and view.ndim == 1 and view.itemsize == 1:
        data = view.cast("B") if view.contiguous else memoryview(view.tobytes())
        return {"kind": "file"}, data
    pixels = rgb_pixels(image)
    return {"kind": "pixels", "shape": [pixels.height, pixels.width, 3]}, pixels.data.cast("B")


def unpack(descriptions: Sequence[dict[str, Any]], fd: int | None) -> list[Any]:
    """Return what ``pack`` described, as views of the shared file; the descriptor is closed."""
    whole = None if fd is None else map_bytes(fd)
    return [_image(description, whole) for description in descriptions]


def map_bytes(fd: int) -> memoryview:
    """Return a view of a shared file; the descriptor is closed.

    For the child: it trusts whoever started it not to cut the file short.
    """
    try:
        size = os.fstat(fd).st_size
        return memoryview(mmap.mmap(fd, size, prot=mmap.PROT_READ)) if size else memoryview(b"")
    finally:
        os.close(fd)


def _image(description: dict[str, Any], whole: memoryview | None) -> Any:
    if description["kind"] == "path":
        return description["path"]
    assert whole is not None
    data = whole[description["start"] : description["start"] + description["size"]]
    if description["kind"] == "file":
        return data
    if description["kind"] == "url":
        return str(data, "utf-8", "surrogatepass")
    if description["kind"] == "pixels":
        return data.cast("B", description["shape"])
    rows = data.cast("f", description["shape"])
    return ImageEmbedding.from_buffer(rows, fingerprint=description["fingerprint"])


def pack_bytes(data: State) -> IO[bytes]:
    """Put bytes into a shared file."""
    file = new_file()
    try:
        file.write(data)
        file.flush()
    except BaseException:
        file.close()
        raise
    return file


def read_bytes(fd: int, n: int) -> bytearray:
    """Return `n` bytes of a shared file.

    Copied: a child that went mad could cut a mapped file short, and take its reader along.
    """
    data = bytearray(n)
    with open(fd, "rb", buffering=0, closefd=False) as file:
        file.seek(0)
        if file.readinto(data) != n:
            raise WireError("a shared file is too short")
    return data


def read_rows(description: dict[str, Any], fd: int) -> ImageEmbedding:
    """Return a copy of rows that the child packed."""
    n_tokens, n_embd = (int(n) for n in description["shape"])
    if not (0 < n_tokens < 2**20 and 0 < n_embd < 2**20):
        raise WireError("rows of a strange shape")
    fingerprint = description["fingerprint"]
    return ImageEmbedding.from_buffer(
        memoryview(read_bytes(fd, n_tokens * n_embd * 4)).cast("f", (n_tokens, n_embd)),
        fingerprint=fingerprint if fingerprint is None else str(fingerprint),
    )


def new_file() -> IO[bytes]:
    """Return an empty file without a name, to share."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("llava_native", os.MFD_CLOEXEC), "w+b")
    return tempfile.TemporaryFile()
