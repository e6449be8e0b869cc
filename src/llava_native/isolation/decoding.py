"""Images that Pillow decodes, or copies, under the GIL: prepared by a process of their own.

JPEG 2000 never lets go of it, 0.4 s a megapixel; a decoded WebP or AVIF is copied whole.
"""

from __future__ import annotations

import json
import multiprocessing.spawn
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

from llava_native.errors import CancelledError, ImageDecodeError
from llava_native.images import Pixels, exceeds, llava_pixels, rgb_pixels
from llava_native.isolation.faults import from_data, to_data
from llava_native.isolation.shared import map_bytes, new_file, pack, unpack

if TYPE_CHECKING:
    from llava_native.images import ImageLike

__all__ = ["main", "needs_process", "prepare_apart"]

_PIXELS: Final = {"JPEG2000": 2**13, "AVIF": 2**20, "WEBP": 2**21}  # for more of them others wait 5 ms
_BYTES: Final = 2**20  # opening a longer WebP or AVIF file takes long, too
_POLL_S: Final = 0.05
_CODE: Final = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from llava_native.isolation.decoding import main; main(json.loads(sys.argv[2]))"
)


def needs_process(source: ImageLike) -> bool:
    """Tell whether decoding an image would hold up other threads, and a process can be had for it.

    What is wrong with an image shows when it is decoded.
    """
    try:
        is_large = exceeds(source, _PIXELS, _BYTES)
    except Exception:
        return False
    return is_large and _is_python(multiprocessing.spawn.get_executable())


def _is_python(executable: str | bytes | None) -> bool:
    """Tell whether this starts Python, and not another program that Python is part of."""
    name = Path(os.fsdecode(executable or "")).name.lower()
    return name.startswith(("python", "pypy")) and not getattr(sys, "frozen", False)


def prepare_apart(source: ImageLike, size: int | None, is_wanted: Callable[[], bool]) -> Pixels | None:
    """Return what ``llava_pixels`` makes of an image, or ``rgb_pixels`` where `size` is None.

    Parameters
    ----------
    source : str, os.PathLike or buffer
        An encoded file.
    size : int or None
        Side of the result in pixels.
    is_wanted : callable
        False ends it.

    Returns
    -------
    Pixels or None
        In memory that the other process filled; None where the system starts none.

    Raises
    ------
    CancelledError
        It is not wanted any more.
    ImageDecodeError
        The process died of it, too.
    LlavaError, OSError, MemoryError
        As ``open_image``.
    """
    descriptions, file = pack([source])
    result = new_file()
    fds = [result.fileno()] if file is None else [result.fileno(), file.fileno()]
    try:
        process = _start({"fds": fds, "images": descriptions, "size": size})
        if process is None:
            return None
        with process:
            answer = _answer(process, is_wanted)
        return _pixels(answer, process.returncode, result)
    finally:
        result.close()
        if file is not None:
            file.close()


def _start(task: dict[str, Any]) -> subprocess.Popen[bytes] | None:
    try:
        return subprocess.Popen(
            [multiprocessing.spawn.get_executable(), "-c", _CODE, json.dumps(sys.path), json.dumps(task)],
            pass_fds=task["fds"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
    except OSError:
        return None


def _answer(process: subprocess.Popen[bytes], is_wanted: Callable[[], bool]) -> bytes:
    try:
        while True:
            try:
                return process.communicate(timeout=_POLL_S)[0]
            except subprocess.TimeoutExpired:
                if not is_wanted():
                    raise CancelledError("nobody waits for this image any more") from None
    finally:
        process.kill()  # where it has not ended


def _pixels(answer: bytes, code: int, result: IO[bytes]) -> Pixels:
    if code != 0:
        raise ImageDecodeError(f"the process that decoded the image ended with {code}")
    told: dict[str, Any] = json.loads(answer)
    if "error" in told:
        raise from_data(told["error"])
    width, height = told["width"], told["height"]
    data = map_bytes(os.dup(result.fileno()))  # nobody can cut it short any more
    if len(data) != 3 * width * height:
        raise ImageDecodeError(f"the process that decoded the image left {len(data)} bytes")
    return Pixels(data, width, height)


def main(task: dict[str, Any]) -> None:
    """Do what ``prepare_apart`` asks, in the other process, and tell it on stdout."""
    result, *source = task["fds"]
    try:
        (image,) = unpack(task["images"], *(source or (None,)))
        size = task["size"]
        pixels = rgb_pixels(image) if size is None else llava_pixels(image, size)
        with os.fdopen(result, "wb") as file:
            file.write(pixels.data)
        answer: dict[str, Any] = {"width": pixels.width, "height": pixels.height}
    except BaseException as exc:
        answer = {"error": to_data(exc)}
    sys.stdout.write(json.dumps(answer))
    sys.stdout.flush()
    os._exit(0)  # nothing here is worth waiting for
