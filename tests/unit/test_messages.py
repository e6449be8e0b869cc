"""Messages: OpenAI's dicts, images on lines of their own, and what may be left out."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from llava_native.errors import InvalidInputError
from llava_native.messages import Message, drop_oldest_image, drop_oldest_turn, make_content, read_messages
from llava_native.prompt import PendingImage, Text


def picture(image):
    return PendingImage(SimpleNamespace(n_tokens=4), image)


def read(*messages):
    return read_messages(list(messages), picture, lambda url: f"opened {url}")


def user(*parts):
    return {"role": "user", "content": list(parts)}


def shown(message):
    return "".join(p.text if isinstance(p, Text) else f"[{p.image}]" for p in message.content)


def test_every_form_of_an_image():
    (message,) = read(user(
        {"type": "text", "text": "a"},
        {"type": "image_url", "image_url": {"url": "data:1"}},
        {"type": "image_url", "image_url": "file://2"},
        {"type": "input_image", "image_url": "3.png"},
        {"type": "image", "image": 4},
        "b",
    ))  # fmt: skip
    assert shown(message) == "a\n[opened data:1]\n[opened file://2]\n[opened 3.png]\n[4]\nb"


def test_lines_that_are_there_are_not_made_again():
    (message,) = read(user("a\n", {"type": "image", "image": 1}, "\nb"))
    assert shown(message) == "a\n[1]\nb"
    assert "".join(p.text for p in make_content("b", [picture(1)]) if isinstance(p, Text)) == "\nb"


def test_what_the_model_refused_is_text():
    (message,) = read({"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]})
    assert shown(message) == "No."


def test_only_the_lines_that_were_made_are_left_out():
    (message,) = read(user("a", {"type": "image", "image": 1}, {"type": "image", "image": 2}, "b", "\n"))
    parts = [part.text if isinstance(part, Text) else part.image for part in message.bare_content]
    assert parts == ["a", 1, 2, "b", "\n"]


def test_roles_and_what_else_a_message_has():
    made = read(
        {"role": "developer", "content": "x"},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]},
        {"role": "tool", "content": "r", "tool_call_id": "1"},
    )
    assert [m.role for m in made] == ["system", "assistant", "tool"]
    assert made[1].extra == {"tool_calls": [{"id": "1"}]}
    assert made[1].content == ()


@pytest.mark.parametrize(
    ("messages", "match"),
    [
        ([], "no messages"),
        ("Hello", "list of dicts"),
        ({"role": "user"}, "list of dicts"),
        ([7], r"messages\[0\] must be a dict"),
        ([{"role": "usr", "content": "x"}], r"messages\[0\]: the role must be one of .*'usr'"),
        ([{"role": "<|end|>", "content": "x"}], "role"),
        ([{"role": "user"}], r"messages\[0\]: the content"),
        ([user({"type": "text"})], r"messages\[0\]\.content\[0\] is none of"),
        ([user({"type": "image_url", "image_url": {}})], "is none of"),
        ([user({"type": "video", "video": "x"})], "is none of"),
        ([{"role": "system", "content": [{"type": "image", "image": 1}]}], "only a user's message"),
    ],
)
def test_refusals_say_which_message(messages, match):
    with pytest.raises(InvalidInputError, match=match):
        read_messages(messages, picture, str)


def conversation():
    return [
        Message("system", make_content("s", [])),
        Message("user", make_content("one", [picture(1), picture(2)])),
        Message("assistant", make_content("a", [])),
        Message("user", make_content("two", [picture(3)])),
        Message("assistant", make_content("b", [])),
        Message("user", make_content("three", [])),
    ]


def test_the_oldest_turn_goes_with_its_answer_and_the_last_stays():
    left = conversation()
    seen = []
    while (left_ := drop_oldest_turn(left)) is not None:
        left = left_
        seen.append([shown(m) for m in left])
    assert seen == [["s", "[3]\ntwo", "b", "three"], ["s", "three"]]


def test_system_text_stays_wherever_it_is():
    roles = [("system", "s1"), ("user", "u1"), ("assistant", "a1"), ("system", "s2"), ("user", "u2")]
    left = drop_oldest_turn([Message(role, make_content(text, [])) for role, text in roles])
    assert [shown(m) for m in left] == ["s1", "s2", "u2"]


def test_the_oldest_image_goes_and_the_last_one_stays():
    left = conversation()
    seen = []
    while (left_ := drop_oldest_image(left)) is not None:
        left = left_
        seen.append([shown(left[1]), shown(left[3])])
    assert seen == [["[2]\none", "[3]\ntwo"], ["one", "[3]\ntwo"]]


def test_an_images_line_goes_but_no_word():
    (message,) = read(user({"type": "image", "image": 1}, "\nb", {"type": "image", "image": 2}))
    (left,) = drop_oldest_image([message])
    assert shown(left) == "\nb\n[2]\n"
