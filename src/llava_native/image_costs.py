"""What decoding an image would cost, beyond its pixels, where a small file can claim it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from llava_native.errors import ImageTooLargeError

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["check_cost"]

_TILE_WIDTH, _TILE_LENGTH = 322, 323  # TIFF tags
_MAX_BLOCKS = 2**20  # code-blocks of a JPEG 2000; OpenJPEG takes about 600 bytes for each
_COD = 0x52  # marker of JPEG 2000: how all components are coded; 0x53 is of one of them
_CODING = re.compile(rb"\xff[\x52\x53]\x00")


def check_cost(image: Image, max_pixels: int, name: str) -> None:
    """Refuse an opened image whose decoder would take far more memory than its pixels.

    Raises
    ------
    ImageTooLargeError
        A tile of a TIFF has more than `max_pixels`, or a JPEG 2000 too many code-blocks.
    """
    if image.format == "TIFF":
        tags = image.tag_v2  # type: ignore[attr-defined]
        width, length = (int(tags.get(tag) or 0) for tag in (_TILE_WIDTH, _TILE_LENGTH))
        if width * length > max_pixels:
            raise ImageTooLargeError(f"{name} has tiles of {width} x {length} pixels, more than are decoded")
    if image.format == "JPEG2000":
        _check_blocks(image, name)


def _check_blocks(image: Image, name: str) -> None:
    samples = 3 * image.width * image.height
    if samples >> 4 <= _MAX_BLOCKS:  # the smallest have 4 x 4
        return
    file = image.fp  # type: ignore[attr-defined]
    at = file.tell()
    file.seek(0)
    data = file.read()
    file.seek(at)
    for match in _CODING.finditer(data):
        bits = _block_bits(data[match.start() + 1 : match.start() + 50])
        if bits is not None and samples >> bits > _MAX_BLOCKS:
            raise ImageTooLargeError(
                f"{name} is coded in {samples >> bits:,} blocks; {_MAX_BLOCKS:,} are decoded"
            )


def _block_bits(segment: bytes) -> int | None:
    """Return the binary logarithm of a code-block's samples, None for what is no COD or COC segment."""
    marker, body = segment[0], segment[3 : 1 + segment[2]]
    style, body = (body[:1], body[5:]) if marker == _COD else (body[1:2], body[2:])
    if len(body) < 5 or body[0] > 32:
        return None
    x, y = body[1] + 2, body[2] + 2
    if x + y > 12:
        return None
    if style[0] & 1:  # precincts, which a block is not larger than
        for size in body[5 : 6 + body[0]]:
            x, y = min(x, max(0, (size & 15) - 1)), min(y, max(0, (size >> 4) - 1))
    return x + y
