"""RemoteImage: an image behind an http URL."""

from __future__ import annotations

import threading

import pytest
from support.threads import until

from llava_native import fetch
from llava_native.errors import CancelledError, DownloadError, InvalidInputError
from llava_native.remote import RemoteImage

URL = "http://a.example/photo.png"


@pytest.fixture
def slow(monkeypatch):
    """What was asked for of a server, and what lets it answer."""
    asked, go = [], threading.Event()

    def load_url(url, **_):
        asked.append(url)
        assert go.wait(60)
        return b"file"

    monkeypatch.setattr(fetch, "load_url", load_url)
    return asked, go


def test_it_is_fetched_when_it_is_read_and_once(monkeypatch):
    asked = []
    monkeypatch.setattr(fetch, "load_url", lambda url, **_: asked.append(url) or b"file")
    image = RemoteImage(f" {URL} ")
    assert not asked
    assert not image.is_here
    assert image.read() == image.read() == b"file"
    assert image.is_here
    assert asked == [URL]
    assert repr(image) == f"RemoteImage('{URL}')"


def test_a_failure_is_not_kept(monkeypatch):
    answers = [DownloadError("503"), b"file"]

    def load_url(url, **_):
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(fetch, "load_url", load_url)
    image = RemoteImage(URL)
    with pytest.raises(DownloadError, match="503"):
        image.read()
    assert not image.is_here
    assert image.read() == b"file"


def test_threads_that_need_it_at_once(slow):
    asked, go = slow
    image, found = RemoteImage(URL), []
    threads = [threading.Thread(target=lambda: found.append(image.read())) for _ in range(4)]
    for thread in threads:
        thread.start()
    until(lambda: asked)
    go.set()
    for thread in threads:
        thread.join()
    assert found == [b"file"] * 4
    assert len(asked) == 1


def test_who_waits_for_anothers_fetch_may_give_up(slow):
    asked, go = slow
    image = RemoteImage(URL)
    thread = threading.Thread(target=image.read)
    thread.start()
    until(lambda: asked)
    with pytest.raises(CancelledError):
        image.read(lambda: False)
    go.set()
    thread.join()
    assert image.read(lambda: False) == b"file"


def test_what_cannot_be_asked_for_is_refused_at_once():
    with pytest.raises(InvalidInputError, match="names no host"):
        RemoteImage("http:///photo.png")
