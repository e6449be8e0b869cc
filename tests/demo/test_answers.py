"""The embedded model: answers that are true or false, not only tokens that came."""

from __future__ import annotations

import asyncio
import gc
import math
import subprocess
import sys
import threading
import warnings
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from llava_native import Constraint, Llava
from llava_native._native import live_counts
from llava_native.errors import InvalidInputError

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
TRUTH = {
    "shapes.png": (
        "A medium green heart, a medium purple crescent, a large red circle and a medium green crescent."
    ),
    "sign.webp": "A small yellow crescent and a medium green triangle. It says BAND.",
    "turned.jpg": "A medium yellow circle, a small white heart and a large white triangle.",
    "large.jpg": "A small pink triangle, a large white star and a medium black star. It says 80.",
    "left.png": "A small green heart and a large yellow triangle.",
    "right.png": "A medium black star.",
}
# pictures, a question, and its true answer
FACTS = [
    (["shapes.png"], "How many circles does the picture have?", "One."),
    (["shapes.png"], "What color does the circle have?", "Red."),
    (["shapes.png"], "Do you see a purple crescent?", "Yes."),
    (["shapes.png"], "Is there a blue object here?", "No."),
    (["shapes.png"], "Where's the green crescent?", "Top right."),
    (["sign.webp"], "What is the text?", "It says BAND."),
    (["sign.webp"], "Which shapes are to the left of the triangle?", "A yellow crescent."),
    (["turned.jpg"], "What's below the triangle?", "A white heart."),
    (["turned.jpg"], "Which shape is the largest?", "The white triangle."),
    (["turned.jpg"], "Read what is printed.", "There is no text."),
    (["large.jpg"], "What is the smallest thing?", "The pink triangle."),
    (["large.jpg"], "Read the text.", "It says 80."),
    (["left.png", "right.png"], "Which image has a triangle?", "The first."),
    (["right.png", "left.png"], "Which picture has a triangle?", "The second."),
    (["left.png", "right.png"], "Which picture has a yellow object?", "The first."),
    (["right.png", "left.png"], "Which image has a green object?", "The second."),
]


@pytest.fixture
def demo():
    with Llava.demo(n_threads=1) as opened:
        yield opened


def ask(llava, names, question):
    return llava.describe([EXAMPLES / name for name in names], question)


@pytest.mark.parametrize("name", TRUTH)
def test_every_example_is_described_truly(demo, name):
    assert demo.describe(EXAMPLES / name) == TRUTH[name]


@pytest.mark.parametrize(("names", "question", "answer"), FACTS, ids=[f"{f[0][0]} {f[1]}" for f in FACTS])
def test_questions_get_true_answers(demo, names, question, answer):
    assert ask(demo, names, question) == answer


def test_the_same_question_about_another_image_has_another_answer(demo):
    for _ in range(3):  # whatever is cached by now
        for name in ("left.png", "right.png", "shapes.png"):
            assert demo.describe(EXAMPLES / name) == TRUTH[name]


def test_the_order_of_two_images_counts(demo):
    for question in ("Which image has a heart?", "Which picture has a green object?"):
        assert ask(demo, ["left.png", "right.png"], question) == "The first."
        assert ask(demo, ["right.png", "left.png"], question) == "The second."


def test_a_conversation_of_three_turns(demo):
    chat = demo.chat()
    turns = (
        ("Describe this image.", TRUTH["large.jpg"]),
        ("What color is the triangle?", "Pink."),
        ("What does it say?", "It says 80."),
    )
    for n, (question, answer) in enumerate(turns):
        image = None if n else EXAMPLES / "large.jpg"
        with chat.send(question, image, temperature=0) as stream:
            assert stream.result().text == answer


@pytest.mark.cpu("what is cached changes the sums, and a hot sampler sees it")
def test_a_seed_repeats_an_answer(demo):
    def answer(seed):
        # all of the vocabulary, and hot: the model is sure of its answer
        options = {"temperature": 3.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
        return demo.describe(EXAMPLES / "shapes.png", seed=seed, max_tokens=24, **options)

    assert len({answer(seed) for seed in range(8)}) > 1  # and what is cached is the same from now on
    assert answer(7) == answer(7)


def test_a_stream_gives_what_generate_gives(demo):
    with demo.stream("Describe this image.", image=EXAMPLES / "shapes.png", temperature=0) as stream:
        assert "".join(token.text for token in stream) == TRUTH["shapes.png"]
    assert stream.finish_reason == "eog"


@pytest.mark.parametrize("nothing", [None, []])
def test_no_image_is_no_picture_to_describe(demo, nothing):
    with pytest.raises(InvalidInputError, match="there is no image"):
        demo.describe(nothing)
    with pytest.raises(InvalidInputError, match="there is no image"):
        demo.ask(nothing, ["What is this?"])
    assert isinstance(next(demo.map([nothing])).error, InvalidInputError)


def test_one_str_is_not_several_questions(demo):
    with pytest.raises(InvalidInputError, match="questions are several"):
        demo.ask(EXAMPLES / "shapes.png", "What is this?")


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"images": []}, TypeError, "did you mean 'image'"),
        ({"temprature": 0}, TypeError, "did you mean 'temperature'"),
        ({"constraint": {"type": "object"}}, InvalidInputError, "Constraint.json_schema"),
        ({"logprobs": -1}, InvalidInputError, "logprobs must be"),
    ],
)
def test_wrong_options_are_named_at_once(demo, options, error, says):
    with pytest.raises(error, match=says):
        demo.generate("Hello", **options)


@pytest.mark.parametrize("isolate", [False, True])
def test_the_end_of_a_with_block_ends_its_streams(isolate):
    def fail():
        raise ValueError("mine")

    llava = Llava.demo(isolate=isolate)
    begun = llava.stream("Describe this image.", image=EXAMPLES / "shapes.png")
    waiting = llava.stream("Describe this image.", image=EXAMPLES / "left.png")
    next(begun)
    with pytest.raises(ValueError, match="mine"), llava:
        fail()
    assert llava.closed
    assert [begun.finish_reason, waiting.finish_reason] == ["cancelled", "cancelled"]


def test_the_end_of_a_with_block_ends_streams_that_others_are_inside_of():
    llava = Llava.demo()
    endless = {"max_tokens": 1000, "logit_bias": {llava.model.eos: -math.inf}}
    stream = llava.stream("Describe this image.", image=EXAMPLES / "shapes.png", **endless)
    next(stream)
    inside = threading.Thread(target=lambda: list(stream))

    async def body():
        async def read():
            async with llava.stream("Hello", **endless) as other:
                return [token async for token in other]

        task = asyncio.ensure_future(read())
        await asyncio.sleep(0.05)
        with llava:
            inside.start()
        return await asyncio.wait({task}, timeout=10)

    done, _ = asyncio.run(body())
    assert len(done) == 1
    inside.join(10)
    assert not inside.is_alive()
    assert llava.closed


def test_two_may_close_at_once():
    for _ in range(5):
        llava = Llava.demo(n_threads=1)
        llava.generate("Hello", max_tokens=1)
        with ThreadPoolExecutor(4) as pool:
            assert [f.result() for f in [pool.submit(llava.close) for _ in range(4)]] == [None] * 4


def test_an_array_that_is_filled_again_spoils_no_other_answer(demo):
    """Of the encoder's own size, so that no copy was made on the way."""
    side = demo.encoder.image_size
    one, other = (
        np.asarray(Image.open(EXAMPLES / name).convert("RGB").resize((side, side)))
        for name in ("left.png", "right.png")
    )
    right = [demo.describe(one), demo.describe(other)]
    with Llava.demo(n_threads=1) as llava:
        frame = one.copy()
        with llava.stream("Describe this image.", image=frame, temperature=0) as stream:
            stream.start()
            while not llava.stats().running:
                frame[:] = other
            stream.result()
        assert [llava.describe(one), llava.describe(other)] == right


def test_a_dropped_llava_that_used_a_constraint_is_gone():
    before = live_counts()
    llava = Llava.demo(n_threads=1)
    llava.generate("Hi", max_tokens=4, constraint=Constraint.regex("[ab]+"))
    with warnings.catch_warnings(action="ignore", category=ResourceWarning):
        del llava
        gc.collect()
    assert live_counts() == before


def test_a_finished_stream_keeps_no_picture(demo):
    picture = Image.open(EXAMPLES / "left.png").convert("RGB")
    seen = weakref.ref(picture)
    stream = demo.stream("Describe this image.", image=picture, temperature=0)
    del picture
    stream.result()
    assert seen() is None


def test_a_command_without_a_model_asks_the_embedded_one():
    command = [Path(sys.executable).with_name("llava-native"), "describe", EXAMPLES / "shapes.png"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == TRUTH["shapes.png"]
    assert "the embedded demo model answers" in done.stderr


def test_map_answers_about_every_picture(demo):
    paths = [EXAMPLES / name for name in TRUTH] * 3
    found = [item.text for item in demo.map(paths, temperature=0)]
    assert found == [TRUTH[path.name] for path in paths]


@pytest.mark.cpu("prefixes go to main memory")
def test_an_image_that_left_the_context_is_not_paid_for_again():
    names = ["shapes.png", "sign.webp", "large.jpg"]
    with Llava.demo(n_threads=1, prefix_cache=400, embedding_cache=0) as llava:
        for _ in range(3):
            for name in names:
                assert llava.describe(EXAMPLES / name) == TRUTH[name]
        stats = llava.stats()
    assert stats.images_encoded == len(names)
    assert stats.restored == 6
    assert stats.cells < 250  # of one image, while 144 rows of each of the others are in main memory
    assert stats.offloaded == 2


def test_many_threads_each_get_the_right_answers():
    with Llava.demo() as llava, ThreadPoolExecutor(32) as pool:

        def work(first):
            facts = [FACTS[(first + n) % len(FACTS)] for n in range(50)]
            return [(question, ask(llava, names, question), answer) for names, question, answer in facts]

        found = [row for rows in pool.map(work, range(32)) for row in rows]
    assert len(found) == 1600
    assert not [row for row in found if row[1] != row[2]]
