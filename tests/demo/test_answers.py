"""The embedded model: answers that are true or false, not only tokens that came."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from llava_native import Llava

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
TRUTH = {}
# pictures, a question, and its true answer
FACTS = []


@pytest.fixture
def demo():
    with Llava.demo(n_threads=1) as opened:
        yield opened


def ask(llava, names, question):
    return llava.describe([EXAMPLES / name for name in names], question)


@pytest.mark.parametrize("name", TRUTH)
def test_every_example_is_described_truly(demo, name):
    assert demo.describe(EXAMPLES / name) == TRUTH[name]


@pytest.mark.parametrize(("names", "question", "answer"), FACTS, ids=[f[1] for f in FACTS])
def test_questions_get_true_answers(demo, names, question, answer):
    assert ask(demo, names, question) == answer


def test_the_same_question_about_another_image_has_another_answer(demo):
    for _ in range(3):  # whatever is cached by now
        for name in ("left.png", "right.png", "shapes.png"):
            assert demo.describe(EXAMPLES / name) == TRUTH[name]


def test_the_order_of_two_images_counts(demo):
    for names in (("left.png", "right.png"), ("right.png", "left.png")):
        for n, ordinal in enumerate(("first", "second")):
            assert ask(demo, names, f"Describe the {ordinal} image.") == TRUTH[names[n]]


def test_a_seed_repeats_an_answer(demo):
    def answer(seed):
        return demo.describe(EXAMPLES / "shapes.png", temperature=3.0, seed=seed, max_tokens=24)

    assert answer(7) == answer(7)
    assert len({answer(seed) for seed in range(8)}) > 1


def test_a_stream_gives_what_generate_gives(demo):
    with demo.stream("Describe this image.", image=EXAMPLES / "shapes.png", temperature=0) as stream:
        assert "".join(token.text for token in stream) == TRUTH["shapes.png"]
    assert stream.finish_reason == "eog"


def test_a_command_without_a_model_asks_the_embedded_one():
    command = [Path(sys.executable).with_name("llava-native"), "describe", EXAMPLES / "shapes.png"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == TRUTH["shapes.png"]
    assert "the embedded demo model answers" in done.stderr


def test_map_answers_about_every_picture(demo):
    paths = [EXAMPLES / name for name in TRUTH] * 3
    found = [item.text for item in demo.map(paths)]
    assert found == [TRUTH[path.name] for path in paths]


def test_many_threads_each_get_the_right_answers():
    with Llava.demo() as llava, ThreadPoolExecutor(32) as pool:

        def work(first):
            facts = [FACTS[(first + n) % len(FACTS)] for n in range(50)]
            return [(question, ask(llava, names, question), answer) for names, question, answer in facts]

        found = [row for rows in pool.map(work, range(32)) for row in rows]
    assert len(found) == 1600
    assert not [row for row in found if row[1] != row[2]]
