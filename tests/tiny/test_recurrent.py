"""Models whose memory is one state and not a cell a token: right answers, and clear refusals."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from support.tiny_models import write_recurrent_model

from llava_native import Context, Llava, Model
from llava_native.errors import InvalidInputError

TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"
PROMPTS = ["The cat sat on the mat and then", "The cat sat on the dog", "The cat sat on the mat and then"]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_recurrent_model(tmp_path_factory.mktemp("recurrent") / "mamba.gguf")


def load(path, **options):
    return Llava(path, n_ctx=512, n_threads=1, chat_template=TEMPLATE, **options)


def answer(llava, prompt):
    return llava.generate(prompt, max_tokens=12, temperature=0).text


def test_model_says_that_it_is_recurrent(path, model):
    assert model.is_recurrent is False
    with Model(path) as opened:
        assert opened.is_recurrent is True


def test_prompts_with_a_common_beginning_are_answered_as_if_alone(path):
    alone = []
    for prompt in PROMPTS:
        with load(path) as llava:
            alone.append(answer(llava, prompt))
    assert alone[0] == alone[2] != alone[1]
    with load(path) as llava:
        assert [answer(llava, prompt) for prompt in PROMPTS] == alone
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(lambda prompt: answer(llava, prompt), PROMPTS * 3)) == alone * 3
        assert llava.stats().cached_tokens == 0


def test_cancelled_answer_leaves_the_next_one_right(path):
    with load(path) as llava:
        first = answer(llava, PROMPTS[0])
        stream = llava.stream(PROMPTS[1], max_tokens=200, temperature=0)
        next(stream)
        stream.cancel()
        assert stream.result().finish_reason == "cancelled"
        assert answer(llava, PROMPTS[0]) == first


def test_prompt_lookup_is_refused(path):
    with pytest.raises(InvalidInputError, match=r"is a recurrent model, .* prompt_lookup at 0"):
        load(path, prompt_lookup=8)


def test_sequence_is_copied_whole_or_not_at_all(path):
    with Model(path) as model, Context(model, n_ctx=256, n_seq_max=2) as context:
        context.eval([5, 6, 7])
        with pytest.raises(InvalidInputError, match="only be copied whole"):
            context.copy_sequence(0, 1, 2)
        context.copy_sequence(0, 1)
        context.eval([8], seq=0)
        logits = np.array(context.logits)
        context.eval([8], seq=1)
        np.testing.assert_allclose(np.array(context.logits), logits, rtol=1e-5, atol=1e-5)


def test_sequence_is_cut_to_nothing_or_not_at_all(path):
    with Model(path) as model, Context(model, n_ctx=256) as context:
        context.eval([5, 6, 7])
        first = np.array(context.logits)
        with pytest.raises(InvalidInputError, match="cannot be cut"):
            context.truncate_sequence(0, 1)
        assert context.n_past() == 3
        context.truncate_sequence(0, 0)
        context.eval([5, 6, 7])
        np.testing.assert_array_equal(np.array(context.logits), first)
