"""The engine on a real model: many callers, shared prefixes and images, and answers that stay the same."""

from __future__ import annotations

import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image
from support import damage
from support.child import outcome
from support.threads import until

from llava_native import ImageEmbedding, Llava
from llava_native.errors import BusyError, ImageDecodeError, InvalidInputError

EOS = 2
GREEDY = {"temperature": 0, "max_tokens": 12}
FOREVER = {"temperature": 0, "max_tokens": None, "logit_bias": {EOS: -1e9}}


def pieces_of(llava, text, image):
    return llava.planner.prompt(llava.planner.question(text, [image], None)).pieces


@pytest.fixture
def paths(tmp_path):
    return damage.good_text(tmp_path / "text.gguf"), damage.good_mmproj(tmp_path / "mmproj.gguf")


@pytest.fixture
def make(paths):
    """A function that opens a Llava on small files."""

    def opened(**options):
        return Llava(*paths, **{"n_ctx": 512, "n_threads": 1, "chat_template": "chatml"} | options)

    return opened


@pytest.fixture
def llava(make):
    with make() as opened:
        yield opened


def pictures(n):
    random = np.random.default_rng(3)
    return [Image.fromarray(random.integers(0, 256, (40, 40, 3), dtype=np.uint8)) for _ in range(n)]


QUESTIONS = ["What is this?", "What is that?", "Why?", "Who was it, and when did they come here again?"]


# -- many callers


@pytest.mark.parametrize("threads", [8, 24])
def test_threads_get_what_they_would_get_alone(make, threads):
    images = pictures(3)
    asked = [(QUESTIONS[i % 4], images[i % 3] if i % 5 else None) for i in range(40)]
    with make(prefix_cache=0, embedding_cache=0, n_seq_max=1) as plain:
        expected = [plain.generate(text, image=image, **GREEDY).text for text, image in asked]
    assert len(set(expected)) > 10
    with make() as llava, ThreadPoolExecutor(threads) as pool:
        answers = pool.map(lambda q: llava.generate(q[0], image=q[1], **GREEDY).text, asked)
        assert list(answers) == expected
        stats = llava.stats()
        assert (stats.requests, stats.finished, stats.running, stats.waiting) == (40, 40, 0, 0)
        assert stats.images_encoded == 3
        assert stats.cached_tokens > 0
        assert stats.steps < 40 * 12  # they were generated together


@pytest.mark.cpu("sums depend on what is evaluated at once, and these choices are not clear")
def test_sampled_answers_depend_on_their_seed_only(make):
    options = {"temperature": 1.0, "max_tokens": 12}
    exact = {"type_k": "f32", "type_v": "f32"}  # rounding to F16 makes large differences of small ones
    with make(n_seq_max=1, prefix_cache=0, **exact) as plain:
        expected = [plain.generate("Hello", seed=seed, **options).text for seed in range(12)]
    assert len(set(expected)) > 6
    with make(**exact) as llava, ThreadPoolExecutor(12) as pool:
        assert (
            list(pool.map(lambda s: llava.generate("Hello", seed=s, **options).text, range(12))) == expected
        )


def test_ask_shares_the_image(make):
    image = pictures(1)[0]
    with make(prefix_cache=0) as plain:
        expected = [plain.generate(q, image=image, **GREEDY).text for q in QUESTIONS]
    with make() as llava:
        assert llava.ask(image, QUESTIONS, **GREEDY) == expected
        stats = llava.stats()
        assert stats.images_encoded == 1
        # everything up to the image's end was evaluated once
        shared = 3 * (llava.encoder.n_tokens + 1)
        assert stats.cached_tokens >= shared
        with pytest.raises(ImageDecodeError):
            llava.ask(b"nothing", QUESTIONS)
        assert llava.ask(image, []) == []


def test_too_many_wait(make):
    with make(n_seq_max=1, max_waiting=2) as llava:
        llava._engine.n_running = llava._engine._scheduler._n_running = 0  # nobody may begin
        first, second, third = (llava.stream("Hello", **GREEDY) for _ in range(3))
        first.start()
        second.start()
        with pytest.raises(BusyError, match="max_waiting"):
            third.start()
        llava._engine._scheduler._n_running = 1
        texts = {stream.result().text for stream in (first, second)}
        assert texts == {third.result().text}  # it may wait now
        # more questions than may wait: the rest begin when it is their turn
        assert len(llava.ask(pictures(1)[0], QUESTIONS, **GREEDY)) == 4


# -- the prefix cache


@pytest.mark.parametrize("options", [{}, {"prefix_cache": 24}, {"n_batch": 16, "n_ubatch": 8}])
def test_the_prefix_cache_changes_no_token(make, options):
    image, other = pictures(2)
    asked = [(q, i) for _ in range(2) for i in (image, other, [image, other], None) for q in QUESTIONS]
    with make(prefix_cache=0) as plain:
        expected = [plain.generate(q, image=i, **GREEDY) for q, i in asked]
        assert plain.stats().cached_tokens == 0
    with make(**options) as llava:
        for (q, i), want in zip(asked, expected, strict=True):
            got = llava.generate(q, image=i, **GREEDY)
            assert (got.text, got.finish_reason, got.usage) == (want.text, want.finish_reason, want.usage)
        assert llava.stats().cached_tokens > 0


def test_the_second_question_on_an_image_evaluates_the_question_only(llava):
    image = pictures(1)[0]
    first = llava.generate("What is this?", image=image, **GREEDY)
    second = llava.generate("Who was it?", image=image, **GREEDY)
    assert first.timings.cached_tokens == 0
    (head, rows, one), (_, _, other) = (pieces_of(llava, q, image) for q in ("What is", "Who was"))
    shared = next(i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    assert shared > 1
    assert second.timings.cached_tokens == len(head) + len(rows) + shared
    assert second.timings.encode_s == second.timings.prefill_image_s == 0
    assert first.timings.encode_s > 0
    assert first.timings.prefill_image_s > 0


def test_the_image_is_known_by_its_pixels(llava, tmp_path):
    one, two = pictures(2)
    path = tmp_path / "picture.png"
    one.save(path)
    first = llava.generate("What?", image=path, **GREEDY)
    assert llava.generate("What?", image=np.asarray(one), **GREEDY).timings.cached_tokens > 0
    two.save(path)
    second = llava.generate("What?", image=path, **GREEDY)
    assert first.timings.encode_s > 0
    assert second.timings.encode_s > 0
    assert llava.stats().images_encoded == 2


def test_rows_that_change_under_their_buffer_are_other_rows(llava):
    rows = np.array(llava.encoder.encode(pictures(1)[0]))
    embedding = ImageEmbedding.from_buffer(rows)
    first = llava.generate("What?", image=embedding, **GREEDY)
    rows *= -1
    assert llava.generate("What?", image=embedding, **GREEDY).text != first.text


def test_old_prefixes_never_make_a_request_fail(make):
    with make(n_ctx=128, prefix_cache=128) as llava:
        for n in range(8):
            assert llava.generate(f"Number {n} " * 5, **GREEDY).finish_reason == "length"
        whole = llava.generate("Hello", **FOREVER)
        assert whole.usage.total_tokens == llava.context.n_ctx_seq
        assert llava.stats().evicted > 0


def test_requests_that_do_not_fit_together_take_turns(make):
    with make(n_ctx=256) as llava:
        alone = llava.generate("Hello", **FOREVER).text
    with make(n_ctx=256) as llava, ThreadPoolExecutor(4) as pool:
        assert set(pool.map(lambda _: llava.generate("Hello", **FOREVER).text, range(4))) == {alone}
        assert llava.stats().preempted > 0


def test_preferences_that_make_no_sense(make):
    for options in ({"n_seq_max": 0}, {"n_seq_max": 300}, {"prefix_cache": -1}, {"embedding_cache": -1}):
        with pytest.raises(InvalidInputError):
            make(**options)


# -- the embedding cache


def test_an_image_is_encoded_once_in_this_process_and_the_next(make, tmp_path):
    image = pictures(1)[0]
    options = {"prefix_cache": 0, "cache_dir": tmp_path / "rows"}
    with make(**options) as llava:
        first = llava.generate("What?", image=image, **GREEDY)
        second = llava.generate("Why?", image=image, **GREEDY)
        assert (first.timings.cached_images, second.timings.cached_images) == (0, 1)
        assert llava.stats().images_from_memory == 1
        assert llava.stats().embedding_bytes > 0
    with make(**options) as llava:
        again = llava.generate("What?", image=image, **GREEDY)
        stats = llava.stats()
    assert again.text == first.text
    assert (stats.images_encoded, stats.images_from_disk) == (0, 1)


def test_a_damaged_file_is_dropped_and_made_again(make, tmp_path):
    image, folder = pictures(1)[0], tmp_path / "rows"
    with make(cache_dir=folder) as llava:
        expected = llava.generate("What?", image=image, **GREEDY).text
    (file,) = folder.iterdir()
    whole = file.read_bytes()
    for damaged in (whole[:-4], b"", whole[:20]):
        file.write_bytes(damaged)
        with make(cache_dir=folder) as llava:
            assert llava.generate("What?", image=image, **GREEDY).text == expected
            assert llava.stats().images_encoded == 1
        assert file.read_bytes() == whole


def test_no_embedding_cache(make):
    image = pictures(1)[0]
    with make(prefix_cache=0, embedding_cache=0) as llava:
        texts = {llava.generate("What?", image=image, **GREEDY).text for _ in range(3)}
        assert len(texts) == 1
        assert llava.stats().images_encoded == 3
        assert llava.stats().embedding_bytes == 0


def test_an_encoder_that_somebody_else_uses_is_waited_for(make):
    image = pictures(1)[0]
    with make(prefix_cache=0, embedding_cache=0) as llava:
        stop = threading.Event()

        def encode():
            while not stop.is_set():
                with contextlib.suppress(BusyError):
                    llava.encoder.encode(image)

        thread = threading.Thread(target=encode)
        thread.start()
        try:
            for _ in range(20):
                assert llava.generate("What?", image=image, temperature=0, max_tokens=1).text
        finally:
            stop.set()
            thread.join()


# -- its thread


def test_no_thread_before_the_first_answer_and_none_after_close(make):
    with make() as llava:
        names = {thread.name for thread in threading.enumerate()}
        assert "llava_native" not in names
        llava.generate("Hello", image=pictures(1)[0], **GREEDY)
        names = {thread.name for thread in threading.enumerate()}
        assert {"llava_native", "llava_native prepare", "llava_native encode"} <= names
    names = {thread.name for thread in threading.enumerate()}
    assert not any(name.startswith("llava_native") for name in names)


def test_a_process_ends_though_nothing_was_closed(paths):
    code = """
    import sys
    from llava_native import Llava
    llava = Llava(sys.argv[1], n_ctx=512, n_threads=1)
    stream = llava.stream("Hello", max_tokens=None)
    print(next(stream).id >= 0)
    """
    assert outcome(code, paths[0], strict=False) == (0, "True", "")


def test_a_dropped_llava_ends_its_thread(make):
    import gc
    import warnings

    llava = make()
    assert llava.generate("Hello", **GREEDY).text
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        del llava
        gc.collect()
        until(lambda: not any(t.name == "llava_native" for t in threading.enumerate()))
        gc.collect()


def test_after_a_fork(paths):
    code = """
    import os, sys, warnings
    warnings.simplefilter("ignore")
    from llava_native import Llava
    from llava_native.errors import ForkError
    with Llava(sys.argv[1], n_ctx=512, n_threads=1) as llava:
        stream = llava.stream("Hello", max_tokens=3)
        next(stream)
        pid = os.fork()
        if pid == 0:
            try:
                [list(stream) for _ in range(9)]
                llava.stream("Hello").start()
            except ForkError:
                os._exit(7)
            os._exit(1)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        stream.close()
    """
    assert outcome(code, paths[0], strict=False) == (0, "7", "")
