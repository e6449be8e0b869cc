"""The embedded model's files: both, or a message that says what to do instead."""

from __future__ import annotations

import pytest

from llava_native import demo


def test_without_files_the_message_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr(demo, "FOLDER", tmp_path)
    (tmp_path / f"{demo.NAME}.gguf").touch()  # one alone is not enough
    with pytest.raises(FileNotFoundError, match="-m and --mmproj"):
        demo.demo_files()


def test_with_files_both_are_found(monkeypatch, tmp_path):
    monkeypatch.setattr(demo, "FOLDER", tmp_path)
    for name in (f"{demo.NAME}.gguf", f"mmproj-{demo.NAME}.gguf"):
        (tmp_path / name).touch()
    text, mmproj = demo.demo_files()
    assert text.name == "llava-native-demo.gguf"
    assert mmproj.exists()
