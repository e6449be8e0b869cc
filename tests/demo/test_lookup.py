"""Prompt lookup: the same answers, in fewer evaluations."""

from __future__ import annotations

from pathlib import Path

import pytest

from llava_native import Llava
from llava_native.errors import InvalidInputError

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def talk(prompt_lookup, **options):
    """Describe one picture twice in a conversation; return what was said, and the counters."""
    with Llava.demo(n_threads=1, prompt_lookup=prompt_lookup, prefix_cache=0, **options) as llava:
        chat, said = llava.chat(), []
        for image in (EXAMPLES / "shapes.png", None):
            with chat.send("Describe this image.", image, temperature=0) as stream:
                said.append(stream.result().text)
        return said, llava.stats()


def test_a_repeated_answer_takes_fewer_evaluations():
    plain, before = talk(0)
    guessed, after = talk(8)
    assert guessed == plain
    assert after.completion_tokens == before.completion_tokens
    assert after.right_tokens > before.completion_tokens // 4
    assert before.guessed_tokens == 0
    assert before.steps - after.steps == after.right_tokens


def test_a_child_process_guesses_too():
    assert talk(8, isolate=True)[0] == talk(0)[0]


def test_sampling_is_as_random_as_without():
    def answers(prompt_lookup):
        with Llava.demo(n_threads=1, prompt_lookup=prompt_lookup) as llava:
            picture = EXAMPLES / "large.jpg"
            hot = {"temperature": 2.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
            return [
                llava.generate("Describe this image.", image=picture, seed=seed, max_tokens=60, **hot).text
                for seed in range(5)
            ]

    plain = answers(0)
    assert answers(8) == plain
    assert len(set(plain)) > 1


@pytest.mark.parametrize("n", [-1, 65])
def test_numbers_that_cannot_be(n):
    with pytest.raises(InvalidInputError, match="prompt_lookup"):
        Llava.demo(prompt_lookup=n)
