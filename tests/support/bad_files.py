"""Files and images that are not what they should be."""

from __future__ import annotations

import contextlib
import io
import os
import struct
import threading
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from llava_native import Context, ImageEmbedding, ImageEncoder, Model
from llava_native.errors import (
    EmbeddingMismatchError,
    EncodeError,
    ImageDecodeError,
    ImageTooLargeError,
    InvalidInputError,
    ModelFormatError,
)

from . import damage
from .gauntlet import Case, Scene

CASES: list[Case] = []


def _case(name: str, run: Any, raises: type[BaseException] | None, says: str = "") -> None:
    CASES.append(Case(name, run, raises, says))


def _load_text(path: Any) -> None:
    """Load a text model; where that goes well, it must also run."""
    with Model(path) as model, Context(model, n_ctx=64, n_threads=1) as ctx:
        ctx.eval(model.tokenize("Hello"))


def _load_mmproj(path: Any) -> None:
    with ImageEncoder(path, n_threads=1) as encoder:
        encoder.encode(np.zeros((28, 28, 3), np.uint8))


_LOAD = {"text": _load_text, "mmproj": _load_mmproj}


def _damaged(case: damage.Case) -> None:
    def run(scene: Scene) -> None:
        good = scene.text_path if case.source == "text" else scene.mmproj_path
        _LOAD[case.role](case.write(good, scene.folder / "broken.gguf"))

    _case(f"file: {case.name}", run, case.error, case.says)


for _one in damage.CASES:
    _damaged(_one)


# -- paths


def _fifo(scene: Scene, data: bytes) -> Path:
    """A pipe into which somebody writes `data`."""
    path = scene.folder / "fifo"
    path.unlink(missing_ok=True)
    os.mkfifo(path)

    def write() -> None:
        with path.open("wb") as pipe, contextlib.suppress(BrokenPipeError):
            pipe.write(data)

    threading.Thread(target=write, daemon=True).start()
    return path


def _unreadable(scene: Scene) -> Path:
    path = scene.file("unreadable", b"GGUF")
    path.chmod(0)
    if os.access(path, os.R_OK):  # root reads everything
        raise PermissionError("as if")
    return path


for _role, _load in {**_LOAD, "image": None}.items():

    def _through(make: Any, load: Any = _load) -> Any:
        def run(scene: Scene) -> None:
            (load or scene.encoder.encode)(make(scene))

        return run

    _bad: type[BaseException] = ModelFormatError if _load else ImageDecodeError
    _case(f"path: {_role}, missing", _through(lambda s: s.folder / "nowhere"), FileNotFoundError, "nowhere")
    _case(f"path: {_role}, empty string", _through(lambda _: ""), FileNotFoundError)
    _case(f"path: {_role}, directory", _through(lambda s: s.folder), IsADirectoryError)
    _case(f"path: {_role}, NUL", _through(lambda s: f"{s.folder}/a\0b"), ValueError, "null byte")
    _case(f"path: {_role}, surrogates", _through(lambda _: "\ud800.gguf"), UnicodeEncodeError)
    _case(f"path: {_role}, too long", _through(lambda _: "x" * 10_000), OSError, "too long")
    _case(f"path: {_role}, below a file", _through(lambda s: s.text_path / "x"), NotADirectoryError)
    _case(f"path: {_role}, a number", _through(lambda _: 3), TypeError)
    _case(f"path: {_role}, None", _through(lambda _: None), TypeError)
    _case(f"path: {_role}, unreadable", _through(_unreadable), PermissionError)
    _case(f"path: {_role}, /dev/null", _through(lambda _: "/dev/null"), _bad, "")
    _case(f"path: {_role}, pipe of garbage", _through(lambda s: _fifo(s, b"garbage" * 99)), _bad, "")
    _case(
        f"path: {_role}, /dev/zero",
        _through(lambda _: "/dev/zero"),
        ModelFormatError if _load else ImageTooLargeError,
    )
_case("path: image, a URL", lambda s: s.encoder.encode("https://example.org/x.png"), InvalidInputError, "URL")
_case(
    "path: two models in place of two files", lambda s: _load_text(s.mmproj_path), ModelFormatError, "mmproj="
)


# -- images


def _encoded(kind: str, size: tuple[int, int] = (40, 30), **options: Any) -> bytes:
    out = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(out, kind, **options)
    return out.getvalue()


def _png_header(width: int, height: int) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


def _image(name: str, image: Any, raises: type[BaseException] | None, says: str = "", **options: Any) -> None:
    _case(f"image: {name}", lambda scene: scene.encoder.encode(image, **options), raises, says)


_image("no bytes", b"", ImageDecodeError, "empty")
_image("text", b"This is no picture. " * 20, ImageDecodeError, "not an image")
_image("a web page", b"<!DOCTYPE html><html></html>", ImageDecodeError, "not an image")
_image("a GGUF", b"GGUF" + bytes(100), ImageDecodeError, "not an image")
_image("SVG", b"<svg xmlns='http://www.w3.org/2000/svg'/>", ImageDecodeError, "not an image")
_image("PNG of 100000 x 100000", _png_header(100_000, 100_000), ImageTooLargeError, "10,000,000,000")
_image("PNG of 2**31-1 squared", _png_header(2**31 - 1, 2**31 - 1), ImageTooLargeError)
_image("PNG of 0 x 0", _png_header(0, 0), ImageDecodeError)
_image("PNG of few bytes", _png_header(1000, 1000), ImageDecodeError, "truncated")
_image("GIF header alone", b"GIF89a\xff\xff\xff\xff\x00\x00\x00", ImageDecodeError)
for _kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM"):
    _whole = _encoded(_kind)
    _image(f"{_kind} cut in the middle", _whole[: len(_whole) // 2], ImageDecodeError)
    _image(f"{_kind} cut after 12 bytes", _whole[:12], ImageDecodeError)
    _image(f"{_kind} whole", _whole, None)
_image("one pixel", np.zeros((1, 1, 3), np.uint8), None)
_image("one row", np.zeros((1, 9_000, 3), np.uint8), None)
_image("one column of a million", np.zeros((1_000_001, 1, 3), np.uint8), ImageTooLargeError, "crop it")
for _shape in ((0, 0, 3), (0, 5, 3), (5, 0, 3), (5, 5, 2), (5, 5, 5), (5, 5, 3, 1), (1, 5, 5, 3), ()):
    _image(f"array of shape {_shape}", np.zeros(_shape, np.uint8), ImageDecodeError, "shape")
for _dtype in ("float32", "float64", "int8", "uint16", "bool", "int64", "object"):
    _image(f"array of {_dtype}", np.zeros((5, 5, 3), _dtype), TypeError, "uint8")
_image("array with strides", np.zeros((20, 20, 3), np.uint8)[::-2, ::3], None)
_image("array beyond the pixel limit", np.broadcast_to(np.uint8(0), (10**5, 10**5, 3)), ImageTooLargeError)
_image("a list of rows", [[1, 2, 3]], TypeError)
_image("a dict", {}, TypeError)
_image("background of two", _encoded("PNG"), None, background=(1, 2))
_case("image: pixels of another size", lambda s: s.encoder.encode_pixels(
    s.encoder.prepare(_encoded("PNG"))._replace(width=10**6)), InvalidInputError, "RGB pixels")  # fmt: skip
_case("image: pixels of size 0", lambda s: s.encoder.encode_pixels(
    s.encoder.prepare(_encoded("PNG"))._replace(data=b"", width=0)), EncodeError)  # fmt: skip
_case("image: pixels of size -1", lambda s: s.encoder.encode_pixels(
    s.encoder.prepare(_encoded("PNG"))._replace(width=-1)), OverflowError)  # fmt: skip
_case("image: pixels not of the encoder's size", lambda s: s.encoder.encode_pixels(
    s.encoder.prepare(_encoded("PNG"))._replace(data=bytes(300), width=10, height=10)), None)  # fmt: skip


# -- rows


def _rows(name: str, rows: Any, raises: type[BaseException] | None = EmbeddingMismatchError) -> None:
    _case(f"rows: {name}", lambda s: s.ctx.eval(ImageEmbedding.from_buffer(rows)), raises)


_good = np.zeros((3, 64), np.float32)
_rows("good", _good, None)
_rows("one float short", np.zeros((3, 63), np.float32))
_rows("twice as wide", np.zeros((3, 128), np.float32))
_rows("float64", _good.astype(np.float64))
_rows("float16", _good.astype(np.float16))
_rows("int32", _good.astype(np.int32))
_rows("big-endian", _good.astype(">f4"))
_rows("bytes", _good.tobytes())
_rows("one dimension", _good.ravel())
_rows("three dimensions", _good[None])
_rows("no rows", _good[:0])
_rows("no columns", _good[:, :0])
_rows("Fortran order", np.asfortranarray(_good))
_rows("with strides", _good[:, ::2])
_rows("objects", _good.astype(object))
_rows("a list", [[0.0] * 64])
_rows("None", None)
_rows("a structure", np.zeros((3, 64), [("a", "f4")]))


def _saved(name: str, change: Any, raises: type[BaseException] | None = ModelFormatError) -> None:
    def run(scene: Scene) -> None:
        path = scene.folder / "rows.emb"
        ImageEmbedding.from_buffer(_good, fingerprint="x").save(path)
        path.write_bytes(change(path.read_bytes()))
        scene.ctx.eval(ImageEmbedding.load(path))

    _case(f"saved rows: {name}", run, raises)


def _header(header: bytes) -> Any:
    return lambda _: len(header).to_bytes(8, "little") + header + bytes(768)


_saved("whole", lambda data: data, None)
_saved("empty", lambda _: b"")
_saved("one byte short", lambda data: data[:-1])
_saved("one byte more", lambda data: data + b"x")
_saved("4 bytes", lambda data: data[:4])
_saved("half a header", lambda data: data[:40])
_saved("header of 2**63", lambda data: b"\xff" * 8 + data[8:])
_saved("header is a list", _header(b"[]"))
_saved("header is no JSON", _header(b"{" * 100))
_saved("deep JSON", _header(b"[" * 100_000))
_saved("negative shape", lambda data: data.replace(b"[3, 64]", b"[-3,-64]"))
_saved("float shape", lambda data: data.replace(b"[3, 64]", b"[3., 64]"))
_saved("another shape", lambda data: data.replace(b"[3, 64]", b"[4, 64]"))
_saved("float16", lambda data: data.replace(b'"F32"', b'"F16"'))
_saved("wider", lambda data: data.replace(b"[3, 64]", b"[6, 32]"), EmbeddingMismatchError)
_saved("a number for fingerprint", lambda data: data.replace(b'"x"', b"123"))
_case("saved rows: a file descriptor", lambda _: ImageEmbedding.load(0), TypeError)
_case("saved rows: save to a number", lambda _: ImageEmbedding.from_buffer(_good).save(1), TypeError)
_case("saved rows: of another encoder", lambda s: (
    ImageEmbedding.from_buffer(_good, fingerprint="x").save(s.folder / "o.emb"),
    ImageEmbedding.load(s.folder / "o.emb", encoder=s.encoder)), EmbeddingMismatchError, "x")  # fmt: skip

_case("rows: of another width through Llava", lambda s: s.llava.generate(
    "x", image=ImageEmbedding.from_buffer(np.zeros((3, 32), np.float32))),
    EmbeddingMismatchError, "32")  # fmt: skip
_case("rows: of another encoder through Llava", lambda s: s.llava.generate(
    "x", image=ImageEmbedding.from_buffer(_good, fingerprint="x")), EmbeddingMismatchError, "x")  # fmt: skip
_case("overrides: architecture of an mmproj", lambda s: s.load(
    kv_overrides={"general.architecture": "clip"}), ModelFormatError)  # fmt: skip
_case("overrides: unknown architecture", lambda s: s.load(
    kv_overrides={"general.architecture": "nonesuch"}), ModelFormatError, "nonesuch.")  # fmt: skip
