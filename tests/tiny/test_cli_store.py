"""create, list, show, cp, rm, run and chat: the cards' ollama lines, and conversations."""

from __future__ import annotations

import io
import json
import os
import shlex
import subprocess
import sys
import time

import pytest
from support import damage
from support.seeds import STOPS, modelfile, write_seed

from llava_native import Llava
from llava_native.cli import main

COMMAND = [sys.executable, "-m", "llava_native"]
# verbatim from the model cards, but for the program's name
CARDS = {
    "llava-phi-3-mini": [
        "ollama create llava-phi3-f16 -f ./OLLAMA_MODELFILE_F16",
        'ollama run llava-phi3-f16 "xx.png Describe this image"',
        "ollama create llava-phi3-int4 -f ./OLLAMA_MODELFILE_INT4",
        'ollama run llava-phi3-int4 "xx.png Describe this image"',
    ],
    "llava-llama-3-8b-v1_1": [
        "ollama create llava-llama3-f16 -f ./OLLAMA_MODELFILE_F16",
        'ollama run llava-llama3-f16 "xx.png Describe this image"',
        "ollama create llava-llama3-int4 -f ./OLLAMA_MODELFILE_INT4",
        'ollama run llava-llama3-int4 "xx.png Describe this image"',
    ],
}
GREEDY = ("--temp", "0", "-n", "8", "-t", "1")


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("LLAVA_NATIVE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture(scope="module")
def seeds(tmp_path_factory, picture):
    folders = {}
    for seed in CARDS:
        folders[seed] = tmp_path_factory.mktemp(seed)
        write_seed(folders[seed], seed)
        picture.save(folders[seed] / "xx.png")
    return folders


@pytest.fixture(scope="module")
def small(tmp_path_factory, picture):
    """A pair that loads in a moment, two pictures, and a Modelfile with everything."""
    folder = tmp_path_factory.mktemp("small")
    damage.good_text(folder / "text.gguf", **{"llama.context_length": 4096})
    damage.good_mmproj(folder / "mmproj.gguf")
    picture.save(folder / "a.png")
    picture.point(lambda value: 255 - value).save(folder / "my b.png")
    (folder / "text.png").write_text("This is no picture.")
    (folder / "Modelfile").write_text(
        "FROM text.gguf\nFROM mmproj.gguf\nTEMPLATE {{ .System }}|{{ .Prompt }}>{{ .Response }};\n"
        "SYSTEM Sys\nMESSAGE user Hi\nMESSAGE assistant Ho\nLICENSE free\n"
        "PARAMETER num_ctx 1024\nPARAMETER num_predict 6\nPARAMETER temperature 0\nPARAMETER num_thread 1\n"
        "PARAMETER mystery 1\n"
    )
    return folder


@pytest.fixture
def run(small, monkeypatch, capsys):
    """Run a command in this process; returns (status, stdout, stderr). `stdin` is what a pipe gives."""
    monkeypatch.chdir(small)

    def start(*arguments, stdin=""):
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        capsys.readouterr()
        status = main([str(argument) for argument in arguments])
        return status, *capsys.readouterr()

    return start


def squeezed(text):
    """Return a text without spaces: SentencePiece puts some before the first word after an image."""
    return text.replace(" ", "").replace("\u2581", "")


@pytest.fixture
def prompts(monkeypatch):
    """The prompts that were evaluated, `squeezed`, with {image} for an image."""
    seen = []

    def opened(self, prompt, *stops, **options):
        texts = [
            self.model.detokenize(piece, unparse_special=True) if isinstance(piece, list) else "{image}"
            for piece in prompt.pieces
        ]
        seen.append(squeezed("".join(texts)))
        return original(self, prompt, *stops, **options)

    original = Llava._open_stream
    monkeypatch.setattr(Llava, "_open_stream", opened)
    return seen


MODELS = ("-m", "text.gguf", "--mmproj", "mmproj.gguf")


def answer(small, *turns, template=None, system=None, **options):
    """Return the answers to turns of (text, image names)."""
    options = {"temperature": 0, "max_tokens": 8, **options}
    files = small / "text.gguf", small / "mmproj.gguf"
    with Llava(*files, n_ctx=1024, n_threads=1, chat_template=template) as llava:
        chat = llava.chat(system)
        return [chat.send(text, [small / i for i in images] or None, **options).result().text
                for text, images in turns]  # fmt: skip


# -- the cards


@pytest.mark.parametrize("seed", CARDS)
@pytest.mark.parametrize("quant", ["f16", "int4"])
def test_the_cards_lines(seeds, seed, quant, monkeypatch, capsys, prompts):
    monkeypatch.chdir(seeds[seed])
    create, ask = (shlex.split(line)[1:] for line in CARDS[seed] if quant in line)
    assert main(create) == 0
    name = create[1]
    created = capsys.readouterr()
    assert created.out == ""
    assert f"{seed}-{quant}.gguf" in created.err
    assert main(["show", name, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["options"] == {"n_ctx": 4096, "stop": STOPS[seed]}
    assert main([*ask, *GREEDY]) == 0
    reply = capsys.readouterr()
    assert reply.err == ""
    assert reply.out.endswith("\n")
    with Llava(f"{seed}-{quant}.gguf", f"{seed}-mmproj-f16.gguf", n_threads=1) as llava:
        assert reply.out == llava.describe("xx.png", "Describe this image", max_tokens=8) + "\n"
    assert prompts[0] == prompts[1]
    expected = {
        "llava-phi-3-mini": "<s><|user|>\n{image}\nDescribe this image<|end|>\n<|assistant|>\n",
        "llava-llama-3-8b-v1_1": "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n{image}\n"
        "Describe this image<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    }
    assert prompts[0] == squeezed(expected[seed])


def test_the_encoder_of_one_seed_with_the_model_of_another(seeds, tmp_path, run):
    from support.tiny_models import write_mmproj

    write_mmproj(tmp_path / "wide.gguf", n_embd_text=96)
    text = seeds["llava-phi-3-mini"] / "llava-phi-3-mini-int4.gguf"
    (tmp_path / "Bad").write_text(f"FROM {text}\nFROM wide.gguf\n")
    status, _, err = run("create", "x", "-f", tmp_path / "Bad")
    assert status == 1
    assert "belongs to another model" in err
    assert run("list") == (0, "", "no model has a name yet: llava-native create NAME -f MODELFILE\n")


# -- named models


def test_create_list_show_cp_rm(run, small, home):
    status, out, err = run("create", "Cat")
    assert (status, out) == (0, "")
    assert "Modelfile:12: unknown parameter 'mystery', ignored" in err
    assert run("cp", "cat", "dog:1") == (0, "", "")
    status, out, _ = run("list")
    assert [line.split()[0] for line in out.splitlines()] == ["cat", "dog:1"]
    assert str(small / "text.gguf") in out
    listed = json.loads(run("list", "--json")[1])
    assert [row["mmproj"] for row in listed] == [str(small / "mmproj.gguf")] * 2
    _, out, _ = run("show", "dog:1")
    for part in (
        "system: Sys",
        "user: Hi",
        "n_ctx: 1,024",
        "text model",
        "image encoder",
        "rows of an image: 4",
    ):
        assert part in out
    assert run("show", "cat", "--system")[1] == "Sys\n"
    assert run("show", "cat", "--license")[1] == "free\n"
    assert "macro whole" in run("show", "cat", "--template")[1]
    assert run("rm", "cat", "dog:1") == (0, "", "")
    assert run("list")[1] == ""
    assert (small / "text.gguf").exists()


def test_show_files(run, seeds):
    folder = seeds["llava-phi-3-mini"]
    status, out, err = run("show", folder / "llava-phi-3-mini-int4.gguf")
    assert (status, err) == (0, "")
    for part in ("architecture: llama", "quantisation: F16", "context length: 2,048", "vocabulary: 32,064",
                 "own chat template: ", "tokenizer.ggml.eot_token_id: 32,007"):  # fmt: skip
        assert part in out
    template = run("show", folder / "llava-phi-3-mini-int4.gguf", "--template")[1]
    assert template.startswith("{{ bos_token }}")
    shown = json.loads(run("show", folder / "llava-phi-3-mini-mmproj-f16.gguf", "--json", "--metadata")[1])
    (file,) = shown["files"]
    assert file["kind"] == "image encoder (mmproj)"
    assert file["metadata"]["clip.vision.image_size"] == 28
    assert file["parameters"] > 1000


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (("create", "../x"), 1, "no name for a model"),
        (("create", "x", "-f", "nowhere"), 1, "nowhere"),
        (("create", "x", "-f", "a.png"), 1, "no Modelfile"),
        (("create",), 2, "Usage"),
        (("show", "nothing"), 1, "there is no model nothing"),
        (("show", "../../etc"), 1, "no such file"),
        (("show", "a.png"), 1, "not a GGUF file"),
        (("cp", "nothing", "x"), 1, "there is no model nothing"),
        (("rm", "nothing"), 1, "there is no model nothing"),
        (("rm", "../x"), 1, "no name for a model"),
        (("rm",), 2, "Usage"),
        (("run", "nothing", "x"), 1, "there is no model nothing"),
        (("run", "../x", "x"), 1, "no name for a model"),
    ],
)
def test_failures(run, home, arguments, status, says):
    done = run(*arguments)
    assert done[:2] == (status, "")
    assert says in done[2]
    assert not home.exists()


def test_a_modelfile_with_an_unknown_instruction(run, tmp_path, home):
    (tmp_path / "M").write_text("FROM text.gguf\n\nFORM x\n")
    status, _, err = run("create", "x", "-f", tmp_path / "M")
    assert status == 1
    assert f"{tmp_path / 'M'}:3: unknown instruction 'FORM'" in err
    assert not home.exists()


def test_list_tells_of_damage_and_goes_on(run, home):
    run("create", "a")
    run("create", "b")
    (home / "models" / "a.json").write_text("{")
    status, out, err = run("list")
    assert status == 1
    assert out.startswith("b ")
    assert "a.json is damaged" in err


# -- run


def test_run_uses_what_the_modelfile_says(run, small, prompts):
    run("create", "cat")
    status, out, err = run("run", "cat", "a.png", "What is", "it?")
    assert (status, err) == (0, "")
    assert prompts == [squeezed("<s>Sys|Hi>Ho;|{image}\nWhat is it?>")]
    assert len(out) > 1
    run("run", "cat", "x", "--system", "New")
    assert "New|Hi" in prompts[-1]
    twice = run("run", "cat", "x")[1]
    assert twice == run("run", "cat", "x")[1]
    assert len(run("run", "cat", "x", "-n", "1")[1]) < len(twice)


def test_run_takes_its_prompt_from_a_pipe(run, prompts):
    run("create", "cat")
    assert run("run", "cat", stdin="a.png Two\nlines\n")[0] == 0
    assert prompts[-1].endswith("|{image}\nTwo\nlines>")
    status, _, err = run("run", "cat", stdin="")
    assert status == 2
    assert "there is no prompt" in err


def test_images_in_a_prompt(run, prompts):
    run("create", "cat")
    assert run("run", "cat", "'my b.png' a.png Compare")[0] == 0
    assert prompts[-1].count("{image}") == 2
    assert run("run", "cat", "a.png")[0] == 0
    assert prompts[-1].endswith(squeezed("{image}\nDescribe this image.>"))
    assert run("run", "cat", "--text", "a.png is a name")[0] == 0
    assert prompts[-1].endswith(squeezed("|a.png is a name>"))


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        ("nowhere.png x", "no such image"), ("text.png x", "not an image"),
        ("https://a.example/x.png x", "--allow-urls"), ("x" * 3000, "n_ctx=1024"),
    ],
)  # fmt: skip
def test_failures_of_run(run, prompt, says):
    run("create", "cat")
    status, out, err = run("run", "cat", prompt)
    assert (status, out) == (1, "")
    assert says in err


def test_an_image_for_a_model_without_an_encoder(run, tmp_path, small):
    (tmp_path / "M").write_text(f"FROM {small / 'text.gguf'}\n")
    status, _, err = run("create", "blind", "-f", tmp_path / "M")
    assert status == 0
    assert "add a FROM line with its mmproj" in err
    assert run("run", "blind", "Hello", *GREEDY)[0] == 0
    status, out, err = run("run", "blind", "a.png x")
    assert (status, out) == (1, "")
    assert "no mmproj" in err


def test_an_image_from_the_web(run, small, prompts):
    from support.http_server import serving

    run("create", "cat")
    with serving() as server:
        url = server.add("/x.png", (small / "a.png").read_bytes())
        status, _, err = run("run", "cat", f"{url} x", "--allow-urls")
        assert status == 1
        assert "not a public address" in err
        assert server.requests == []


def test_a_model_whose_file_changed(run, small, tmp_path):
    text = (small / "text.gguf").read_bytes()
    (tmp_path / "t.gguf").write_bytes(text)
    (tmp_path / "M").write_text("FROM t.gguf\n")
    assert run("create", "x", "-f", tmp_path / "M")[0] == 0
    (tmp_path / "t.gguf").write_bytes(text[:-64])
    status, _, err = run("run", "x", "hello")
    assert status == 1
    assert "was changed" in err


# -- chat


def test_a_conversation_through_a_pipe(run, small):
    status, out, err = run("chat", *MODELS, *GREEDY, stdin="a.png What?\nAnd why?\n")
    assert (status, err) == (0, "")
    expected = answer(small, ("What?", ["a.png"]), ("And why?", []))
    assert out == "".join(text + "\n" for text in expected)


def test_commands_of_a_conversation(run, small, prompts):
    lines = (
        '/image a.png\nOne\nOnce\n/clear\nTwo\n/system Be brief.\nThree\n"""Fo\nur"""\n/help\n/nonsense\n'
        "/image nowhere.png\n/image\n/image text.png\nnowhere.png x\nFive\n/bye\nSix\n"
    )
    status, out, err = run("chat", *MODELS, *GREEDY, "--chat-template", "chatml", stdin=lines)
    assert status == 1  # something failed, and nobody was there to see it
    users = [prompt.count("<|im_start|>user") for prompt in prompts]
    assert users == [1, 2, 1, 1, 2, 3]
    assert [prompt.count("{image}") for prompt in prompts] == [1, 1, 0, 0, 0, 0]
    assert "Bebrief." in prompts[3]
    assert "Fo\nur" in prompts[4]
    assert "Six" not in "".join(prompts)
    assert "/image PATH" in err
    for says in (
        "no command /nonsense",
        "nowhere.png",
        "/image needs a path",
        "not an image",
        "no such image",
    ):
        assert says in err
    assert len(out.splitlines()) >= 5


def test_images_as_arguments(run, small):
    _, out, _ = run("chat", "a.png", *MODELS, *GREEDY, stdin="What?\n")
    assert out == answer(small, ("What?", ["a.png"]))[0] + "\n"
    assert run("chat", "nowhere.png", *MODELS, stdin="x")[0] == 2


def test_a_path_that_looks_like_a_command(run, small, prompts, monkeypatch):
    status, _, err = run("chat", *MODELS, *GREEDY, stdin=f"{small}/a.png What?\n")
    assert (status, err) == (0, "")
    assert "{image}" in prompts[0]


def test_without_a_model_the_embedded_one_answers(run, small, monkeypatch):
    def demo(**options):
        return Llava(small / "text.gguf", small / "mmproj.gguf", **options)

    monkeypatch.setattr(Llava, "demo", staticmethod(demo))
    for arguments in (
        ("chat",), ("run", "demo", "x"), ("run",), ("describe", "a.png"),
    ):  # fmt: skip
        status, out, err = run(*arguments, "-t", "1", "-n", "4", stdin="x\n")
        assert status == 0, err
        assert len(out) > 1
        assert err.startswith("llava-native: the embedded demo model answers")


@pytest.mark.parametrize(
    "arguments",
    [("chat", "--mmproj", "x"), ("describe", "-m", "x", "a.png"), ("describe", "--mmproj", "x", "a.png")],
)
def test_half_a_pair_is_wrong_usage(run, arguments):
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    assert "Usage" in err


# -- somebody at a terminal


@pytest.mark.skipif(os.name != "posix", reason="terminals")
def test_at_a_terminal(pair, small, tmp_path):
    """Ctrl-C stops an answer, not the program; the next one comes, and Ctrl-D leaves."""
    import pty

    primary, secondary = pty.openpty()
    environment = {**os.environ, "LLAVA_NATIVE_HOME": str(tmp_path / "home"), "TERM": "dumb"}
    # a vocabulary of 32,064 tokens: the model's own end does not come before Ctrl-C does
    models = ("-m", pair.text.path, "--mmproj", pair.mmproj.path)
    command = [*COMMAND, "chat", *models, "-c", "4096", "-n", "4000", "--temp", "2", "-t", "1", "--timings"]
    with subprocess.Popen(
        command, cwd=small, stdin=secondary, stdout=secondary, stderr=subprocess.PIPE, env=environment,
        start_new_session=True, preexec_fn=_take_terminal(secondary),
    ) as child:  # fmt: skip
        os.close(secondary)
        assert child.stderr is not None
        try:
            screen = _Screen(primary)
            screen.wait_for(b">>> ")
            os.write(primary, b"hello\n")
            screen.wait_for(b"hello\r\n")
            screen.wait_for_more(20)
            os.write(primary, b"\x03")
            screen.wait_for(b">>> ")
            os.write(primary, b"/clear\n")
            screen.wait_for(b">>> ")
            os.write(primary, b"\x04")
            status = child.wait(60)
        finally:
            child.kill()
            os.close(primary)
        errors = child.stderr.read().decode()
    assert status == 0, errors
    assert "(stopped)" in errors
    assert "ended by cancelled" in errors
    assert "Traceback" not in errors
    assert (tmp_path / "home" / "history").read_text().startswith("hello\n/clear")


def _take_terminal(descriptor):
    import fcntl
    import termios

    return lambda: fcntl.ioctl(descriptor, termios.TIOCSCTTY, 0)


class _Screen:
    """What a program wrote to its terminal."""

    def __init__(self, descriptor):
        self._descriptor = descriptor
        self._data = b""

    def wait_for(self, text):
        end = time.monotonic() + 60
        while text not in self._data:
            assert time.monotonic() < end, self._data
            self._data += os.read(self._descriptor, 4096)
        self._data = self._data.partition(text)[2]

    def wait_for_more(self, size):
        while len(self._data) < size:
            self._data += os.read(self._descriptor, 4096)


def test_the_modelfiles_of_the_seeds_are_the_cards(seeds):
    assert (seeds["llava-phi-3-mini"] / "OLLAMA_MODELFILE_F16").read_text() == modelfile(
        "llava-phi-3-mini", "f16"
    )
