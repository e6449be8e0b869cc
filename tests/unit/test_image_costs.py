"""Small image files that claim much: refused before they are decoded."""

from __future__ import annotations

import io
import struct

import pytest
from PIL import Image

from llava_native import images
from llava_native.errors import ImageDecodeError, ImageTooLargeError


def jpeg2000(side, **options):
    """Return a JPEG 2000 of 64 x 64 pixels whose header claims `side`."""
    file = io.BytesIO()
    Image.new("RGB", (64, 64)).save(file, "JPEG2000", no_jp2=True, num_resolutions=1, **options)
    data = bytearray(file.getvalue())
    struct.pack_into(">6I", data, data.index(b"\xff\x51") + 6, side, side, 0, 0, side, side)
    return bytes(data)


@pytest.mark.parametrize(
    "options", [{"codeblock_size": (4, 4)}, {"codeblock_size": (4, 4), "precinct_size": (4, 4)}]
)
def test_a_jpeg_2000_of_tiny_blocks_is_refused_where_it_is_large(options):
    with pytest.raises(ImageTooLargeError, match="blocks"):
        images.open_image(jpeg2000(8192, **options))
    assert images.open_image(jpeg2000(64, **options)).size == (64, 64)


def test_a_jpeg_2000_of_ordinary_blocks_is_not_counted():
    with pytest.raises(ImageDecodeError):  # there are no such pixels in it
        images.open_image(jpeg2000(4096))


def test_a_tiff_of_one_huge_tile_is_refused():
    header = struct.pack("<2sHI", b"II", 42, 8)
    tags = [(256, 16), (257, 16), (258, 8), (259, 1), (262, 1), (277, 1), (322, 16384), (323, 16384)]
    tags += [(324, 8), (325, 16384 * 16384)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    data = header + struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0)
    with pytest.raises(ImageTooLargeError, match="tiles of 16384 x 16384"):
        images.open_image(data + bytes(1000))
