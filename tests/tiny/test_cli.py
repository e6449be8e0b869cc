"""The command line, as a user's shell runs it: replies on stdout, the rest on stderr, exit status."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from support import damage

from llava_native import ImageEmbedding, ImageEncoder, Llava
from llava_native.cli.options import write

COMMAND = [sys.executable, "-m", "llava_native"]


@pytest.fixture(scope="module")
def files(tmp_path_factory, picture):
    folder = tmp_path_factory.mktemp("cli")
    damage.good_text(folder / "text.gguf", **{"llama.context_length": 4096})
    damage.good_mmproj(folder / "mmproj.gguf")
    picture.save(folder / "a.png")
    picture.transpose(0).save(folder / "b.png")
    (folder / "text.png").write_text("This is no picture.")
    (folder / "cut.png").write_bytes((folder / "a.png").read_bytes()[:2000])
    return folder


@pytest.fixture
def run(files):
    def start(*arguments, shell=None, **options):
        command = [*COMMAND, *(a if isinstance(a, bytes) else str(a) for a in arguments)]
        options = {"cwd": files, "capture_output": True, "text": True, "timeout": 120} | options
        return subprocess.run(command, check=False, **options)

    return start


MODELS = ("-m", "text.gguf", "--mmproj", "mmproj.gguf", "-t", "1", "-c", "512")
DESCRIBE = ("describe", *MODELS, "-n", "8")


def answer(files, image, prompt="Describe this image."):
    with Llava(files / "text.gguf", files / "mmproj.gguf", n_ctx=512, n_threads=1) as llava:
        return llava.describe(files / image, prompt, max_tokens=8)


def test_describe_prints_the_answer_and_nothing_else(run, files):
    done = run(*DESCRIBE, "a.png")
    assert done.returncode == 0, done.stderr
    assert done.stdout == answer(files, "a.png") + "\n"
    assert done.stderr == ""


def test_describe_answers_a_question(run, files):
    done = run(*DESCRIBE, "a.png", "-p", "Why?")
    assert done.stdout == answer(files, "a.png", "Why?") + "\n" != answer(files, "a.png") + "\n"


def test_timings_go_to_stderr(run, files):
    done = run(*DESCRIBE, "a.png", "--timings")
    assert done.stdout == answer(files, "a.png") + "\n"
    assert "encode" in done.stderr
    assert "8 tokens at" in done.stderr
    assert "ended by length" in done.stderr


def test_several_images_one_of_them_bad(run, files):
    done = run(*DESCRIBE, "a.png", "text.png", "nowhere.png", "b.png")
    assert done.returncode == 1
    answers = [f"{name}: {answer(files, name)}" for name in ("a.png", "b.png")]
    assert done.stdout == "\n".join(answers) + "\n"
    errors = done.stderr.splitlines()
    assert len(errors) == 2
    assert "text.png" in errors[0]
    assert "not an image" in errors[0]
    assert "nowhere.png" in errors[1]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((*DESCRIBE, "text.png"), "not an image"),
        ((*DESCRIBE, "cut.png"), "truncated"),
        ((*DESCRIBE, "nowhere.png"), "nowhere.png"),
        ((*DESCRIBE, "."), "directory"),
        ((*DESCRIBE, "http://127.0.0.1:9/a.png"), "--allow-urls allows them"),
        ((*DESCRIBE, "--allow-urls", "http://127.0.0.1:9/a.png"), "not a public address"),
        (("describe", "-m", "nowhere.gguf", "--mmproj", "mmproj.gguf", "a.png"), "nowhere.gguf"),
        (("describe", "-m", "mmproj.gguf", "--mmproj", "text.gguf", "a.png"), "mmproj="),
        (("describe", "-m", "a.png", "--mmproj", "mmproj.gguf", "a.png"), "not a GGUF file"),
        ((*DESCRIBE, "a.png", "--chat-template", "nonsense"), "vicuna"),
        ((*DESCRIBE, "a.png", "-p", "x" * 2000), "n_ctx=512"),
        ((*DESCRIBE, "a.png", "-p", b"\xff"), "no text in UTF-8"),
        ((*DESCRIBE, "a.png", "-t", "10000"), "n_threads"),
        (("encode", "--mmproj", "text.gguf", "a.png"), "model="),
        (("encode", "--mmproj", "mmproj.gguf", "text.png"), "not an image"),
        (("encode", "--mmproj", "mmproj.gguf", "."), "directory"),
        (("encode", "--mmproj", "mmproj.gguf", "a.png", "b.png", "-o", "text.gguf"), "text.gguf"),
        (
            ("encode", "--mmproj", "mmproj.gguf", "a.png", "-o", "no/such/folder.emb"),
            "directory: 'no/such'\n",
        ),
    ],
)
def test_failures_are_one_line_and_status_1(run, arguments, says):
    done = run(*arguments)
    assert done.returncode == 1, done.stderr
    assert done.stdout == ""
    assert says in done.stderr
    assert done.stderr.startswith("llava-native: ")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("describe",), (*DESCRIBE,), ("describe", "-m", "text.gguf", "a.png"),
        (*DESCRIBE, "a.png", "--max-tokens", "0"), (*DESCRIBE, "a.png", "-n", "many"),
        (*DESCRIBE, "a.png", "--bogus"), (*DESCRIBE, "a.png", "-c", "1"), ("nonsense",), ("devices", "x"),
        (*DESCRIBE, "a.png", "--temp", "-1"), (*DESCRIBE, "a.png", "--seed", "-1"),
        (*DESCRIBE, "a.png", "--jsonl", "-"),
        (*DESCRIBE, "a.png", "-ngl", "99999999999"), (*DESCRIBE, "a.png", "--jsonl", "x", "--timings"),
        ("encode",), ("encode", "--mmproj", "mmproj.gguf"),
        ("encode", "--mmproj", "mmproj.gguf", "a.png", "--dtype", "q4"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_status_2(run, arguments):
    done = run(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "Usage: llava-native" in done.stderr


def test_help_and_version(run):
    for arguments in (("--help",), ("-h",), ("describe", "-h"), ("--version",)):
        done = run(*arguments)
        assert done.returncode == 0
        assert done.stdout
        assert done.stderr == ""


def test_help_loads_nothing_heavy():
    code = "import sys; from llava_native.cli import main; main(['--help']); print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    loaded = set(done.stdout.split())
    heavy = {"llava_native._native", "PIL", "numpy", "jinja2", "huggingface_hub", "http.client", "llguidance"}
    assert not heavy & loaded


def test_devices(run):
    done = run("devices")
    assert done.returncode == 0
    assert "CPU" in done.stdout
    assert done.stderr == ""
    found = json.loads(run("devices", "--json").stdout)
    assert "cpu" in {device["type"] for device in found["devices"]}
    assert found["build"]["patches"]


# -- encode


def test_encode_writes_rows_that_load(run, files, tmp_path):
    done = run("encode", "--mmproj", "mmproj.gguf", "-t", "1", "a.png", "-o", tmp_path / "x.emb")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path / 'x.emb'}\n"
    assert "4 rows of 64" in done.stderr
    with ImageEncoder(files / "mmproj.gguf", n_threads=1) as encoder:
        expected = np.asarray(encoder.encode(files / "a.png"))
        loaded = ImageEmbedding.load(tmp_path / "x.emb", encoder=encoder)
    np.testing.assert_array_equal(np.asarray(loaded), expected)
    # the format is safetensors: eight bytes of length, a header of that, the floats
    data = (tmp_path / "x.emb").read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    assert json.loads(data[8:start])["rows"]["shape"] == [4, 64]
    np.testing.assert_array_equal(np.frombuffer(data, "<f4", offset=start).reshape(4, 64), expected)


def test_encode_several_into_a_folder(run, tmp_path):
    done = run("encode", "--mmproj", "mmproj.gguf", "a.png", "text.png", "b.png", "-o", tmp_path / "rows")
    assert done.returncode == 1
    assert done.stdout.splitlines() == [str(tmp_path / "rows" / name) for name in ("a.emb", "b.emb")]
    assert "text.png" in done.stderr
    assert sorted(path.name for path in (tmp_path / "rows").iterdir()) == ["a.emb", "b.emb"]


def test_encode_refuses_two_images_of_one_name(run, files, tmp_path):
    (files / "other").mkdir(exist_ok=True)
    (files / "other" / "a.png").write_bytes((files / "a.png").read_bytes())
    done = run("encode", "--mmproj", "mmproj.gguf", "a.png", "other/a.png", "-o", tmp_path)
    assert done.returncode == 2
    assert str(tmp_path / "a.emb") in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_encode_beside_the_image(run, files):
    done = run("encode", "--mmproj", "mmproj.gguf", files / "a.png")
    assert done.stdout == f"{files / 'a.emb'}\n"
    assert ImageEmbedding.load(files / "a.emb").shape == (4, 64)
    (files / "a.emb").unlink()


# -- signals and pipes


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_ctrl_c_is_status_130(files):
    # the whole context, thousands of tokens; the model's own end cannot come before the first is seen
    command = [*COMMAND, "describe", *MODELS[:-1], "4096", "-n", "4000", "--temp", "2", "a.png"]
    with subprocess.Popen(
        command, cwd=files, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        assert child.stdout.read(1)
        child.send_signal(signal.SIGINT)
        child.stdout.read()
        errors = child.stderr.read()
        status = child.wait(60)
    assert status == 130, errors
    assert "interrupted" in errors
    assert "Traceback" not in errors


@pytest.mark.skipif(os.name != "posix", reason="pipes")
@pytest.mark.parametrize("arguments", [(*DESCRIBE, "a.png", "b.png", "a.png"), ("devices",)])
def test_a_reader_that_has_gone_is_no_traceback(files, arguments):
    read, write = os.pipe()
    os.close(read)
    try:
        done = subprocess.run(
            [*COMMAND, *arguments],
            cwd=files, stdout=write, stderr=subprocess.PIPE, text=True, timeout=120, check=False,
        )  # fmt: skip
    finally:
        os.close(write)
    assert done.returncode == 1
    assert done.stderr == ""


def test_the_installed_command(files):
    script = Path(sys.executable).with_name("llava-native")
    if not script.exists():
        pytest.skip("not installed with its scripts")
    done = subprocess.run([script, "--version"], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.startswith("llava-native, version")


def test_encode_never_replaces_an_image(run, files, tmp_path):
    before = (files / "a.png").read_bytes()
    (tmp_path / "photo.emb").write_bytes(before)
    for arguments in (("a.png", "-o", "a.png"), (tmp_path / "photo.emb",)):
        done = run("encode", *arguments, "--mmproj", "mmproj.gguf")
        assert done.returncode == 2
        assert "an image to encode" in done.stderr
    assert (files / "a.png").read_bytes() == (tmp_path / "photo.emb").read_bytes() == before


def test_encode_names_of_any_bytes(run, files, tmp_path):
    name = tmp_path / os.fsdecode(b"b\xff.png")
    name.write_bytes((files / "a.png").read_bytes())
    env = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    done = run("encode", name, "b.png", "-o", tmp_path, "--mmproj", "mmproj.gguf", env=env, text=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [os.fsencode(tmp_path) + end for end in (b"/b\xff.emb", b"/b.emb")]


def test_with_stderr_closed_the_reply_stays_alone(files):
    script = "import os, sys; from llava_native.cli import main; sys.exit(main())"
    arguments = [sys.executable, "-c", script, *DESCRIBE, "a.png", "--timings"]
    command = ["sh", "-c", 'exec "$@" 2>&-', "sh", *arguments]
    done = subprocess.run(command, cwd=files, stdout=subprocess.PIPE, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, answer(files, "a.png") + "\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_not_the_images_fault(files):
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*COMMAND, *DESCRIBE, "a.png", "b.png"], cwd=files, stdout=full, stderr=subprocess.PIPE,
            text=True, timeout=120, check=False,
        )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.count("cannot write the answer: No space left") == 1
    assert "a.png" not in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_told_with_the_file(run):
    done = run(*DESCRIBE, "a.png", "--jsonl", "/dev/full")
    assert done.returncode == 1
    assert done.stderr.endswith("No space left on device: '/dev/full'\n")


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n", "\u2028", "\x85"])
def test_an_answer_behind_a_name_is_one_line(capsys, end):
    answer = [SimpleNamespace(text=text) for text in ("One", end, f"b.png:{end}no", end)]
    write(answer, "a.png: ")
    gap = " " * len(end)
    assert capsys.readouterr().out == f"a.png: One{gap}b.png:{gap}no{gap}\n"
    write(answer)
    assert capsys.readouterr().out == f"One{end}b.png:{end}no{end}\n"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b"sch\xf6n", "no text in UTF-8"), (b"/image ~nosuch/a.png", "home directory"),
        (b"/save ~nosuch/a", "home directory"), (b"/image a\0b", "null byte"), (b"/save a\0b", "null byte"),
        (b"/save nodir/x", "'nodir/x'"), (b"/load nodir/x", "'nodir/x'"),
    ],
)  # fmt: skip
def test_a_bad_line_does_not_end_a_conversation(run, line, says):
    env = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    done = run("chat", *MODELS, "-n", "4", input=b"Hi\n" + line + b"\n/image a.png\nAnd?\n/nonsense\n",
               text=False, env=env)  # fmt: skip
    first, last = done.stderr.decode().splitlines()
    assert done.returncode == 1
    assert says in first
    assert "no command /nonsense" in last
    assert done.stdout.count(b"\n") >= 2
