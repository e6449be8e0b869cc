"""Images that keep the GIL for long while Pillow decodes them: prepared by a process of their own.

JPEG 2000 never lets go of it, 0.4 s a megapixel; a decoded WebP or AVIF is copied whole under it; and memory
for the pixels of any large image may take 30 ms to be had. Large JPEGs are decoded at a fraction of theirs.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import IO, Any, Final

from llava_native.errors import CancelledError, ImageDecodeError
from llava_native.images import Pixels, identify, llava_pixels, load_decoders, rgb_pixels
from llava_native.isolation.faults import from_data, to_data
from llava_native.isolation.interpreter import command, is_python
from llava_native.isolation.shared import new_file, read_bytes
from llava_native.sources import Source

__all__ = ["main", "needs_process", "prepare_apart"]

# for more pixels others may wait for 5 ms; of longer files this is not asked: to open some takes long, too
_LIMITS: Final = {"JPEG2000": (2**13, 2**20), "AVIF": (2**20, 2**20), "WEBP": (2**21, 2**20)} | dict.fromkeys(
    ("PNG", "GIF", "BMP", "TIFF", "PPM"), (2**23, 2**24)
)
_POLL_S: Final = 0.05
_N_PAPER: Final = 1 << 16  # bytes of what is told, blanks and all
_CODE: Final = "from llava_native.isolation.decoding import main; main(*map(int, sys.argv[1:]))"
_KILL_WITH_PARENT: Final = 1  # PR_SET_PDEATHSIG of prctl(2)


def needs_process(source: Source) -> bool:
    """Tell whether decoding an image would hold up other threads, and a process can be had for it.

    What is wrong with an image shows when it is decoded.
    """
    file = source.file
    file.seek(0)
    prefix = file.read(16)
    kind = next((kind for kind, (accept, _) in load_decoders().items() if accept(prefix)), "")
    if kind not in _LIMITS or not is_python():
        return False
    n_pixels, n_bytes = _LIMITS[kind]
    if file.seek(0, os.SEEK_END) > n_bytes:
        return True
    file.seek(0)
    try:
        width, height = identify(file, source.name).size
    except Exception:
        return False
    return width * height > n_pixels


def prepare_apart(source: Source, size: int | None, is_wanted: Callable[[], bool]) -> Pixels | None:
    """Return what ``llava_pixels`` makes of an image, or ``rgb_pixels`` where `size` is None.

    Parameters
    ----------
    source : Source
        Neither closed nor moved.
    size : int or None
        Side of the result in pixels.
    is_wanted : callable
        False ends it.

    Returns
    -------
    Pixels or None
        None where no process could be started, or got to work.

    Raises
    ------
    CancelledError
        It is not wanted any more.
    LlavaError, OSError, MemoryError
        As ``open_image``; ImageDecodeError also where decoding it has ended the process.
    """
    with contextlib.ExitStack() as stack:
        try:
            paper, result = stack.enter_context(new_file()), stack.enter_context(new_file())
            file = stack.enter_context(_as_file(source))
            _write(paper, {"name": source.name, "size": size})
            process = _start([paper.fileno(), result.fileno(), file.fileno()])
        except OSError:
            return None
        _wait(process, is_wanted)
        told = _read(paper)
        if "error" in told:
            raise from_data(told["error"])
        if "width" in told:
            return _pixels(told, result)
        if "began" in told:
            end = _name(process.returncode)
            raise ImageDecodeError(f"{source.name} cannot be decoded: {end} ended the process that did")
        return None  # it did not get to work


def _as_file(source: Source) -> IO[bytes]:
    """Return a file of the system's over an encoded image, to share."""
    if not isinstance(source.file, io.BytesIO):
        return os.fdopen(os.dup(source.file.fileno()), "rb")
    file = new_file()
    try:
        file.write(source.file.getvalue())
        file.flush()
    except BaseException:
        file.close()
        raise
    return file


def _start(fds: list[int]) -> subprocess.Popen[bytes]:
    quiet = subprocess.DEVNULL
    arguments = command(_CODE, str(os.getpid()), *map(str, fds))
    # in a process group of its own: Ctrl-C is for this process
    return subprocess.Popen(arguments, pass_fds=fds, stdin=quiet, stdout=quiet, stderr=quiet, process_group=0)


def _write(paper: IO[bytes], data: dict[str, Any]) -> None:
    """Replace what a shared file says."""
    text = json.dumps(data).encode("utf-8", "surrogatepass")
    paper.seek(0)
    paper.write(text.ljust(_N_PAPER))  # over all that was there
    paper.flush()


def _read(paper: IO[bytes]) -> dict[str, Any]:
    paper.seek(0)
    try:
        found: dict[str, Any] = json.loads(paper.read().decode("utf-8", "surrogatepass"))
    except ValueError:  # whoever wrote it was ended meanwhile
        found = {"began": True}
    return found


def _name(code: int) -> str:
    """Name what ended a process."""
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}" if code < 0 else f"status {code}"


def _wait(process: subprocess.Popen[bytes], is_wanted: Callable[[], bool]) -> None:
    try:
        while True:
            try:
                process.wait(_POLL_S)
            except subprocess.TimeoutExpired:
                if not is_wanted():
                    raise CancelledError("nobody waits for this image any more") from None
            else:
                return
    finally:
        process.kill()  # where it has not ended
        process.wait()


def _pixels(told: dict[str, Any], result: IO[bytes]) -> Pixels:
    width, height = told["width"], told["height"]
    return Pixels(memoryview(read_bytes(result.fileno(), 3 * width * height)).toreadonly(), width, height)


def main(parent: int, paper: int, result: int, source: int) -> None:
    """Do what ``prepare_apart`` asks, in the other process."""
    _end_with(parent)
    load_decoders()  # all that it needs, before it says that it began
    with os.fdopen(paper, "r+b") as told:
        task = _read(told)
        _write(told, {"began": True})
        try:
            data = os.pread(source, os.fstat(source).st_size, 0)  # where the file stands is the parent's
            answer = _prepare(Source(io.BytesIO(data), task["name"]), task["size"], result)
        except BaseException as exc:
            answer = {"error": to_data(exc)}
        _write(told, answer)
    os._exit(0)  # nothing here is worth waiting for


def _prepare(source: Source, size: int | None, result: int) -> dict[str, Any]:
    pixels = rgb_pixels(source) if size is None else llava_pixels(source, size)
    with os.fdopen(result, "wb") as file:
        file.write(pixels.data)
    return {"width": pixels.width, "height": pixels.height}


def _end_with(parent: int) -> None:
    """Have Linux end this process with its parent."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_KILL_WITH_PARENT, signal.SIGKILL)
    if os.getppid() != parent:  # it is gone already
        os._exit(0)
