"""``data:`` URLs: what they hold, what is refused, and that long ones do not keep the GIL."""

from __future__ import annotations

import base64
import binascii
import random

import pytest

from llava_native import data_url
from llava_native.data_url import decode_data_url, is_data_url
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
    with pytest.raises(ImageTooLargeError, match="101 bytes; 100"):
        decode_data_url("data:," + "x" * 101, max_bytes=100)
    with pytest.raises(ImageTooLargeError):
        decode_data_url("data:," + "x" * 401, max_bytes=100)
    assert decode_data_url("data:," + "x" * 100, max_bytes=100) == b"x" * 100


def test_what_is_one():
    assert is_data_url("DATA:,x")
    assert not any(map(is_data_url, ["datax", b"data:,x", None, "photo.png"]))


@pytest.mark.parametrize("n", [data_url._QUANTUM // 4 * 3 - 1, data_url._QUANTUM, 10 * data_url._QUANTUM + 7])
def test_long_ones_are_decoded_in_parts(n, monkeypatch):
    data = random.Random(n).randbytes(n)
    decode, parts = binascii.a2b_base64, []

    def spied(part, **options):
        parts.append(len(part))
        return decode(part, **options)

    monkeypatch.setattr(binascii, "a2b_base64", spied)
    assert decode_data_url("data:;base64," + base64.b64encode(data).decode()) == data
    assert max(parts) <= data_url._QUANTUM


def test_a_long_one_that_is_damaged():
    text = base64.b64encode(bytes(data_url._QUANTUM)).decode()
    with pytest.raises(ImageDecodeError, match="no valid base64"):
        decode_data_url(f"data:;base64,{text[:-9]}!{text[-8:]}")
