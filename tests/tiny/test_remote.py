"""Images behind http URLs: fetched beside everything else, once, and only when they are needed."""

from __future__ import annotations

import asyncio
import gc
import io
import threading
import warnings
import weakref

import pytest
from support import damage
from support.threads import until

from llava_native import ImageEncoder, Llava, fetch
from llava_native.errors import BusyError, ClosedError, DownloadError, InvalidInputError, TimeoutExpiredError
from llava_native.remote import RemoteImage

URL = "http://a.example/photo.png"
GREEDY = {"temperature": 0, "max_tokens": 6}


class Web:
    """Instead of a network: answers when it is let go; other hosts at once."""

    def __init__(self, answer):
        self.answer = answer
        self.asked = []
        self.go = threading.Event()

    def load_url(self, url):
        self.asked.append(url)
        if "a.example" in url:
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
    until(lambda: not any(thread.name == "llava_native fetch" for thread in threading.enumerate()))


@pytest.fixture
def paths(tmp_path):
    return damage.good_text(tmp_path / "text.gguf"), damage.good_mmproj(tmp_path / "mmproj.gguf")


@pytest.fixture
def options():
    return {"n_ctx": 512, "n_threads": 1, "chat_template": "chatml", "allow_urls": True}


@pytest.fixture
def llava(paths, options):
    with Llava(*paths, **options) as opened:
        yield opened


def asking(url=URL):
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What?"}]
    return [{"role": "user", "content": content}]


def test_a_plan_fetches_nothing(llava, web):
    assert llava.plan(asking()).n_images == 1
    llava.stream("What?", image=URL).close()
    assert web.asked == []
    with pytest.raises(InvalidInputError, match="password"):
        llava.plan(asking("http://me:secret@a.example/"))


def test_the_answer_is_that_about_the_picture(llava, web, picture, tmp_path):
    web.go.set()
    at_hand = llava.generate("What?", image=picture, **GREEDY)
    assert at_hand.timings.fetch_s == 0
    expected = at_hand.text
    answer = llava.generate("What?", image=URL, **GREEDY)
    assert answer.text == expected
    assert 0 < answer.timings.fetch_s < answer.timings.first_token_s
    chat = llava.chat()
    assert chat.send("What?", URL, **GREEDY).result().text == expected
    chat.send("Again?", **GREEDY).result()
    assert web.asked == [URL, URL]  # the conversation's once
    chat.save(tmp_path / "talk.chat")
    messages = llava.load_chat(tmp_path / "talk.chat").messages
    assert [message.role for message in messages] == [message.role for message in chat.messages]
    assert len(web.asked) == 2
    assert llava.ask(URL, ["What?"] * 8, **GREEDY) == [expected] * 8
    assert len(web.asked) == 3  # once for all questions


def test_nobody_waits_for_anothers_image(llava, web, picture):
    async def ask():
        slow = [llava.stream("What?", image=f"{URL}?{i}", **GREEDY) for i in range(12)]
        waiting = [asyncio.ensure_future(stream.aresult()) for stream in slow]
        other = await llava.stream("What?", image=picture, **GREEDY).aresult()
        quick = await llava.stream("What?", image="https://b.example/photo.png", **GREEDY).aresult()
        assert quick.text == other.text
        assert not any(task.done() for task in waiting)
        assert llava.stats().waiting == 0 if llava.engine.model is None else 12
        web.go.set()
        assert {result.text for result in await asyncio.gather(*waiting)} == {other.text}

    asyncio.run(asyncio.wait_for(ask(), 60))


@pytest.mark.parametrize("how", ["close", "cancel", "drop"])
def test_cancelled_while_its_image_is_fetched(llava, web, how):
    ended = threading.Event()
    stream = llava.stream("What?", image=URL, **GREEDY)
    stream.on_end(ended.set)
    stream.start()
    until(lambda: web.asked)
    if how == "drop":
        del stream
    else:
        getattr(stream, how)()
    if how == "cancel":
        assert stream.result().finish_reason == "cancelled"
    assert ended.wait(30)  # and the fetch goes on
    web.go.set()
    assert llava.generate("What?", **GREEDY).usage.completion_tokens


def test_time_runs_out_while_it_is_fetched(llava, web):
    with pytest.raises(TimeoutExpiredError):
        llava.generate("What?", image=URL, timeout=0.05, **GREEDY)

    async def ask():
        stream = llava.stream("What?", image=URL, **GREEDY)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(stream.aresult(), 0.05)
        assert stream.finish_reason == "cancelled"

    asyncio.run(ask())


def test_what_cannot_be_fetched_is_an_error_of_its_own_answer(llava, web, picture):
    stream = llava.stream("What?", image=URL, **GREEDY)
    stream.start()
    with llava.stream("What?", image=picture, **GREEDY) as other:
        assert other.result().usage.completion_tokens
    web.answer = DownloadError(f"{URL}: the server says 404")
    web.go.set()
    with pytest.raises(DownloadError, match="404"):
        stream.result()
    web.answer = b"no picture"
    items = list(llava.map([URL, picture], **GREEDY))
    assert str(items[0].error).startswith(f"{URL} is not an image")
    assert items[1].result is not None


def test_closed_while_it_is_fetched(paths, options, web):
    llava, errors = Llava(*paths, **options), []
    stream = llava.stream("What?", image=URL, **GREEDY)

    def wait():
        try:
            stream.result()
        except ClosedError as exc:
            errors.append(exc)

    thread = threading.Thread(target=wait)
    thread.start()
    until(lambda: web.asked)
    llava.engine.close()
    thread.join(30)
    assert len(errors) == 1
    web.go.set()
    llava.close()


def test_dropped_while_it_is_fetched(paths, options, web):
    llava = Llava(*paths, **options)
    stream = llava.stream("What?", image=URL, **GREEDY)
    stream.start()
    until(lambda: web.asked)
    engine = weakref.ref(llava.engine)
    with warnings.catch_warnings(action="ignore", category=ResourceWarning):
        del stream, llava
        gc.collect()
    assert engine() is None


def test_those_whose_images_are_elsewhere_count(paths, options, web):
    with Llava(*paths, **options, n_seq_max=1, max_waiting=2) as llava:
        streams = [llava.stream("What?", image=URL, **GREEDY) for _ in range(4)]
        for stream in streams[:3]:
            stream.start()
        with pytest.raises(BusyError, match="max_waiting"):
            streams[3].start()
        web.go.set()
        assert len({stream.result().text for stream in streams}) == 1


def test_an_encoder_waits_for_it(paths, web, picture):
    web.go.set()
    image = RemoteImage(URL)
    with ImageEncoder(paths[1], n_threads=1) as encoder:
        assert bytes(encoder.encode(image)) == bytes(encoder.encode(picture))
    assert web.asked == [URL]
