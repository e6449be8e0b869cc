"""Streams on an event loop, and cancellation at every stage, which frees the sequence and harms nobody."""

from __future__ import annotations

import asyncio
import io
import os
import threading

import numpy as np
import pytest
from PIL import Image
from support import damage
from support.threads import settled, until

from llava_native import CancelToken, Llava
from llava_native.engine import engine
from llava_native.errors import BusyError, ImageDecodeError, TimeoutExpiredError
from llava_native.isolation import decoding

EOS = 2
GREEDY = {"temperature": 0, "max_tokens": 12}
FOREVER = {"temperature": 0, "max_tokens": None, "logit_bias": {EOS: -1e9}}


@pytest.fixture
def paths(tmp_path):
    return damage.good_text(tmp_path / "text.gguf"), damage.good_mmproj(tmp_path / "mmproj.gguf")


@pytest.fixture
def llava(paths):
    with Llava(*paths, n_ctx=512, n_threads=1, chat_template="chatml") as opened:
        yield opened


@pytest.fixture
def picture():
    return Image.fromarray(np.random.default_rng(5).integers(0, 256, (40, 40, 3), dtype=np.uint8))


@pytest.mark.skipif(not hasattr(os, "SCHED_BATCH"), reason="Linux's scheduler")
def test_threads_make_way_for_an_event_loop(llava, picture, monkeypatch):
    def policies():
        threads = [thread for thread in threading.enumerate() if thread.name.startswith("llava_native")]
        return {os.sched_getscheduler(thread.native_id) for thread in threads}

    told = []
    monkeypatch.setattr(engine, "serve_loop", lambda: told.append(True))
    llava.generate("What?", image=picture, **GREEDY)
    assert (policies(), told) == ({os.SCHED_OTHER}, [])
    for _ in range(2):
        asyncio.run(llava.stream("What?", image=picture, **GREEDY).aresult())
    until(lambda: policies() == {os.SCHED_BATCH})
    assert told == [True]
    assert os.sched_getscheduler(0) == os.SCHED_OTHER


def test_what_keeps_the_gil_is_decoded_apart_for_an_event_loop(llava, tmp_path, monkeypatch):
    apart = []

    def prepare_apart(source, *args):
        apart.append(source)
        return decoding_apart(source, *args)

    decoding_apart = decoding.prepare_apart
    monkeypatch.setattr(decoding, "prepare_apart", prepare_apart)
    path = tmp_path / "picture.jp2"
    noise = np.random.default_rng(5).integers(0, 256, (200, 300, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    here = llava.generate("What?", image=path, **GREEDY).text
    assert not apart
    there = asyncio.run(llava.stream("What?", image=path, **GREEDY).aresult())
    assert there.text == here
    assert there.timings.cached_tokens == there.usage.prompt_tokens - 1  # the same pixels
    assert [source.name for source in apart] == [repr(str(path))]
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ImageDecodeError, match="damaged or truncated"):
        asyncio.run(llava.stream("What?", image=path, **GREEDY).aresult())
    assert len(apart) == 2


def test_a_pipe_is_read_once_on_an_event_loop(llava, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    file = io.BytesIO()
    Image.new("RGB", (40, 40), "red").save(file, "PNG")
    expected = llava.generate("What?", image=file.getvalue(), **GREEDY).text
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(file.getvalue(),))
    writer.start()
    answer = asyncio.run(llava.stream("What?", image=tmp_path / "pipe", timeout=30, **GREEDY).aresult())
    writer.join()
    assert answer.text == expected


class SlowEncoder:
    """Holds an image up while it is prepared, or encoded, until it is let go."""

    def __init__(self, encoder, stage):
        self._encoder, self._stage = encoder, stage
        self.reached, self.go = threading.Event(), threading.Event()

    def __getattr__(self, name):
        return getattr(self._encoder, name)

    def _hold(self, stage):
        if stage == self._stage:
            self.reached.set()
            assert self.go.wait(60)

    def prepare(self, image):
        self._hold("prepare")
        return self._encoder.prepare(image)

    def encode_pixels(self, pixels, **options):
        self._hold("encode")
        return self._encoder.encode_pixels(pixels, **options)


# -- on an event loop


def test_async_for_gives_what_for_gives(llava, picture):
    expected = list(llava.stream("What?", image=picture, **GREEDY))

    async def main():
        async with llava.stream("What?", image=picture, **GREEDY) as stream:
            tokens = [token async for token in stream]
        return tokens, stream.text, stream.finish_reason

    tokens, text, reason = asyncio.run(main())
    assert tokens == expected
    assert text == "".join(token.text for token in expected)
    assert reason == "length"


def test_many_tasks(llava, picture):
    texts = [f"Number {n}" for n in range(30)]
    expected = [llava.generate(text, **GREEDY).text for text in texts]

    async def main():
        results = await asyncio.gather(*(llava.stream(text, **GREEDY).aresult() for text in texts))
        return [result.text for result in results]

    assert asyncio.run(main()) == expected


def test_other_tasks_run_while_a_stream_is_waited_for(llava):
    """The loop turns while the engine works: far more often than there are tokens to wait for."""

    async def main():
        turns = 0

        async def spin():
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        spinner = asyncio.create_task(spin())
        n = len([token async for token in llava.stream("Hello", **FOREVER)])
        spinner.cancel()
        return turns, n

    turns, n = asyncio.run(main())
    assert turns > n > 100


def test_a_cancelled_task_frees_its_sequence(llava):
    async def main():
        stream = llava.stream("Hello", **FOREVER)

        async def consume():
            async for _ in stream:
                await asyncio.sleep(0)
            raise AssertionError("it ended")

        task = asyncio.create_task(consume())
        while not stream.usage.completion_tokens:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return stream

    stream = asyncio.run(main())
    stream.close()
    assert stream.finish_reason == "cancelled"
    settled(llava)
    assert llava.generate("Hello", **GREEDY).text


def test_a_task_that_is_cancelled_while_it_waits_frees_its_sequence(llava, picture):
    slow = llava.planner._encoder = SlowEncoder(llava.encoder, "prepare")

    async def main():
        stream = llava.stream("Hello", image=picture, **FOREVER)
        task = asyncio.create_task(anext(stream))
        while not slow.reached.is_set():
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert stream.finish_reason == "cancelled"

    asyncio.run(main())
    settled(llava)  # though its image is still being prepared
    slow.go.set()


def test_a_timeout_and_a_bad_image_on_an_event_loop(llava):
    async def main():
        with pytest.raises(TimeoutExpiredError):
            await llava.stream("Hello", timeout=0.0, **GREEDY).aresult()
        with pytest.raises(ImageDecodeError):
            await llava.stream("Hello", image=b"nothing", **GREEDY).aresult()
        token = CancelToken()
        stream = llava.stream("Hello", cancel=token, **FOREVER)
        await anext(stream)
        token.cancel()
        with pytest.raises(StopAsyncIteration):
            await anext(stream)
        assert stream.finish_reason == "cancelled"

    asyncio.run(main())
    settled(llava)


def test_two_tasks_in_one_stream(llava, picture):
    slow = llava.planner._encoder = SlowEncoder(llava.encoder, "encode")

    async def main():
        stream = llava.stream("Hello", image=picture, **GREEDY)
        first = asyncio.create_task(anext(stream))
        await asyncio.sleep(0)
        with pytest.raises(BusyError, match="task"):
            await anext(stream)
        slow.go.set()
        assert (await first).id >= 0
        stream.close()

    asyncio.run(main())


# -- cancelled at every stage


@pytest.mark.parametrize("how", ["cancel", "close", "token", "drop"])
@pytest.mark.parametrize("stage", ["prepare", "encode", "queue", "answer"])
def test_cancelled(llava, picture, stage, how):
    scheduler = llava._engine._scheduler
    n_running = scheduler._n_running
    slow = llava.planner._encoder = SlowEncoder(llava.encoder, stage)
    if stage == "queue":
        scheduler._n_running = 0  # nobody may begin
    token = CancelToken()
    stream = llava.stream("What?", image=picture, cancel=token, **FOREVER)
    stream.start()
    if stage == "answer":
        next(stream)
    elif stage == "queue":
        until(lambda: llava.stats().images_encoded == 1)
    else:
        assert slow.reached.wait(60)
    if how == "drop":
        del stream
    else:
        {"cancel": stream.cancel, "close": stream.close, "token": token.cancel}[how]()
        assert list(stream) == []
        assert stream.finish_reason == "cancelled"
    settled(llava)
    assert llava.stats().cancelled == 1
    slow.go.set()
    scheduler._n_running = n_running
    assert llava.generate("What?", image=picture, **GREEDY).text


def test_a_caller_that_waits_is_told_at_once(llava, picture):
    """Cancelled by another thread while it is inside next(), and the engine has nothing to say."""
    slow = llava.planner._encoder = SlowEncoder(llava.encoder, "encode")
    stream = llava.stream("Hello", image=picture, **FOREVER)
    seen = []
    thread = threading.Thread(target=lambda: seen.append(list(stream)))
    thread.start()
    assert slow.reached.wait(60)
    stream.cancel()
    thread.join(60)
    assert seen == [[]]
    assert stream.finish_reason == "cancelled"
    slow.go.set()
    settled(llava)


def test_a_cancelled_stream_leaves_the_others_alone(llava):
    expected = llava.generate("Hello", **FOREVER).text
    stream = llava.stream("Hello", **FOREVER)
    for _ in range(20):
        victim = llava.stream("Bye", **FOREVER)
        next(victim)
        next(stream)
        victim.cancel()
        assert list(victim) == []
    assert stream.result().text == expected
