"""The command line with the embedded model, on what people get wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from llava_native import ImageEmbedding, Llava

SHAPES = Path(__file__).resolve().parents[2] / "examples" / "shapes.png"
TRUTH = "A medium green heart, a medium purple crescent, a large red circle and a medium green crescent."
CLOSED = "import os, sys; os.close(0); os.execv(sys.argv[1], sys.argv[1:])"


def run(program, *arguments, **options):
    command = [Path(sys.executable).with_name(program), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **options)


def test_llava_cli_without_files_asks_the_embedded_model():
    done = run("llava-cli", "--image", SHAPES, "-p", "Describe this image.", "--temp", "0", "--log-disable")
    assert (done.returncode, done.stdout.strip()) == (0, TRUTH)
    assert "the embedded demo model answers" in done.stderr


def test_encode_without_a_file_takes_the_embedded_encoder(tmp_path):
    done = run("llava-native", "encode", SHAPES, "-o", tmp_path)
    assert (done.returncode, done.stdout) == (0, f"{tmp_path / 'shapes.emb'}\n")
    assert "the embedded demo model's encoder" in done.stderr
    with Llava.demo() as llava:
        loaded = ImageEmbedding.load(tmp_path / "shapes.emb")
        assert llava.describe(loaded) == TRUTH


def test_show_knows_the_embedded_model():
    done = run("llava-native", "show", "demo")
    assert done.returncode == 0
    assert "text model" in done.stdout
    assert "image encoder (mmproj)" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [(("chat",), 0, ""), (("run",), 2, "there is no prompt"), (("run", "demo"), 2, "there is no prompt")],
)
def test_a_closed_input_is_an_empty_one(arguments, status, says):
    program = Path(sys.executable).with_name("llava-native")
    done = subprocess.run(
        [sys.executable, "-c", CLOSED, program, *arguments], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == status
    assert says in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "arguments", [("describe", "https://a.invalid/b.png"), ("chat", "https://a.invalid/b.png")]
)
def test_an_image_from_the_web_names_the_commands_own_option(arguments):
    done = run("llava-native", *arguments)
    assert done.returncode == 1
    assert "--allow-urls" in done.stderr
    assert "demo model" not in done.stderr  # nothing was loaded


def test_a_command_of_a_conversation_takes_urls():
    done = run("llava-native", "chat", input="/image https://a.invalid/b.png\n")
    assert "https://a.invalid/b.png: images from the web are off" in done.stderr


def test_an_image_that_is_not_there_is_known_before_anything_is_loaded(tmp_path):
    done = run("llava-native", "describe", tmp_path / "nope.png")
    assert done.returncode == 1
    assert "nope.png" in done.stderr
    assert "demo model" not in done.stderr


def test_failures_of_a_file_of_answers_are_told(tmp_path):
    done = run("llava-native", "describe", SHAPES, tmp_path / "nope.png", "--jsonl", tmp_path / "o.jsonl")
    assert done.returncode == 1
    assert "nope.png" in done.stderr
    assert "No such file" in done.stderr
