"""Images in every form that users hand over, and LLaVA-1.5's preprocessing to the byte."""

from __future__ import annotations

import base64
import contextlib
import ctypes
import io
import os
import struct
import subprocess
import sys
import tracemalloc
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile, ImageOps, PngImagePlugin
from support.reference import preprocess

from llava_native import images
from llava_native.errors import ImageDecodeError, ImageTooLargeError, InvalidInputError

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def encoded(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def noise(width, height, seed=0):
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def smooth(width, height):
    """A picture with gradients and a sharp edge, as photographs have."""
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    values = np.stack([255 * x, 255 * y, np.where(x + y > 1, 220, 30)], -1)
    return Image.fromarray(values.astype(np.uint8))


def as_array(pixels):
    return np.frombuffer(pixels.data, np.uint8).reshape(pixels.height, pixels.width, 3)


def address(view):
    return ctypes.addressof((ctypes.c_char * view.nbytes).from_buffer(view))


# -- sources ------------------------------------------------------------------------------------


def test_every_source_gives_the_same_pixels(tmp_path):
    picture = noise(7, 5)
    want, data = np.asarray(picture), encoded(picture)
    path = tmp_path / "bild ü.png"
    path.write_bytes(data)
    url = "data:image/png;base64," + base64.b64encode(data).decode()
    sources = [path, str(path), url, data, bytearray(data), memoryview(data)]
    sources += [np.frombuffer(data, np.uint8), picture, Image.open(path), want, memoryview(want)]
    sources += [np.asfortranarray(want), np.dstack([want, np.full((5, 7), 255, np.uint8)])]
    for source in sources:
        np.testing.assert_array_equal(as_array(images.rgb_pixels(source)), want, str(type(source)))


def test_grey_arrays():
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4)
    want = np.repeat(grey[..., None], 3, -1)
    np.testing.assert_array_equal(as_array(images.rgb_pixels(grey)), want)
    np.testing.assert_array_equal(as_array(images.rgb_pixels(grey[..., None])), want)


def test_a_reversed_view_is_read_as_it_looks():
    bgr = np.asarray(noise(6, 4))
    np.testing.assert_array_equal(as_array(images.rgb_pixels(bgr[::-1, ::2, ::-1])), bgr[::-1, ::2, ::-1])


def test_an_object_that_only_numpy_understands():
    class Tensor:
        def __array__(self, dtype=None, copy=None):
            return np.full((2, 2, 3), 7, np.uint8)

    assert as_array(images.rgb_pixels(Tensor())).tolist() == [[[7] * 3] * 2] * 2


def test_contiguous_rgb_arrays_are_not_copied():
    array = np.zeros((28, 28, 3), np.uint8)
    for pixels in (images.llava_pixels(array, 28), images.rgb_pixels(array)):
        assert address(pixels.data) == array.ctypes.data
        assert (pixels.data.ndim, pixels.data.nbytes, pixels.width, pixels.height) == (1, 2352, 28, 28)


def test_the_callers_buffer_is_released():
    data = bytearray(encoded(noise(3, 3)))
    opened = images.open_image(data)
    data.clear()  # BufferError if an export were left
    assert opened.size == (3, 3)


def test_a_pillow_image_is_left_alone():
    picture = Image.new("RGB", (2, 2), RED)
    opened = images.open_image(picture)
    opened.putpixel((0, 0), BLUE)
    assert picture.getpixel((0, 0)) == RED


@pytest.mark.parametrize(
    ("array", "error", "words"),
    [
        (np.zeros((4, 4, 3), np.float32), TypeError, "uint8"),
        (np.zeros((4, 4, 3), np.int8), TypeError, "uint8"),
        (np.zeros((4, 4, 3), bool), TypeError, "uint8"),
        (np.zeros((3, 4, 4, 3), np.uint8), ImageDecodeError, r"\(3, 4, 4, 3\)"),
        (np.zeros((4, 4, 2), np.uint8), ImageDecodeError, r"\(4, 4, 2\)"),
        (np.zeros((3, 40, 40), np.uint8), ImageDecodeError, r"\(3, 40, 40\)"),
        (np.zeros((0, 4, 3), np.uint8), ImageDecodeError, r"\(0, 4, 3\)"),
        (3.5, TypeError, "not float"),
        (None, TypeError, "not NoneType"),
        (["a.png"], TypeError, "not list"),
    ],
)
def test_what_is_no_image_array(array, error, words):
    with pytest.raises(error, match=words):
        images.rgb_pixels(array)


def test_paths_that_are_none(tmp_path):
    with pytest.raises(FileNotFoundError):
        images.open_image(tmp_path / "none.png")
    with pytest.raises(IsADirectoryError):
        images.open_image(tmp_path)
    for url in ("https://example.org/a.png", "http://example.org/a.png"):
        with pytest.raises(InvalidInputError, match="is a URL"):
            images.open_image(url)


def test_importing_is_light():
    code = "import sys, llava_native.images; print('PIL' in sys.modules, 'numpy' in sys.modules)"
    path = os.pathsep.join(p for p in sys.path if p)
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )
    assert done.stdout.split() == ["False", "False"], done.stderr


# -- orientation, modes, alpha ------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(kind, orientation):
    picture = smooth(24, 16)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(picture, kind, exif=exif)
    want = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert want.size == ((24, 16) if orientation < 5 else (16, 24))
    np.testing.assert_array_equal(np.asarray(images.open_image(data)), np.asarray(want.convert("RGB")))
    held = Image.open(io.BytesIO(data))
    np.testing.assert_array_equal(np.asarray(images.open_image(held)), np.asarray(want.convert("RGB")))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("cut", [0, 3, 9, 12, 18])
def test_a_damaged_exif_block_is_ignored(order, cut):
    mark = b"II" if order == "<" else b"MM"
    block = mark + struct.pack(f"{order}HIHHHIHH", 42, 8, 1, 0x0112, 3, 1, 6, 0)
    whole = images.open_image(encoded(smooth(24, 16), "JPEG", exif=b"Exif\0\0" + block))
    assert whole.size == (16, 24)
    damaged = b"Exif\0\0" + block[:cut] + b"\xff" * 30 * (cut % 2)
    assert images.open_image(encoded(smooth(24, 16), "JPEG", exif=damaged)).size == (24, 16)


@pytest.mark.parametrize(
    "mode", ["1", "L", "P", "RGB", "RGBA", "LA", "PA", "CMYK", "YCbCr", "HSV", "RGBX", "La"]
)
def test_modes(mode):
    colours = Image.new("RGB", (4, 4), WHITE)
    colours.paste((0, 0, 0), (0, 0, 2, 4))
    picture = colours.convert("LA").convert("La") if mode == "La" else colours.convert(mode)
    opened = images.open_image(picture)
    assert opened.mode == "RGB"
    assert opened.getpixel((0, 0)) == (0, 0, 0)
    assert opened.getpixel((3, 0)) == WHITE


def test_cmyk_jpeg():
    opened = images.open_image(encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG"))
    assert np.abs(np.asarray(opened).astype(int) - RED).max() < 4


def grey16(mode):
    return Image.fromarray(np.array([[0, 257 * 100, 65535]], np.uint16)).convert(mode)


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_16_bits_are_scaled_not_clipped(mode):
    assert [p[0] for p in np.asarray(images.open_image(grey16(mode)))[0]] == [0, 100, 255]


def test_a_dark_16_bit_image_stays_dark():
    picture = Image.fromarray(np.array([[0, 257, 514]], np.uint16))
    for source in (picture, encoded(picture), encoded(picture, "TIFF")):
        assert np.asarray(images.open_image(source))[0, :, 0].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("values", "want"),
    [
        ([0.0, 0.5, 1.0], [0, 128, 255]),
        ([0.0, 100.0, 255.0], [0, 100, 255]),
        ([-1.0, 0.0, 1.0], [0, 128, 255]),
        ([1e6, 1.5e6, 2e6], [0, 128, 255]),
        ([-3.0, -3.0, -3.0], [0, 0, 0]),
    ],
)
def test_float_images_span_the_smallest_customary_range(values, want):
    picture = Image.fromarray(np.array([values], np.float32))
    assert np.asarray(images.open_image(picture))[0, :, 0].tolist() == want


def test_infinite_values_are_refused():
    with pytest.raises(ImageDecodeError, match="infinite"):
        images.open_image(Image.fromarray(np.array([[0.0, np.inf]], np.float32)))


def transparent_palette():
    picture = Image.new("P", (2, 1))
    picture.putpalette([*RED, *BLUE])
    picture.putdata([0, 1])
    return encoded(picture, transparency=1)


def test_transparency_shows_the_background():
    half = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    half.putpixel((1, 0), (0, 0, 255, 0))
    keyed = Image.new("RGB", (2, 1), RED)
    keyed.putpixel((1, 0), BLUE)
    sources = [half, np.asarray(half), encoded(half), encoded(half, "WEBP", lossless=True)]
    sources += [transparent_palette(), encoded(keyed, transparency=BLUE), half.convert("RGBa")]
    for source in sources:
        assert list(images.open_image(source, background=GREEN).get_flattened_data()) == [RED, GREEN]
        assert images.open_image(source).getpixel((1, 0)) == WHITE


def test_half_transparent_pixels_are_mixed():
    opened = images.open_image(Image.new("RGBA", (1, 1), (255, 0, 0, 51)), background=(0, 0, 0))
    assert opened.getpixel((0, 0)) == (51, 0, 0)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_animations_give_their_first_frame(kind):
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, BLUE)]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    assert np.abs(np.asarray(images.open_image(data)).astype(int) - RED).max() < 4


# -- limits and damage --------------------------------------------------------------------------


def png_header(width, height):
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))


def test_pixels_are_counted_before_decoding():
    bomb = png_header(60_000, 60_000) + struct.pack(">I", 10) + b"IDAT" + bytes(14)
    with pytest.raises(ImageTooLargeError, match="60000 x 60000 = 3,600,000,000 pixels") as caught:
        images.open_image(bomb)
    assert "make it smaller" in str(caught.value)
    with pytest.raises(ImageDecodeError, match="damaged") as caught:  # now it does get to the pixels
        images.open_image(png_header(6, 6) + struct.pack(">I", 10) + b"IDAT" + bytes(14))
    assert not isinstance(caught.value, ImageTooLargeError)


@pytest.mark.parametrize("convert", [encoded, np.asarray, lambda picture: picture])
def test_the_pixel_limit_is_inclusive(convert):
    source = convert(noise(10, 10))
    assert images.open_image(source, max_pixels=100).size == (10, 10)
    with pytest.raises(ImageTooLargeError, match="limit is 99"):
        images.rgb_pixels(source, max_pixels=99)


def test_the_byte_limit(tmp_path):
    data = encoded(noise(10, 10))
    path = tmp_path / "a.png"
    path.write_bytes(data)
    for source in (data, path):
        assert images.open_image(source, max_bytes=len(data)).size == (10, 10)
        with pytest.raises(ImageTooLargeError, match="make it smaller"):
            images.open_image(source, max_bytes=len(data) - 1)


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="needs an endless file")
def test_an_endless_file_is_refused_unread():
    tracemalloc.start()
    try:
        with pytest.raises(ImageTooLargeError, match="/dev/zero"):
            images.open_image("/dev/zero", max_bytes=1000)
        assert tracemalloc.get_traced_memory()[1] < 10**6
    finally:
        tracemalloc.stop()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_named_pipe_is_a_file(tmp_path):
    pipe, data = tmp_path / "pipe", encoded(noise(9, 6))
    os.mkfifo(pipe)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(pipe.write_bytes, data)
        assert images.open_image(pipe).size == (9, 6)


def test_pillows_own_limit_neither_warns_nor_changes(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    for kind in ("PNG", "JPEG", "BMP"):
        assert images.open_image(encoded(noise(9, 9), kind)).size == (9, 9)
    assert Image.MAX_IMAGE_PIXELS == 10
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000"])
def test_truncation_at_any_length_is_an_exception(kind):
    data = encoded(noise(32, 32), kind)
    assert images.open_image(data).size == (32, 32)
    for length in (1, 8, 12, 20, 40, len(data) // 2):
        with pytest.raises(ImageDecodeError, match="the image data"):
            images.open_image(data[:length])


@pytest.mark.parametrize("data", [b"", b"hello", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"<svg/>", bytes(100)])
def test_other_data_is_named(data, tmp_path):
    path = tmp_path / "x.jpg"
    path.write_bytes(data)
    with pytest.raises(ImageDecodeError, match=r"x\.jpg"):
        images.open_image(path)
    with pytest.raises(ImageDecodeError, match=r"image data"):
        images.open_image(data)


def test_an_unread_damaged_pillow_image():
    with pytest.raises(ImageDecodeError, match="Pillow image"):
        images.open_image(Image.open(io.BytesIO(encoded(noise(32, 32))[:600])))


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["PNG", "JPEG", "WEBP", "GIF", "BMP", "PPM"]), st.data())
def test_flipped_bytes_give_an_image_or_an_image_error(kind, data):
    damaged = bytearray(encoded(noise(16, 16), kind))
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(ImageDecodeError):  # anything else, warnings included, is a failure
        assert images.open_image(damaged, max_pixels=10**6).mode == "RGB"


def test_a_png_text_bomb_is_an_image_error():
    text = PngImagePlugin.PngInfo()
    text.add_text("comment", "x" * 2_000_000, zip=True)
    with pytest.raises(ImageDecodeError):
        images.open_image(encoded(noise(4, 4), pnginfo=text))


# -- LLaVA-1.5 ----------------------------------------------------------------------------------


def assert_prepared(picture, size):
    np.testing.assert_array_equal(as_array(images.llava_pixels(picture, size)), preprocess(picture, size))


SIZES = [
    (336, 336),
    (335, 336),
    (336, 337),
    (1, 1),
    (1, 9),
    (9, 1),
    (640, 480),
    (481, 641),
    (2500, 3),
    (3, 2500),
]


@pytest.mark.parametrize("size", [28, 336, 337])
@pytest.mark.parametrize("shape", SIZES)
def test_bytes_equal_llava(shape, size):
    assert_prepared(noise(*shape), size)


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 400), st.integers(1, 400), st.integers(1, 64), st.integers(0, 9))
def test_bytes_equal_llava_at_any_size(width, height, size, seed):
    assert_prepared(noise(width, height, seed), size)


@pytest.mark.parametrize("shape", [(97, 64), (64, 97), (300, 7), (7, 300)])
def test_slabs_do_not_show(monkeypatch, shape):
    monkeypatch.setattr(images, "_SLAB_PIXELS", 1000)
    assert_prepared(noise(*shape), 37)


def test_the_padding_is_the_mean_colour_around_the_middle():
    prepared = as_array(images.llava_pixels(Image.new("RGB", (40, 20), RED), 40))
    assert (prepared[:8] == images.MEAN_COLOUR).all()
    assert (prepared[-8:] == images.MEAN_COLOUR).all()
    assert (prepared[12:28] == RED).all()


@pytest.mark.parametrize("shape", [(100_000, 1), (1, 100_000), (20_000, 100), (100, 20_000)])
def test_extreme_shapes(shape):
    prepared = as_array(images.llava_pixels(Image.new("RGB", shape, RED), 336))
    middle = prepared[:, 160:176] if shape[1] > shape[0] else prepared[160:176].transpose(1, 0, 2)
    share = 336 * min(shape) / max(shape)  # pixels that the line covers
    added = (middle.astype(int) - images.MEAN_COLOUR).sum(1)[5:-5, 0]
    assert np.abs(added - share * (255 - 122)).max() <= 3
    assert (prepared[:100, :100] == images.MEAN_COLOUR).all()


def test_tall_images_differ_by_a_level_at_most():
    picture = noise(60, 9000)
    prepared = as_array(images.llava_pixels(picture, 336)).astype(int)
    side, left = 9000, (9000 - 60) // 2
    rows = Image.new("RGB", (336, side))
    for top in range(0, side, 1000):
        slab = Image.new("RGB", (side, 1000), images.MEAN_COLOUR)
        slab.paste(picture, (left, -top))
        rows.paste(slab.resize((336, 1000), Image.Resampling.BICUBIC), (0, top))
    want = np.asarray(rows.resize((336, 336), Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(prepared - want).max() <= 1


def test_a_side_beyond_a_million_is_refused():
    with pytest.raises(ImageTooLargeError, match="1000001 x 1"):
        images.llava_pixels(Image.new("RGB", (1_000_001, 1)), 336)


@pytest.mark.parametrize(
    ("shape", "size", "scale"),
    [
        ((4032, 3024), 336, 4),
        ((3024, 4032), 336, 4),
        ((1920, 1080), 336, 2),
        ((896, 448), 28, 8),
        ((1343, 1007), 336, 1),  # sides that do not divide
        ((1336, 1000), 336, 1),  # too small
        ((1348, 1346), 336, 1),  # the padding would fall on half a pixel
    ],
)
def test_drafts_shrink_only_where_geometry_allows(shape, size, scale):
    opened = images.open_image(encoded(Image.new("RGB", shape), "JPEG"), draft_size=size)
    assert opened.size == (shape[0] // scale, shape[1] // scale)
    assert scale == 1 or max(opened.size) >= 2 * size


@pytest.mark.parametrize("shape", [(2016, 1512), (1512, 2016), (1920, 1080), (3264, 2448)])
def test_drafts_change_little(shape):
    data = encoded(smooth(*shape), "JPEG", quality=90)
    assert max(images.open_image(data, draft_size=336).size) < max(shape)
    whole = preprocess(Image.open(io.BytesIO(data)), 336).astype(int)
    difference = np.abs(as_array(images.llava_pixels(data, 336)) - whole)
    assert difference.mean() < 0.3
    assert difference.max() <= 12  # on the one sharp edge


def test_threads_share_sources():
    data = encoded(smooth(600, 400), "PNG")
    want = images.llava_pixels(data, 28).data.tobytes()
    with ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            sources = [data, Image.open(io.BytesIO(data))] * 8
            results = pool.map(lambda source: images.llava_pixels(source, 28).data.tobytes(), sources)
            assert set(results) == {want}
