"""``describe --jsonl``: a line an image, and a second run that goes on where the first one stopped."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from PIL import Image

from llava_native.cli import main


@pytest.fixture
def scene(pair, tmp_path, monkeypatch):
    """Pictures in an empty folder, and the beginning of a command line."""
    monkeypatch.chdir(tmp_path)
    for n in range(5):
        Image.new("RGB", (40, 30), (50 * n, 90, 200)).save(f"{n}.png")
    (tmp_path / "bad.png").write_text("no image")
    return ["describe", "-m", str(pair.text.path), "--mmproj", str(pair.mmproj.path), "-n", "6", "-t", "1",
            "-c", "512"]  # fmt: skip


def lines(name="out.jsonl"):
    with Path(name).open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def test_every_image_is_a_line_and_a_bad_one_says_why(scene, capsys):
    assert main([*scene, "0.png", "bad.png", "1.png", "--jsonl", "out.jsonl"]) == 1
    found = {entry["image"]: entry for entry in lines()}
    assert found.keys() == {"0.png", "bad.png", "1.png"}
    assert "not an image" in found["bad.png"]["error"]
    assert found["bad.png"]["text"] is None
    assert found["0.png"]["completion_tokens"] == 6
    out = capsys.readouterr().out
    assert out == ""
    assert main([*scene, "0.png"]) == 0
    assert capsys.readouterr().out.strip() == found["0.png"]["text"].strip()


def test_resume_does_what_is_left_and_tries_failures_again(scene, tmp_path):
    names = [f"{n}.png" for n in range(5)]
    assert main([*scene, *names[:2], "bad.png", "--jsonl", "out.jsonl"]) == 1
    before = lines()
    Image.new("RGB", (20, 20)).save("bad.png")
    assert main([*scene, *names, "bad.png", "--jsonl", "out.jsonl", "--resume"]) == 0
    after = lines()
    assert after[:3] == before
    assert sorted(entry["image"] for entry in after[3:]) == ["2.png", "3.png", "4.png", "bad.png"]
    assert main([*scene, *names, "bad.png", "--jsonl", "out.jsonl", "--resume"]) == 0
    assert lines() == after


def test_a_line_that_was_cut_short_is_done_again(scene, tmp_path):
    assert main([*scene, "0.png", "--jsonl", "out.jsonl"]) == 0
    with Path("out.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"image": "1.png", "te')
    assert main([*scene, "0.png", "1.png", "--jsonl", "out.jsonl", "--resume"]) == 0
    assert [entry["image"] for entry in lines()] == ["0.png", "1.png"]


@pytest.mark.parametrize(
    ("content", "options", "says"),
    [
        ("{}\n", [], "--resume goes on"),
        ("{}\n", ["--resume"], "line 1, is no answer"),
        ("hello\n", ["--resume"], "line 1, is no answer"),
        ("[]\n", ["--resume"], "line 1, is no answer"),
    ],
)
def test_a_file_that_is_something_else_is_left_alone(scene, tmp_path, capsys, content, options, says):
    (tmp_path / "out.jsonl").write_text(content)
    assert main([*scene, "0.png", "--jsonl", "out.jsonl", *options]) == 2
    assert says in capsys.readouterr().err
    assert (tmp_path / "out.jsonl").read_text() == content


def test_resume_needs_a_file(scene, capsys):
    assert main([*scene, "0.png", "--resume"]) == 2
    assert "--jsonl" in capsys.readouterr().err


@pytest.mark.parametrize("notes", ["my notes", '{"image": "0.png", "text": "a"}\nmy notes', '{"image": 0'])
def test_the_end_of_another_file_is_not_cut_off(scene, tmp_path, capsys, notes):
    (tmp_path / "notes.txt").write_text(notes)
    assert main([*scene, "0.png", "--jsonl", "notes.txt", "--resume"]) == 2
    assert "no answer of this command" in capsys.readouterr().err
    assert (tmp_path / "notes.txt").read_text() == notes


@pytest.mark.parametrize("line", ['{"image": []}', '{"image": {}}', "[1]", "[" * 100_000, "7"])
def test_lines_of_every_kind_are_refused(scene, tmp_path, capsys, line):
    (tmp_path / "out.jsonl").write_text(line + "\n")
    assert main([*scene, "0.png", "--jsonl", "out.jsonl", "--resume"]) == 2
    assert "line 1, is no answer" in capsys.readouterr().err


def test_a_name_of_any_bytes_is_a_line_and_resumed(scene, tmp_path, capsys):
    name = os.fsdecode(b"b\xff.png")
    Image.new("RGB", (40, 30)).save(tmp_path / name, format="PNG")
    for extra in ([], ["--resume"]):
        assert main([*scene, "0.png", name, "--jsonl", "out.jsonl", *extra]) == 0, capsys.readouterr().err
    assert sorted(entry["image"] for entry in lines()) == ["0.png", name]
