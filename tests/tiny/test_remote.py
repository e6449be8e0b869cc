"""Images behind http URLs: fetched beside everything else, once, and only when they are needed."""

from __future__ import annotations

import asyncio
import io
import threading
import time

import pytest
from support import damage
from support.threads import until

from llava_native import ImageEncoder, Llava, fetch
from llava_native.errors import DownloadError
from llava_native.remote import RemoteImage, at_hand

URL = "http://a.example/photo.png"
GREEDY = {"temperature": 0, "max_tokens": 6}


class Web:
    """Instead of a network: answers when it is let go."""

    def __init__(self, answer):
        self.answer = answer
        self.asked = []
        self.go = threading.Event()

    def load_url(self, url):
        self.asked.append(url)
        assert self.go.wait(60)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.fixture
def web(monkeypatch, picture):
    file = io.BytesIO()
    picture.save(file, "PNG")
    web = Web(file.getvalue())
    monkeypatch.setattr(fetch, "load_url", web.load_url)
    yield web
    web.go.set()


@pytest.fixture
def paths(tmp_path):
    return damage.good_text(tmp_path / "text.gguf"), damage.good_mmproj(tmp_path / "mmproj.gguf")


@pytest.fixture
def llava(paths):
    with Llava(*paths, n_ctx=512, n_threads=1, chat_template="chatml", allow_urls=True) as opened:
        yield opened


def asking(url=URL):
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What?"}]
    return [{"role": "user", "content": content}]


def test_a_plan_fetches_nothing(llava, web):
    assert llava.plan(asking()).n_images == 1
    llava.stream("What?", image=URL).close()
    assert web.asked == []


def test_the_answer_is_that_about_the_picture(llava, web, picture, tmp_path):
    web.go.set()
    expected = llava.generate("What?", image=picture, **GREEDY).text
    assert llava.generate("What?", image=URL, **GREEDY).text == expected
    chat = llava.chat()
    assert chat.send("What?", URL, **GREEDY).result().text == expected
    again = chat.send("Again?", **GREEDY).result().text
    assert web.asked == [URL, URL]  # the conversation's once
    chat.save(tmp_path / "talk.chat")
    loaded = llava.load_chat(tmp_path / "talk.chat")
    assert [message.role for message in loaded.messages] == ["user", "assistant"] * (
        2 if again.strip() else 1
    )
    assert len(web.asked) == 2


def test_nobody_waits_for_anothers_image(llava, web, picture):
    async def ask():
        began = time.perf_counter()
        slow = llava.stream("What?", image=URL, **GREEDY)
        waiting = asyncio.ensure_future(slow.aresult())
        other = await llava.stream("What?", image=picture, **GREEDY).aresult()
        assert web.asked == [URL]
        assert not waiting.done()
        web.go.set()
        assert (await waiting).text == other.text
        return time.perf_counter() - began

    asyncio.run(asyncio.wait_for(ask(), 60))


def test_an_answer_is_cancelled_while_its_image_is_fetched(llava, web):
    stream = llava.stream("What?", image=URL, **GREEDY)
    stream.start()
    until(lambda: web.asked)
    stream.close()
    until(lambda: llava.stats().cancelled == 1)
    web.go.set()
    assert llava.generate("What?", **GREEDY).usage.completion_tokens


def test_what_cannot_be_fetched_is_an_error_of_its_own_answer(llava, web, picture):
    web.answer = DownloadError("http://a.example answered 404")
    stream = llava.stream("What?", image=URL, **GREEDY)
    stream.start()
    other = llava.stream("What?", image=picture, **GREEDY)
    other.start()
    web.go.set()
    with pytest.raises(DownloadError, match="404"):
        stream.result()
    assert other.result().usage.completion_tokens


def test_an_encoder_waits_for_it(paths, web, picture):
    web.go.set()
    image = RemoteImage(URL)
    with ImageEncoder(paths[1], n_threads=1) as encoder:
        assert bytes(encoder.encode(image)) == bytes(encoder.encode(picture))
    assert at_hand(image) == web.answer
    assert web.asked == [URL]


def test_an_isolated_model_gets_it_too(paths, web, picture):
    web.go.set()
    with Llava(
        *paths, n_ctx=512, n_threads=1, chat_template="chatml", allow_urls=True, isolate=True
    ) as llava:
        assert (
            llava.generate("What?", image=URL, **GREEDY).text
            == llava.generate("What?", image=picture, **GREEDY).text
        )
