"""Fetching: which images are fetched, on how many threads, and who hears of it."""

from __future__ import annotations

import gc
import threading
import weakref

import pytest
from support.threads import until

from llava_native import fetch
from llava_native.errors import CancelledError, DownloadError
from llava_native.fetching import Fetching
from llava_native.remote import RemoteImage


class Web:
    """Instead of a network: every URL waits until it is let go."""

    def __init__(self):
        self.asked = []
        self.go = threading.Event()
        self.fails = False

    def load_url(self, url, **_):
        self.asked.append(url)
        assert self.go.wait(60)
        if self.fails:
            raise DownloadError("404")
        return url.encode()


@pytest.fixture
def web(monkeypatch):
    web = Web()
    monkeypatch.setattr(fetch, "load_url", web.load_url)
    yield web
    web.go.set()
    until(lambda: not threads())


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "llava_native fetch"]


def images(n):
    return [RemoteImage(f"http://a.example/{i}") for i in range(n)]


class Request:
    """Whoever waits."""

    is_over = ended = False


def listener(told):
    return lambda _, error: told.append(error)


def test_a_few_at_once_in_their_order(web):
    fetching, told, request = Fetching(), [], Request()
    wanted = images(40)
    for image in wanted:
        fetching.fetch(image, request, listener(told))
    until(lambda: len(web.asked) == 16)
    assert len(threads()) == 16
    assert set(web.asked) == {image.url for image in wanted[:16]}
    assert not told
    web.go.set()
    until(lambda: len(told) == 40)
    assert told == [None] * 40
    assert [image.read() for image in wanted] == [image.url.encode() for image in wanted]
    assert len(web.asked) == 40
    until(lambda: not threads())
    late = RemoteImage("http://a.example/late")  # and they begin again
    fetching.fetch(late, request, listener(told))
    until(lambda: late.is_here)


def test_one_fetch_for_all_who_wait(web):
    fetching, told, request = Fetching(), [], Request()
    (image,) = images(1)
    for i in range(20):
        fetching.fetch(image, request, lambda _, error, i=i: told.append((i, error)))
    until(lambda: web.asked)
    assert len(threads()) == 1
    web.go.set()
    until(lambda: len(told) == 20)
    assert told == [(i, None) for i in range(20)]
    assert len(web.asked) == 1


def test_what_cannot_be_fetched_is_told_and_tried_again(web):
    fetching, told, request = Fetching(), [], Request()
    (image,) = images(1)
    web.fails = True
    web.go.set()
    fetching.fetch(image, request, listener(told))
    until(lambda: told)
    assert isinstance(told[0], DownloadError)
    web.fails = False
    fetching.fetch(image, request, listener(told))
    until(lambda: len(told) == 2)
    assert told[1] is None


def test_what_nobody_waits_for_is_not_begun(web):
    fetching, told, request, over = Fetching(), [], Request(), Request()
    gone = Request()
    wanted = images(20)
    for i, image in enumerate(wanted):
        fetching.fetch(image, (request if i < 16 else over if i < 18 else gone), listener(told))
    shared = wanted[17]
    fetching.fetch(shared, request, listener(told))
    until(lambda: len(web.asked) == 16)
    over.is_over = True
    del gone
    web.go.set()
    until(lambda: not threads())
    assert set(web.asked) == {image.url for image in [*wanted[:16], shared]}
    assert len(told) == 18  # two of them of the shared one


def test_what_nobody_waits_for_any_more_is_told_to_end(web, monkeypatch):
    looks = []

    def load_url(url, is_wanted):
        looks.append(is_wanted)
        until(lambda: not is_wanted())
        if len(looks) == 1:
            fetching.fetch(image, late, listener(told))  # just now somebody comes
        raise CancelledError("nobody waits")

    fetching, told, request, late = Fetching(), [], Request(), Request()
    monkeypatch.setattr(fetch, "load_url", load_url)
    (image,) = images(1)
    fetching.fetch(image, request, listener(told))
    until(lambda: looks)
    request.is_over = True
    until(lambda: len(looks) == 2)
    assert looks[1]()
    late.is_over = True
    until(lambda: not threads())
    assert told == []


def test_each_gets_an_error_of_its_own(web):
    fetching, told, request = Fetching(), [], Request()
    (image,) = images(1)
    for _ in range(3):
        fetching.fetch(image, request, listener(told))
    web.fails = True
    web.go.set()
    until(lambda: len(told) == 3)
    assert [str(error) for error in told] == ["404"] * 3
    assert len({id(error) for error in told}) == 3


def test_who_fails_to_listen_harms_nobody(web, caplog):
    def fail(request, error):
        raise ValueError("mistake")

    fetching, told, request = Fetching(), [], Request()
    (image,) = images(1)
    fetching.fetch(image, request, fail)
    fetching.fetch(image, request, listener(told))
    web.go.set()
    until(lambda: told)
    assert "mistake" in caplog.text


def test_a_system_without_threads(web, monkeypatch):
    fetching, told, request = Fetching(), [], Request()
    start = threading.Thread.start

    def refuse(thread):
        raise RuntimeError("can't start new thread")

    first, second = images(2)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        fetching.fetch(first, request, listener(told))
    assert [str(error) for error in told] == ["can't start new thread"]
    fetching.fetch(first, request, listener(told))
    until(lambda: web.asked)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        fetching.fetch(second, request, listener(told))  # the thread that there is gets to it
    assert threading.Thread.start is start
    web.go.set()
    until(lambda: len(told) == 3)
    assert told[1:] == [None, None]
    assert second.is_here


def test_nobody_is_kept_alive(web):
    fetching, request, told = Fetching(), Request(), []
    (image,) = images(1)
    web.fails = True
    gc.disable()
    try:
        fetching.fetch(image, request, listener(told))
        until(lambda: web.asked)
        alive = weakref.ref(request)
        del request
        assert alive() is None
        request = Request()
        fetching.fetch(image, request, listener(told))
        alive = weakref.ref(request)
        web.go.set()
        until(lambda: not threads())
        assert len(told) == 1
        del request, told
        assert alive() is None  # without the collector: no circle was made
    finally:
        gc.enable()
