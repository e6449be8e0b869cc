"""URLs: which texts are some, which can be asked for, and how they are shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from llava_native.errors import InvalidInputError
from llava_native.urls import is_data_url, is_web_url, shown, split_url


def test_data_urls():
    assert is_data_url("DATA:,x")
    assert not any(map(is_data_url, ["datax", b"data:,x", None, "photo.png"]))


def test_web_urls():
    assert is_web_url("http://a.example/b.png")
    assert is_web_url("HTTPS://a.example")
    others = ["http:/a", "https.png", "ftp://a.example", b"http://a.example", Path("http://a.example"), None]
    assert not any(map(is_web_url, others))


def test_the_parts_of_one():
    parts = split_url("https://a.example:8443/b.png?c=d")
    assert (parts.hostname, parts.port, parts.path, parts.query) == ("a.example", 8443, "/b.png", "c=d")


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://a.example:x/", "valid URL"),
        ("http://[::1/", "valid URL"),
        ("ftp://a.example/", "http, https or data"),
        ("http:///photo.png", "names no host"),
        ("http://me:secret@a.example/", "user name or password"),
    ],
)
def test_what_cannot_be_asked_for(url, why):
    with pytest.raises(InvalidInputError, match=why) as error:
        split_url(url)
    assert "secret" not in str(error.value)


def test_a_long_one_is_cut():
    assert shown("http://a.example/") == "http://a.example/"
    assert len(shown("http://a.example/" + "x" * 1000)) == 201
    assert shown("data:abc", 5) == "data:…"
