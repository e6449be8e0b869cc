"""Images that a prompt names."""

from __future__ import annotations

import contextlib
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import pytest

from llava_native.cli.inline import split_images


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in (
        "xx.png",
        "o'neil.png",
        "b.JPG",
        "my dog.png",
        "dog.png",
        "a (1).jpeg",
        "What is b.png",
        "sub/c.webp",
        "home/d.gif",
    ):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
    return tmp_path


@pytest.mark.parametrize(
    ("prompt", "words", "images"),
    [
        ("xx.png Describe this image", "Describe this image", ["xx.png"]),
        ("[xx.png] What?", "[ ] What?", ["xx.png"]),
        ("“xx.png” What?", "“ ” What?", ["xx.png"]),
        ("xx.png's colour?", "'s colour?", ["xx.png"]),
        ("xx.png。 What?", "。 What?", ["xx.png"]),
        ("<xx.png> What?", "< > What?", ["xx.png"]),
        ('"o\'neil.png" What?', "What?", ["o'neil.png"]),
        ("xx.png.bak is no picture", "xx.png.bak is no picture", []),
        ("see xx.png/readme and xx.pngs", "see xx.png/readme and xx.pngs", []),
        ("./xx.png Describe this image", "Describe this image", ["xx.png"]),
        ("Describe this image xx.png", "Describe this image", ["xx.png"]),
        ("Describe xx.png in one word.", "Describe in one word.", ["xx.png"]),
        ("What is on xx.png?", "What is on ?", ["xx.png"]),
        ("xx.png", "", ["xx.png"]),
        ("xx.png b.JPG Compare", "Compare", ["xx.png", "b.JPG"]),
        ("b.JPG, xx.png: compare", ", : compare", ["b.JPG", "xx.png"]),
        ("'xx.png' Describe", "Describe", ["xx.png"]),
        ('"my dog.png" Describe', "Describe", ["my dog.png"]),
        ("my\\ dog.png Describe", "Describe", ["my dog.png"]),
        ("my dog.png Describe", "Describe", ["my dog.png"]),
        ("Look: my dog.png", "Look:", ["my dog.png"]),
        ("a\\ \\(1\\).jpeg Describe", "Describe", ["a (1).jpeg"]),
        ("(xx.png) Describe", "( ) Describe", ["xx.png"]),
        ("sub/c.webp\nTwo\nlines", "Two\nlines", ["sub/c.webp"]),
        ("~/d.gif x", "x", ["{home}/home/d.gif"]),
        ("{home}/xx.png x", "x", ["{home}/xx.png"]),
        ("What is b.png", "", ["What is b.png"]),  # the longest that exists
        ("What is this?", "What is this?", []),
        ("the .png format", "the .png format", []),
        ("a.pngx and x.png.txt", "a.pngx and x.png.txt", []),
        ("", "", []),
        ("https://a.example/x.png?y=1 Describe", "Describe", ["https://a.example/x.png?y=1"]),
        ("see https://a.example/page", "see https://a.example/page", []),
    ],
)
def test_images_are_found(folder, prompt, words, images):
    fill = lambda text: text.replace("{home}", str(folder))  # noqa: E731
    assert split_images(fill(prompt)) == (words, [fill(name) for name in images])


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("nowhere.png Describe", "nowhere.png"), ("Describe /no/where.jpg", "/no/where.jpg"),
        ("'no such.png' x", "no such.png"), ("no\\ such.png x", "no\\\\ such.png"), ("./.png x", "./.png"),
        ("xx.png yy.png", "yy.png"), ("sub.png", "sub.png"),
    ],
)  # fmt: skip
def test_a_name_without_a_file_is_an_error(folder, prompt, name):
    (folder / "sub.png").mkdir()
    with pytest.raises(FileNotFoundError, match="no such image") as caught:
        split_images(prompt)
    assert name in str(caught.value)


PIECES = [
    "xx.png", "my dog.png", ".png", " ", "'", '"', "\\", "(", ")", "\n", "~", "http://a/", "?", "b", "/",
    "\0",
]  # fmt: skip


@hypothesis.given(st.lists(st.sampled_from(PIECES)).map("".join))
@hypothesis.settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
def test_any_prompt_is_split_or_refused(prompt):
    with contextlib.suppress(FileNotFoundError):
        words, images = split_images(prompt)
        assert all(name.startswith("http") or Path(name).is_file() for name in images)
        assert len(words) <= len(prompt)


def test_long_prompts_take_no_time():
    words = "word " * 20_000
    assert split_images(words + "xx.png")[1] == ["xx.png"]
    assert split_images("'" * 50_000)[1] == []
