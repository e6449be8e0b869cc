"""Conversations: what is remembered, what a prompt takes, and what is left out of one that is too long."""

from __future__ import annotations

import pytest
from PIL import Image

from llava_native import Llava
from llava_native.errors import BusyError, InvalidInputError, PromptTooLongError
from llava_native.prompt import Text

GREEDY = {"temperature": 0, "max_tokens": 6}


@pytest.fixture
def llava(pair):
    with Llava(pair.text.path, pair.mmproj.path, n_ctx=256, n_threads=1) as opened:
        yield opened


def user(text, *images):
    return {"role": "user", "content": [*({"type": "image", "image": i} for i in images), text]}


def said(message):
    return "".join(part.text for part in message.content if isinstance(part, Text))


# -- plan


def test_a_plan_is_what_the_run_takes(llava, picture):
    messages = [
        {"role": "system", "content": "Be brief."}, user("What is this?", picture, picture),
        {"role": "assistant", "content": "A cat."}, user("Sure?"),
    ]  # fmt: skip
    plan = llava.plan(messages)
    with llava.respond(messages, **GREEDY) as stream:
        stream.result()
    assert (plan.n_tokens, plan.image_tokens, plan.n_images) == (
        stream.usage.prompt_tokens, stream.usage.image_tokens, 2)  # fmt: skip
    assert plan.fits
    assert plan.room == 256 - plan.n_tokens
    endless = llava.respond(messages, temperature=0, max_tokens=None, logit_bias={llava.model.eos: -1e9})
    assert endless.result().usage.completion_tokens == plan.room
    assert plan.text_tokens + 8 == plan.n_tokens


def test_a_plan_of_what_does_not_fit_has_the_numbers(llava):
    messages = [user("word " * 400)]
    plan = llava.plan(messages)
    assert not plan.fits
    assert plan.room == 0
    with pytest.raises(PromptTooLongError, match=f"{plan.n_tokens} tokens, and n_ctx=256"):
        llava.respond(messages)


def test_a_policy_drops_turns_until_it_fits(llava, picture):
    messages = [{"role": "system", "content": "Keep me."}]
    for n in range(6):
        messages += [user(f"question {n} " + "word " * 30, picture), {"role": "assistant", "content": "yes"}]
    messages.append(user("the last"))
    assert not llava.plan(messages).fits
    plan = llava.plan(messages, overflow="drop_oldest_turn")
    assert plan.fits
    assert 0 < plan.dropped < 6
    # one turn fewer is what does not fit
    kept = [messages[0], *messages[1 + 2 * (plan.dropped - 1) :]]
    assert not llava.plan(kept).fits
    assert llava.plan([messages[0], *messages[1 + 2 * plan.dropped :]]) == plan._replace(dropped=0)
    with llava.respond(messages, overflow="drop_oldest_turn", **GREEDY) as stream:
        assert stream.result().usage.prompt_tokens == plan.n_tokens


def test_a_policy_drops_images_until_it_fits(llava, picture):
    messages = [
        user("Which?", *[picture] * 60),
        {"role": "assistant", "content": "yes"},
        user("And?", picture),
    ]
    plan = llava.plan(messages, overflow="drop_oldest_image")
    assert plan.fits
    assert plan.n_images == 61 - plan.dropped
    assert 256 - plan.n_tokens <= 4 + 3  # another image and its line would be too much


def test_a_last_turn_that_is_too_long_is_refused_under_every_policy(llava):
    for overflow in ("drop_oldest_turn", "drop_oldest_image"):
        with pytest.raises(PromptTooLongError):
            llava.respond([user("hello"), user("word " * 400)], overflow=overflow)
    with pytest.raises(InvalidInputError, match="overflow"):
        llava.respond([user("x")], overflow="truncate")


# -- chat


def test_a_chat_sends_all_earlier_turns_and_images(llava, picture):
    chat = llava.chat("Be brief.")
    first = chat.send("What is this?", image=picture, **GREEDY).result().text
    second = chat.send("Sure?", **GREEDY).result().text
    assert [m.role for m in chat.messages] == ["system", "user", "assistant", "user", "assistant"]
    assert said(chat.messages[2]) == first.strip()
    with llava.respond(chat.messages[:-1], **GREEDY) as stream:
        assert stream.result().text == second
    assert stream.usage.image_tokens == 4


def test_the_image_of_the_first_turn_matters_in_the_second(llava, picture):
    answers = set()
    for image in (picture, Image.new("RGB", (64, 64), "red"), None):
        chat = llava.chat()
        chat.send("What is this?", image=image, temperature=0, max_tokens=1).result()
        with chat.send("Sure?", **GREEDY) as stream:
            answers.add(stream.result().text)
    assert len(answers) == 3


def test_an_open_answer_must_end_first_and_a_closed_one_counts(llava):
    chat = llava.chat()
    stream = chat.send("Hello", temperature=0, max_tokens=20)
    while not stream.text:
        next(stream)
    with pytest.raises(BusyError, match="still being generated"):
        chat.send("Again")
    stream.close()
    assert said(chat.messages[1]) == stream.text.strip()


def test_a_turn_that_was_never_answered_is_forgotten(llava):
    chat = llava.chat()
    chat.send("Hello").close()
    assert chat.messages == []
    with pytest.raises(PromptTooLongError):
        chat.send("word " * 400)
    assert chat.messages == []
    chat.send("Hello", **GREEDY).result()
    assert len(chat.messages) == 2
    chat.clear()
    assert chat.messages == []


def test_an_answer_of_spaces_is_none(llava):
    chat = llava.chat()
    assert chat.send("Hello", grammar='root ::= "  \\n"', **GREEDY).result().text == "  \n"
    assert chat.messages == []


def test_a_long_chat_goes_on_where_old_turns_may_be_dropped(llava):
    strict, free = llava.chat(), llava.chat(overflow="drop_oldest_turn")
    while strict.plan("And one more?").fits:
        strict.send("And one more?", **GREEDY).result()
        free.send("And one more?", **GREEDY).result()
    with pytest.raises(PromptTooLongError):
        strict.send("And one more?")
    n = len(free.messages)
    free.send("And one more?", **GREEDY).result()
    assert len(free.messages) == n + 2
    assert free.plan("more").dropped > 0
