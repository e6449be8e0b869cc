"""Images behind http URLs: fetched beside everything else, once, and only when they are needed."""

from __future__ import annotations

import asyncio
import gc
import io
import os
import signal
import threading
import warnings
import weakref

import pytest
from support import damage
from support.threads import until

from llava_native import CancelToken, ImageEncoder, Llava, fetch
from llava_native.errors import BusyError, ClosedError, DownloadError, InvalidInputError, TimeoutExpiredError
from llava_native.prompt import Text
from llava_native.remote import RemoteImage

URL = "http://a.example/photo.png"
GREEDY = {"temperature": 0, "max_tokens": 6}


class Web:
    """Instead of a network: answers when it is let go; other hosts at once."""

    def __init__(self, answer):
        self.answer = answer
        self.asked = []
        self.go = threading.Event()

    def load_url(self, url, **_):
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
        assert llava.stats().waiting == 12
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


def test_a_map_whose_time_runs_out_behind_slow_servers(llava, web):
    slow = [llava.stream("What?", image=f"{URL}?{i}", timeout=60, **GREEDY) for i in range(16)]
    for stream in slow:
        stream.start()
    items = list(llava.map([f"{URL}?m{i}" for i in range(6)], ordered=False, timeout=0.1, **GREEDY))
    assert {type(item.error) for item in items} == {TimeoutExpiredError}
    assert len(items) == 6
    for stream in slow:
        stream.close()


def test_a_token_ends_it_though_nobody_asks_for_more(llava, web):
    token, ended = CancelToken(), threading.Event()
    stream = llava.stream("What?", image=URL, cancel=token, **GREEDY)
    stream.on_end(ended.set)
    stream.start()
    until(lambda: web.asked)
    token.cancel()
    assert ended.wait(30)


def test_requests_that_share_an_image_share_no_error(llava, web):
    messages = llava.planner.read(asking())
    streams = [llava.respond(messages, **GREEDY) for _ in range(3)]
    for stream in streams:
        stream.start()
    until(lambda: llava.stats().waiting == 3)
    web.answer = DownloadError(f"{URL}: the server says 404")
    web.go.set()
    errors = []
    for stream in streams:
        with pytest.raises(DownloadError) as caught:
            stream.result()
        errors.append(caught.value)
    assert len({id(error) for error in errors}) == 3
    assert len(web.asked) == 1


def test_it_is_allowed_by_the_one_who_fetches(llava, paths, options, web, picture):
    web.go.set()
    messages = llava.planner.read(asking())
    part = llava.planner.image_part(URL)
    with Llava(*paths, **{**options, "allow_urls": False}) as other:
        for call in (
            lambda: other.respond(messages),
            lambda: other.chat(messages=messages),
            lambda: other.stream("What?", image=part),
            lambda: other.stream("What?", image=[RemoteImage(URL)]),
            lambda: other.stream_prompt([Text("What?"), part]),
        ):
            with pytest.raises(InvalidInputError, match="allow_urls"):
                call()
        assert not web.asked
        expected = llava.respond(messages, **GREEDY).result().text
        assert other.respond(messages, **GREEDY).result().text == expected  # it is here by now


def test_messages_of_two_kinds_are_refused(llava):
    messages = llava.planner.read(asking())
    with pytest.raises(InvalidInputError, match="not both"):
        llava.respond([*messages, *asking()])


def test_a_child_that_dies_meanwhile_is_not_missed(paths, options, web, picture):
    with Llava(*paths, **options, isolate=True) as llava:
        stream = llava.stream("What?", image=URL, **GREEDY)
        stream.start()
        until(lambda: web.asked)
        os.kill(llava.engine.pid, signal.SIGKILL)
        until(lambda: llava.engine._worker.dead)
        web.go.set()
        assert stream.result().text == llava.generate("What?", image=picture, **GREEDY).text


def test_an_encoder_waits_for_it(paths, web, picture):
    web.go.set()
    image = RemoteImage(URL)
    with ImageEncoder(paths[1], n_threads=1) as encoder:
        assert bytes(encoder.encode(image)) == bytes(encoder.encode(picture))
    assert web.asked == [URL]
