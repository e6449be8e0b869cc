"""``data:`` URLs: what they hold, what is refused, and that long ones do not keep the GIL."""

from __future__ import annotations

import base64
import binascii
import random
import tracemalloc

import pytest

from llava_native import data_url
from llava_native.data_url import check_data_url, decode_data_url
from llava_native.errors import ImageDecodeError, ImageTooLargeError


def test_data_urls():
    png = random.Random(1).randbytes(200)
    packed = base64.b64encode(png).decode()
    assert decode_data_url(f"data:image/png;base64,{packed}") == png
    assert decode_data_url(f"DATA:image/png;charset=x;BASE64,{packed}") == png
    assert decode_data_url(f"data:;base64,{packed.rstrip('=')}") == png  # without its padding
    lines = "\n".join(packed[i : i + 20] for i in range(0, len(packed), 20))
    assert decode_data_url(f"data:;base64,{lines}") == png
    assert decode_data_url(f"data:;base64,{packed.replace('+', '%2B').replace('/', '%2F')}") == png
    assert decode_data_url(f"data:;base64,{packed.replace('+', '-').replace('/', '_')}") == png
    assert decode_data_url("data:,a%20b") == b"a b"


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("data:image/png;base64", "no comma"),
        ("data:image/png;base64,", "no data"),
        ("data:image/png;base64,!!!!", "no valid base64"),
        ("data:image/png;base64,AAAAA", "no valid base64"),
    ],
)
def test_bad_data_urls(url, says):
    with pytest.raises(ImageDecodeError, match=says):
        decode_data_url(url)


def test_large_ones():
    with pytest.raises(ImageTooLargeError, match="more than the 100"):
        decode_data_url("data:," + "x" * 101, max_bytes=100)
    with pytest.raises(ImageTooLargeError):
        decode_data_url("data:," + "x" * 401, max_bytes=100)
    assert decode_data_url("data:," + "x" * 100, max_bytes=100) == b"x" * 100


def test_what_is_seen_before_anything_is_decoded():
    assert check_data_url("data:image/png;base64,!!!!") == len("data:image/png;base64,")
    for url, error in (
        ("data:x", ImageDecodeError),
        ("data:,", ImageDecodeError),
        ("data:,12345", ImageTooLargeError),
    ):
        with pytest.raises(error):
            check_data_url(url, max_bytes=1)


@pytest.mark.parametrize(
    "n", [1, 3, data_url._QUANTUM // 4 * 3 - 1, data_url._QUANTUM, 10 * data_url._QUANTUM + 7]
)
@pytest.mark.parametrize("form", ["plain", "lines", "escaped", "spaced", "unpadded", "bytes"])
def test_long_ones_are_decoded_in_parts(n, form, monkeypatch):
    data = random.Random(n).randbytes(n)
    text = base64.encodebytes(data).decode() if form == "lines" else base64.b64encode(data).decode()
    text = {
        "escaped": lambda: "".join(f"%{ord(letter):02x}" for letter in text),
        "spaced": lambda: "  ".join(text),
        "unpadded": lambda: text.rstrip("="),
    }.get(form, lambda: text)()
    url = "data:," + "".join(f"%{byte:02X}" for byte in data) if form == "bytes" else "data:;base64," + text
    decode, parts = binascii.a2b_base64, []

    def spied(part, **options):
        parts.append(len(part))
        return decode(part, **options)

    monkeypatch.setattr(binascii, "a2b_base64", spied)
    assert decode_data_url(url) == data
    assert all(part <= data_url._QUANTUM + 4 for part in parts)


@pytest.mark.parametrize("at", [9, data_url._QUANTUM, 2 * data_url._QUANTUM - 3])
@pytest.mark.parametrize("damage", ["!", "=", "\ud800", "é"])
def test_a_long_one_that_is_damaged(at, damage):
    text = base64.b64encode(bytes(2 * data_url._QUANTUM)).decode()
    with pytest.raises(ImageDecodeError) as caught:
        decode_data_url(f"data:;base64,{text[:at]}{damage}{text[at:]}")
    assert len(str(caught.value)) < 200


def test_escapes_take_no_memory_to_speak_of():
    url = "data:," + "%41" * 2**20
    tracemalloc.start()
    try:
        assert decode_data_url(url) == b"A" * 2**20
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()
