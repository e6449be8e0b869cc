"""Turn anything image-like into RGB pixels, and RGB pixels into what LLaVA-1.5 saw in training.

Pillow is imported at the first use, NumPy never unless the caller hands over something that only
NumPy understands. Nothing here changes a global of either, prints, or keeps the caller's buffer, and
every function may run in many threads at once. One exception is not ours to prevent: about a damaged
TIFF, Pillow warns and its libtiff writes to stderr.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import math
import os
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import IO, TYPE_CHECKING, Any, NamedTuple, TypeAlias, TypedDict, Unpack, cast

from .errors import ImageDecodeError, ImageTooLargeError
from .image_costs import check_cost
from .remote import RemoteImage
from .sources import Source, open_source

if TYPE_CHECKING:
    from PIL.Image import Image, Transpose

__all__ = [
    "MAX_BYTES",
    "ImageLike",
    "OpenOptions",
    "Pixels",
    "identify",
    "is_encoded",
    "llava_pixels",
    "load_decoders",
    "open_image",
    "rgb_pixels",
]

ImageLike: TypeAlias = Any
"""A path, a ``data:`` URL, a buffer of an encoded file, a ``PIL.Image.Image``, or a uint8 array of pixels.

Arrays are (h, w, 3), (h, w, 4) or (h, w), from the buffer protocol or anything NumPy can convert. A
one-dimensional buffer of bytes is an encoded file.
"""

MAX_BYTES = 128 * 2**20
MAX_PIXELS = 2**26  # 64-megapixel photographs pass; decoded, they take 256 MiB
MAX_SIDE = 10**6  # Pillow's resampling tables take 32 bytes for each pixel of the side
MEAN_COLOUR = (122, 116, 104)  # CLIP's mean as LLaVA rounds it

# No format that starts another program (EPS), or whose header may hide a larger image (ICO, ICNS).
_FORMATS = {
    "JPEG": "JpegImagePlugin",
    "PNG": "PngImagePlugin",
    "WEBP": "WebPImagePlugin",
    "GIF": "GifImagePlugin",
    "BMP": "BmpImagePlugin",
    "TIFF": "TiffImagePlugin",
    "PPM": "PpmImagePlugin",
    "JPEG2000": "Jpeg2KImagePlugin",
    "AVIF": "AvifImagePlugin",
}
_EXACT_SIDE = 8192  # taller images are resized down the columns first; see llava_pixels
_SLAB_PIXELS = 2**20
_ORIENTATION, _LONG = 0x0112, 4  # EXIF tag and type
_foreign_images = threading.Lock()

_Opener: TypeAlias = "tuple[Callable[[bytes], bool | str], Callable[[IO[bytes], str], Image]]"


class Pixels(NamedTuple):
    """RGB pixels, row by row without gaps; `data` may be a view of the caller's own array."""

    data: memoryview
    width: int
    height: int


class OpenOptions(TypedDict, total=False):
    """Options of every function here; see `open_image`."""

    background: tuple[int, int, int]
    max_bytes: int
    max_pixels: int


def open_image(
    image: ImageLike,
    *,
    background: tuple[int, int, int] = (255, 255, 255),
    max_bytes: int = MAX_BYTES,
    max_pixels: int = MAX_PIXELS,
    draft_size: int | None = None,
) -> Image:
    """Decode an image into mode RGB, upright and opaque.

    Parameters
    ----------
    image : ImageLike
        A path, a ``data:`` URL, a buffer of an encoded file, a Pillow image or an array of pixels.
    background : tuple of int
        Colour that shows through transparent pixels. Default white.
    max_bytes, max_pixels : int
        Limits of the encoded file and of the image that its header announces, checked before
        anything is decoded. Defaults 128 MiB and 67,108,864 pixels.
    draft_size : int, optional
        Allow a JPEG to be decoded at 1/2, 1/4 or 1/8 of its size where its sides divide evenly and its
        longer one keeps at least twice this many pixels. A photograph of 12 megapixels takes 30 ms
        instead of 200; the result at `draft_size` differs by 0.3 levels of 255 on average, 6 at
        most. Default: full size.

    Returns
    -------
    PIL.Image.Image
        A new image in mode RGB; the first frame of an animation. Colour profiles are not applied, as
        in LLaVA's training.

    Raises
    ------
    ImageDecodeError
        The data is empty, damaged, not an image, or in a format that is not supported.
    ImageTooLargeError
        A limit is exceeded.
    FileNotFoundError, IsADirectoryError, PermissionError
        As from ``open()``.
    TypeError
        Not something that holds an image, or an array that is not uint8.

    Notes
    -----
    16-bit images are scaled to 8 bits. Images of 32-bit integers or floats have no fixed white: they
    are taken to span the smallest of 0..1 (floats only), 0..255 and 0..65535 that holds all their
    values, and their own range where none does.
    """
    pixels = _array_pixels(image)
    if pixels is not None:
        return _to_rgb(_array_image(pixels, max_pixels), background)
    if _is_pillow(image):
        return _copy_pillow(image, background, max_pixels)
    file, name = open_source(image, max_bytes)
    with file:
        opened = identify(file, name)
        _check_pixels(opened.size, max_pixels, name)
        if draft_size is not None:
            _draft(opened, draft_size)
        with _reported(f"{name} is damaged or truncated"):
            check_cost(opened, max_pixels, name)
            _rest()
            opened.load()
            _rest()
            return _to_rgb(opened, background)


def rgb_pixels(image: ImageLike, **options: Unpack[OpenOptions]) -> Pixels:
    """Return the RGB pixels of an image at its own size, for an encoder that resizes by itself.

    Parameters
    ----------
    image : ImageLike
        See `open_image`.
    **options
        See `open_image`.

    Returns
    -------
    Pixels
        A C-contiguous (h, w, 3) array is not copied: `Pixels.data` is a view of it.
    """
    return _direct(image, options) or _exported(open_image(image, **options))


def llava_pixels(image: ImageLike, size: int, **options: Unpack[OpenOptions]) -> Pixels:
    """Prepare an image as LLaVA-1.5 does: pad to a square with the mean colour, resize with Pillow.

    Parameters
    ----------
    image : ImageLike
        See `open_image`.
    size : int
        Side of the vision tower's input in pixels, e.g. 336.
    **options
        See `open_image`.

    Returns
    -------
    Pixels
        `size` by `size`. A C-contiguous (size, size, 3) array is not copied: `Pixels.data` is a view
        of it.

    Notes
    -----
    The bytes are those of LLaVA's ``expand2square`` and Pillow's bicubic ``resize``, but the square
    is never allocated, so a picture of 100,000 by 1 needs no 40 GB. There are two exceptions. Large
    JPEGs are decoded at reduced size; see `draft_size` of `open_image`. And Pillow resizes the rows
    first, which takes time quadratic in the height of a tall image: above 8,192 pixels, if it is
    taller than wide, the columns come first, which moves a value by a level at most in practice.
    """
    pixels = _direct(image, options)
    if pixels is not None and pixels.width == pixels.height == size:
        return pixels
    opened = open_image(image, draft_size=size, **options)
    if max(opened.size) > MAX_SIDE:
        raise ImageTooLargeError(
            f"the image is {opened.width} x {opened.height} pixels; a side may have {MAX_SIDE:,}: crop it"
        )
    return _exported(_pad_and_resize(opened, size))


def _pad_and_resize(image: Image, size: int) -> Image:
    """Return what padding to a square and ``resize((size, size))`` would, in slabs."""
    import PIL.Image

    width, height = image.size
    if height > max(width, _EXACT_SIDE):
        turned = image.transpose(PIL.Image.Transpose.TRANSPOSE)
        return _pad_and_resize(turned, size).transpose(PIL.Image.Transpose.TRANSPOSE)
    side = max(width, height)
    # Pillow resamples rows, rounds to 8 bits, then resamples columns. Rows do not depend on each
    # other, nor do columns, so both passes can be cut into slabs that fit the processor's cache.
    left, top, step = (side - width) // 2, (side - height) // 2, max(1, _SLAB_PIXELS // side)
    rows = PIL.Image.new("RGB", (size, height))
    for y in range(0, height, step):
        slab = PIL.Image.new("RGB", (side, min(step, height - y)), MEAN_COLOUR)
        slab.paste(image, (left, -y))
        _rest()
        rows.paste(slab.resize((size, slab.height), PIL.Image.Resampling.BICUBIC), (0, y))
    square = PIL.Image.new("RGB", (size, size))
    for x in range(0, size, step):
        slab = PIL.Image.new("RGB", (min(step, size - x), side), MEAN_COLOUR)
        slab.paste(rows, (-x, top))
        _rest()
        square.paste(slab.resize((slab.width, size), PIL.Image.Resampling.BICUBIC), (x, 0))
    return square


def _direct(image: ImageLike, options: OpenOptions) -> Pixels | None:
    """Return a view of an array that already holds RGB pixels without gaps."""
    pixels = _array_pixels(image)
    if pixels is None or not pixels.c_contiguous:
        return None
    height, width, channels = _shape(pixels)
    if channels != 3:
        return None
    _check_pixels((width, height), options.get("max_pixels", MAX_PIXELS), "the array")
    return Pixels(pixels.cast("B"), width, height)


def _exported(image: Image) -> Pixels:
    return Pixels(memoryview(image.tobytes()), *image.size)


# -- sources ------------------------------------------------------------------------------------


def is_encoded(image: ImageLike) -> bool:
    """Tell whether this is an encoded file, somewhere, and not pixels."""
    return not _is_pillow(image) and _array_pixels(image) is None


def _is_pillow(image: ImageLike) -> bool:
    return hasattr(image, "getbands") and hasattr(image, "convert")


def _array_pixels(image: ImageLike) -> memoryview | None:
    """Return a view of `image` where it is an array of pixels, None where it is something else."""
    if isinstance(image, (str, bytes, bytearray, os.PathLike, RemoteImage, Source)) or _is_pillow(image):
        return None
    view = _view(image)
    if view.ndim == 1:
        return None
    if view.format not in ("B", "<B", ">B", "=B", "@B"):
        raise TypeError(
            f"an image array must be uint8, this one has format {view.format!r}: scale its values to "
            "0..255 and convert it"
        )
    shape = view.shape or ()
    if view.ndim not in (2, 3) or (view.ndim == 3 and shape[2] not in (1, 3, 4)) or 0 in shape:
        raise ImageDecodeError(
            f"an image array must have the shape (height, width), (height, width, 3) or (height, width, 4), "
            f"this one has {shape}"
        )
    return view


def _view(image: ImageLike) -> memoryview:
    try:
        return memoryview(image)
    except TypeError:
        if not any(hasattr(image, name) for name in ("__array__", "__array_interface__")):
            raise TypeError(
                "an image must be a path, a data: URL, a buffer, a PIL.Image.Image or a uint8 array, "
                f"not {type(image).__name__}"
            ) from None
    import numpy as np

    return np.asarray(image).data


def _shape(pixels: memoryview) -> tuple[int, int, int]:
    """Return (height, width, channels) of an array that `_array_pixels` let through."""
    height, width, channels = (*(pixels.shape or ()), 1)[:3]
    return height, width, channels


def _array_image(pixels: memoryview, max_pixels: int) -> Image:
    import PIL.Image

    height, width, channels = _shape(pixels)
    _check_pixels((width, height), max_pixels, "the array")
    mode = {1: "L", 3: "RGB", 4: "RGBA"}[channels]
    return PIL.Image.frombytes(
        mode, (width, height), pixels.cast("B") if pixels.c_contiguous else pixels.tobytes()
    )


def _check_pixels(size: tuple[int, int], limit: int, name: str) -> None:
    width, height = size
    if width * height > limit:
        raise ImageTooLargeError(
            f"{name} is {width} x {height} = {width * height:,} pixels, the limit is {limit:,}: "
            "make it smaller"
        )


def _copy_pillow(image: Image, background: tuple[int, int, int], max_pixels: int) -> Image:
    name = "the Pillow image"
    _check_pixels(image.size, max_pixels, name)
    with _reported(f"{name} cannot be read"):
        with _foreign_images:  # it may be unread, and in the hands of two threads
            image.load()
        converted = _to_rgb(image, background)
        return converted.copy() if converted is image else converted


def _rest() -> None:
    """Let whoever waits for the GIL run before Pillow lets go of it.

    Who wakes up only then may be queued behind this thread, which computes on: an event loop, for 4 ms.
    """
    time.sleep(0)


# -- decoding -----------------------------------------------------------------------------------


@functools.cache
def load_decoders() -> dict[str, _Opener]:
    """Import Pillow's decoders; return how to recognise and open each format, without its own size check.

    ``Image.open`` warns about images above a global limit; ours is checked after the header is read,
    which is all that these functions do.
    """
    import PIL.Image
    from PIL.JpegImagePlugin import JpegImageFile

    class QuietJpeg(JpegImageFile):
        """A JPEG whose opening parses no EXIF: Pillow warns about every damaged block of it."""

        def getexif(self) -> PIL.Image.Exif:
            return PIL.Image.Exif()

    openers: dict[str, _Opener] = {}
    for name, module in _FORMATS.items():
        try:
            importlib.import_module(f"PIL.{module}")
        except ImportError:  # AVIF came with Pillow 11.2
            continue
        factory, accept = PIL.Image.OPEN[name]
        if accept is not None:
            openers[name] = (accept, QuietJpeg if name == "JPEG" else factory)
    return openers


def identify(file: IO[bytes], name: str) -> Image:
    """Read the header of an encoded image."""
    prefix = file.read(16)
    for kind, (accept, factory) in load_decoders().items():
        accepted = accept(prefix)
        if isinstance(accepted, str):
            raise ImageDecodeError(f"{name} cannot be read by this Pillow: {accepted}")
        if accepted:
            file.seek(0)
            with _reported(f"{name} looks like {kind}, but its header is damaged"):
                return factory(file, "")
    formats = ", ".join(load_decoders())
    raise ImageDecodeError(
        f"{name} is not an image in a supported format ({formats}); it starts with {prefix!r}"
    )


@contextlib.contextmanager
def _reported(message: str) -> Iterator[None]:
    """Turn whatever Pillow raises about damaged data into ImageDecodeError."""
    from PIL.Image import DecompressionBombError

    try:
        yield
    except (MemoryError, ImageDecodeError, ImageTooLargeError):
        raise
    except DecompressionBombError as error:
        raise ImageTooLargeError(f"{message}: {error}") from error
    except Exception as error:
        raise ImageDecodeError(f"{message}: {error}") from error


def _draft(image: Image, size: int) -> None:
    """Ask for a JPEG at a fraction of its size that keeps every edge, and the padding, on a whole pixel."""
    width, height = image.size
    for scale in (8, 4, 2):
        whole = width % scale == height % scale == (width - height) % (2 * scale) == 0
        if whole and max(width, height) >= 2 * size * scale:
            image.draft(None, (width // scale, height // scale))
            return


def _to_rgb(image: Image, background: tuple[int, int, int]) -> Image:
    import PIL.Image

    turn = _turn(image.info.get("exif"))
    if image.mode.startswith(("I", "F")):
        image = _to_8_bits(image)
    if image.mode == "La":  # premultiplied grey, which Pillow converts to nothing else
        image = image.convert("LA")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = PIL.Image.new("RGB", layer.size, background)
        image.paste(layer, mask=layer)
    elif image.mode != "RGB":
        image = image.convert("RGB")
    return image if turn is None else image.transpose(turn)


def _to_8_bits(image: Image) -> Image:
    """Scale a grey image of 16-bit or 32-bit values to mode L; Pillow's own conversion clips."""
    wide = image.convert("F")
    low, high = cast(tuple[float, float], wide.getextrema())
    if not math.isfinite(low) or not math.isfinite(high):
        raise ImageDecodeError("the image holds values that are infinite or not a number")
    if image.mode.startswith("I;16"):
        black, white = 0.0, 65535.0
    else:
        customary = (255.0, 65535.0) if image.mode == "I" else (1.0, 255.0, 65535.0)
        black, white = next(((0.0, top) for top in customary if low >= 0.0 and high <= top), (low, high))
    scale = 255.0 / (white - black) if white > black else 0.0
    grey = wide.point(lambda value: value * scale + (0.5 - black * scale)).convert("L")
    grey.info.pop("transparency", None)  # a 16-bit value, which would name another grey here
    return grey


def _turn(exif: bytes | None) -> Transpose | None:
    """Return the transposition that sets an image upright, from the orientation in its EXIF block.

    Pillow's own reader warns about every odd entry, and cameras write many.
    """
    from PIL.Image import Transpose

    upright = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    block = (exif or b"").removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(block[:2])
    if order is None:
        return None
    try:
        (start,) = struct.unpack_from(f"{order}I", block, 4)
        (count,) = struct.unpack_from(f"{order}H", block, start)
        for entry in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind = struct.unpack_from(f"{order}HH", block, entry)
            if tag == _ORIENTATION:
                (value,) = struct.unpack_from(order + ("I" if kind == _LONG else "H"), block, entry + 8)
                return upright.get(value)
    except struct.error:  # cut short: as good as absent
        pass
    return None
