"""Every file in examples/ runs as its first lines say."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from support.tiny_models import write_pair

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture(scope="module")
def arguments(tmp_path_factory) -> list[str]:
    """Return a picture, a text model and an mmproj, as the examples take them."""
    folder = tmp_path_factory.mktemp("examples")
    pair = write_pair(folder, layout="legacy", vocab="phi-3", dtype="f16", seed=3)
    picture = folder / "picture.png"
    Image.linear_gradient("L").convert("RGB").resize((120, 80)).save(picture)
    return [str(picture), "-m", str(pair.text.path), "--mmproj", str(pair.mmproj.path)]


def run(name: str, arguments: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", str(EXAMPLES / name), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=cwd, check=False)


def test_every_example_is_tested():
    tested = {
        "chat.py", "describe.py", "embeddings.py", "in_a_program.py", "json_answer.py", "stream.py",
    }  # fmt: skip
    assert {path.name for path in EXAMPLES.glob("*.py")} == tested


def test_describe_goes_on_after_a_bad_image(arguments, tmp_path):
    done = run("describe.py", ["missing.png", *arguments], tmp_path)
    assert done.returncode == 0, done.stderr
    assert "missing.png: [Errno 2]" in done.stderr
    assert done.stdout.startswith(f"{arguments[0]}: ")
    assert len(done.stdout) > len(arguments[0]) + 5


@pytest.mark.parametrize(
    "name", ["chat.py", "describe.py", "embeddings.py", "in_a_program.py", "json_answer.py", "stream.py"]
)
def test_without_files_the_embedded_model_answers(name, tmp_path):
    done = run(name, [str(EXAMPLES / "shapes.png")], tmp_path)
    assert done.returncode == 0, done.stderr
    assert name == "json_answer.py" or "green heart, a medium purple crescent" in done.stdout


def test_a_program_whose_model_is_missing_ends_and_says_why(arguments, tmp_path):
    done = run("in_a_program.py", [arguments[0], "-m", "nowhere.gguf", "--mmproj", "nowhere.gguf"], tmp_path)
    assert "FileNotFoundError" in done.stderr
    assert "TimeoutError" not in done.stderr


def test_chat_remembers(arguments, tmp_path):
    done = run("chat.py", arguments, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("> ") >= 3
    assert re.match(r"6 messages, \d+ tokens", done.stderr)


def test_json_answer_is_what_the_schema_says(arguments, tmp_path):
    done = run("json_answer.py", arguments, tmp_path)
    assert done.returncode == 0, done.stderr
    kind, *colours = done.stdout.split()
    assert kind in ("photograph", "drawing", "text")
    assert set(colours) <= {"red", "green", "blue", "black", "white"}
    assert len(colours) <= 3


def test_stream_shows_figures(arguments, tmp_path):
    done = run("stream.py", arguments, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "image_tokens=4" in done.stderr
    assert re.search(r"^(eog|length), ", done.stderr, re.MULTILINE)
    assert done.stdout.strip()


def test_embeddings_share_memory_and_survive_a_file(arguments, tmp_path):
    done = run("embeddings.py", arguments, tmp_path)
    assert done.returncode == 0, done.stderr
    first, second, *answers = done.stdout.splitlines()
    addresses = re.findall(r"0x[0-9a-f]+", first)
    assert first.startswith("(4, 64) float32")
    assert len(addresses) == 2
    assert len(set(addresses)) == 1
    assert second == "equal after a round trip: True"
    assert answers


def test_a_program_goes_on_while_the_model_works(arguments, tmp_path):
    done = run("in_a_program.py", [arguments[0], *arguments], tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(" ticks meanwhile)") == 2
