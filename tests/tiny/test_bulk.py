"""Llava.map: answers in order or as they are done, errors in their place, and a few images at a time."""

from __future__ import annotations

import time

import numpy as np
import pytest
from PIL import Image
from support import damage
from support.threads import settled

from llava_native import Llava
from llava_native.errors import BusyError, ClosedError, ImageDecodeError, InvalidInputError

GREEDY = {"temperature": 0, "max_tokens": 6}

# for all that compare answers with `expected`
same_answers = pytest.mark.cpu("sums depend on what is evaluated at once, and these choices are not clear")


def pieces_of(llava, text, image):
    return llava.planner.prompt(llava.planner.question(text, [image], None)).pieces


@pytest.fixture
def llava(tmp_path):
    text, mmproj = damage.good_text(tmp_path / "text.gguf"), damage.good_mmproj(tmp_path / "mmproj.gguf")
    with Llava(text, mmproj, n_ctx=512, n_threads=1, chat_template="chatml") as opened:
        yield opened


@pytest.fixture
def images():
    random = np.random.default_rng(3)
    return [Image.fromarray(random.integers(0, 256, (30, 30, 3), dtype=np.uint8)) for _ in range(30)]


@pytest.fixture
def expected(llava, images):
    return [llava.generate("What?", image=image, **GREEDY).text for image in images]


@same_answers
@pytest.mark.parametrize("window", [1, 3, None])
def test_in_order(llava, images, expected, window):
    items = list(llava.map(images, "What?", window=window, **GREEDY))
    assert [item.index for item in items] == list(range(30))
    assert [item.text for item in items] == expected
    assert all(item.image is image for item, image in zip(items, images, strict=True))
    assert all(item.result.usage.completion_tokens for item in items)


@same_answers
def test_as_completed(llava, images, expected):
    texts = {item.index: item.text for item in llava.map(images, "What?", ordered=False, **GREEDY)}
    assert texts == dict(enumerate(expected))


@same_answers
@pytest.mark.parametrize("ordered", [True, False])
def test_bad_images_yield_their_errors(llava, images, expected, ordered):
    images[3], images[17], images[29] = b"nothing", "/nowhere.png", np.zeros((0, 3), np.uint8)
    items = sorted(llava.map(images, "What?", ordered=ordered, **GREEDY), key=lambda item: item.index)
    kinds = {item.index: type(item.error) for item in items if item.error}
    assert kinds[3] is ImageDecodeError
    assert kinds[17] is FileNotFoundError
    assert sorted(kinds) == [3, 17, 29]
    assert [item.text for item in items if not item.error] == [
        text for i, text in enumerate(expected) if i not in kinds
    ]
    with pytest.raises(FileNotFoundError):
        _ = items[17].text


@same_answers
def test_an_image_of_a_wrong_kind_is_its_own_error(llava, images, expected):
    images[1] = np.zeros((8, 8, 3), np.float32)
    items = list(llava.map(images[:3], "What?", **GREEDY))
    assert isinstance(items[1].error, TypeError)
    assert [items[0].text, items[2].text] == [expected[0], expected[2]]


@same_answers
def test_answers_that_came_in_time_may_be_read_later(llava, images, expected):
    stream = llava.map(images[:2], "What?", timeout=1.0, **GREEDY)
    first = next(stream)
    time.sleep(1.2)
    assert [first.text, next(stream).text] == expected[:2]


def test_images_are_taken_a_few_ahead_and_let_go(llava, images):
    taken = []

    def endless():
        while True:
            taken.append(len(taken))
            yield images[len(taken) % 30]

    with llava.map(endless(), "What?", window=5, **GREEDY) as answers:
        for n, _ in enumerate(answers, 1):
            assert len(taken) <= n + 5
            if n == 40:
                break
    assert list(answers) == []
    settled(llava)


def test_dropped_in_the_middle(llava, images):
    next(llava.map(images, "What?", **GREEDY))
    settled(llava)


def test_an_iterable_that_fails_is_the_callers(llava, images):
    def broken():
        yield from images[:3]
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(llava.map(broken(), "What?", window=2, **GREEDY))
    settled(llava)


def test_images_stay_out_of_the_caches_but_what_they_share_is_kept(llava, images):
    list(llava.map(images, "What?", **GREEDY))
    stats = llava.stats()
    head = len(pieces_of(llava, "What?", images[0])[0])
    assert (stats.prefixes, stats.embedding_bytes, stats.images_encoded) == (1, 0, 30)
    assert stats.cells == head  # what all of them begin with
    assert stats.cached_tokens > 20 * head


def test_nothing_to_do(llava):
    assert list(llava.map([])) == []
    with pytest.raises(InvalidInputError, match="window"):
        llava.map([], window=0)
    llava.close()
    with pytest.raises(ClosedError):
        llava.map([])


@same_answers
def test_other_callers_are_served_beside_it(llava, images, expected):
    answers = llava.map(images * 2, "What?", **GREEDY)
    for n, item in enumerate(answers):
        if n % 10 == 0:
            assert llava.generate("What?", image=images[n % 30], **GREEDY).text == expected[n % 30]
        assert item.text == expected[n % 30]


@pytest.mark.parametrize("ordered", [True, False])
def test_a_full_queue_is_no_images_error(images, ordered):
    with Llava.demo(n_seq_max=1, max_waiting=1) as llava:
        answers = list(llava.map(images[:8], "How many things are there?", ordered=ordered, max_tokens=4))
    assert sorted(item.index for item in answers) == list(range(8))
    assert [item.error for item in answers] == [None] * 8


def test_a_queue_that_others_fill_is_an_error(llava, images):
    llava._engine._max_waiting = -llava._engine.n_running  # as if others had asked so much
    with pytest.raises(BusyError, match="max_waiting"):
        next(llava.map(images, "What?", **GREEDY))


def test_a_mistake_in_the_options_is_raised_once(llava, images):
    with pytest.raises(InvalidInputError, match="max_tokens"):
        llava.map(images, "What?", max_tokens=0)
