"""Where an encoded image comes from. Files, pipes and buffers: see test_images.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from llava_native import fetch
from llava_native.errors import ImageTooLargeError, InvalidInputError
from llava_native.remote import RemoteImage
from llava_native.sources import file_of, open_source

URL = "http://a.example/photo.png"


@pytest.fixture(autouse=True)
def web(monkeypatch):
    monkeypatch.setattr(fetch, "load_url", lambda _, **__: b"fetched")


def test_the_file_behind_a_url():
    assert file_of("data:,inline") == b"inline"
    assert file_of(RemoteImage(URL)) == b"fetched"
    path, pixels = Path("photo.png"), object()
    assert file_of(path) is path
    assert file_of(pixels) is pixels


def test_a_fetched_image_is_called_by_its_url():
    file, name = open_source(RemoteImage(URL), 10)
    assert (file.read(), name) == (b"fetched", URL)
    with pytest.raises(ImageTooLargeError, match=f"^{URL} has 7 bytes"):
        open_source(RemoteImage(URL), 5)


def test_a_url_that_nobody_allowed_is_no_path():
    with pytest.raises(InvalidInputError, match="is a URL, not a path"):
        open_source("HTTP://a.example/photo.png", 10)
