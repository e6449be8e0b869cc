"""llava-cli: the cards' lines as they stand there, and what the classic program did with its flags."""

from __future__ import annotations

import base64
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support import damage
from support.seeds import write_seed
from support.tiny_models import write_mmproj, write_pair

from llava_native import Context, ImageEncoder, Llava, Model
from llava_native.cli import main_llava_cli
from llava_native.cli.llava_cli import VICUNA, _unescape

LLAMA_3_PROMPT = (
    r"<|start_header_id|>user<|end_header_id|>\n\n<image>\nDescribe this image<|eot_id|>"
    r"<|start_header_id|>assistant<|end_header_id|>\n\n"
)
# verbatim from ../shared/seeds: the model cards of the two repositories
CARDS = {
    "llava-phi-3-mini": [
        "./llava-cli -m ./llava-phi-3-mini-f16.gguf --mmproj ./llava-phi-3-mini-mmproj-f16.gguf "
        "--image YOUR_IMAGE.jpg -c 4096",
        "./llava-cli -m ./llava-phi-3-mini-int4.gguf --mmproj ./llava-phi-3-mini-mmproj-f16.gguf "
        "--image YOUR_IMAGE.jpg -c 4096",
    ],
    "llava-llama-3-8b-v1_1": [
        "./llava-cli -m ./llava-llama-3-8b-v1_1-f16.gguf --mmproj ./llava-llama-3-8b-v1_1-mmproj-f16.gguf "
        f'--image YOUR_IMAGE.jpg -c 4096 -e -p "{LLAMA_3_PROMPT}"',
        "./llava-cli -m ./llava-llama-3-8b-v1_1-int4.gguf --mmproj ./llava-llama-3-8b-v1_1-mmproj-f16.gguf "
        f'--image YOUR_IMAGE.jpg -c 4096 -e -p "{LLAMA_3_PROMPT}"',
    ],
}  # fmt: skip
LINES = [(seed, line) for seed, lines in CARDS.items() for line in lines]
GREEDY = ("--temp", "0", "-n", "8", "-t", "1")


@pytest.fixture(scope="module")
def seeds(tmp_path_factory, picture):
    """A folder a seed, with what its card downloads, YOUR_IMAGE.jpg, and ./llava-cli."""
    folders = {}
    for seed in CARDS:
        folder = folders[seed] = tmp_path_factory.mktemp(seed)
        write_seed(folder, seed)
        picture.save(folder / "YOUR_IMAGE.jpg")
        script = "import sys; from llava_native.cli import main_llava_cli; sys.exit(main_llava_cli())"
        (folder / "llava-cli").write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "{script}" "$@"\n')
        (folder / "llava-cli").chmod(0o755)
    return folders


@pytest.fixture(scope="module")
def small(tmp_path_factory, picture):
    """A pair that loads in a moment; its vocabulary has no special tokens and no template."""
    folder = tmp_path_factory.mktemp("small")
    damage.good_text(folder / "text.gguf", **{"llama.context_length": 4096})
    damage.good_mmproj(folder / "mmproj.gguf")
    picture.save(folder / "a.png")
    picture.point(lambda value: 255 - value).save(folder / "b.png")
    (folder / "text.png").write_text("This is no picture.")
    return folder


@pytest.fixture
def run(small, monkeypatch, capsys):
    """Run llava-cli in this process on the small pair; returns (status, stdout, stderr)."""
    monkeypatch.chdir(small)

    def start(*arguments, models=("-m", "text.gguf", "--mmproj", "mmproj.gguf")):
        capsys.readouterr()
        status = main_llava_cli([*models, *map(str, arguments)])
        return status, *capsys.readouterr()

    return start


def greedy(model, mmproj, image, before, after, n=8):
    """Return the text after a prompt, from the parts below Llava: nothing of it is in this test's way."""
    with Model(model) as text, ImageEncoder(mmproj, n_threads=1) as encoder:
        special = {"add_special": False, "parse_special": True}
        ids = [text.bos, *text.tokenize(before, **special)]
        with Context(text, n_ctx=2048, n_threads=1) as ctx:
            ctx.eval(ids)
            ctx.eval(encoder.encode(image))
            ctx.eval(text.tokenize(after, **special))
            out = []
            for _ in range(n):
                token = int(np.argmax(ctx.logits))
                if text.is_eog(token):
                    break
                out.append(token)
                ctx.eval([token])
        return b"".join(map(text.token_bytes, out)).decode("utf-8", "replace")


# -- the cards


def _one_core():
    """Keep a child from more threads than graphs this small have work for; its line has no -t."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


@pytest.mark.skipif(os.name != "posix", reason="a shell's line")
@pytest.mark.parametrize(("seed", "line"), LINES, ids=[line.split()[2] for _, line in LINES])
def test_the_cards_lines_run_as_they_are(seeds, seed, line):
    done = subprocess.run(
        ["/bin/sh", "-c", line], cwd=seeds[seed], capture_output=True, text=True, timeout=120, check=False,
        preexec_fn=_one_core,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("\n")
    assert len(done.stdout) > 1
    assert "image embedding created: 4 tokens" in done.stderr
    assert "Traceback" not in done.stderr
    for special in ("<|eot_id|>", "<|end|>", "USER:"):
        assert special not in done.stdout


def test_the_documentation_has_the_cards_lines():
    text = (Path(__file__).parents[2] / "docs" / "seeds.md").read_text()
    for _, line in LINES:
        assert f"\n{line}\n" in text


def test_the_phi_3_line_asks_in_the_models_own_template(seeds, monkeypatch, capsys):
    monkeypatch.chdir(seeds["llava-phi-3-mini"])
    assert main_llava_cli([*shlex.split(CARDS["llava-phi-3-mini"][1])[1:], *GREEDY]) == 0
    after = "\ndescribe the image in detail.<|end|>\n<|assistant|>\n"
    files = "llava-phi-3-mini-int4.gguf", "llava-phi-3-mini-mmproj-f16.gguf"
    expected = greedy(*files, "YOUR_IMAGE.jpg", "<|user|>\n", after)
    assert capsys.readouterr().out == expected + "\n"


def test_the_llama_3_line_is_taken_as_it_is(seeds, monkeypatch, capsys):
    monkeypatch.chdir(seeds["llava-llama-3-8b-v1_1"])
    line = shlex.split(CARDS["llava-llama-3-8b-v1_1"][1])
    assert main_llava_cli([*line[1:], *GREEDY]) == 0
    before, after = _unescape(LLAMA_3_PROMPT).split("<image>")
    assert after.startswith("\nDescribe this image<|eot_id|>")
    files = "llava-llama-3-8b-v1_1-int4.gguf", "llava-llama-3-8b-v1_1-mmproj-f16.gguf"
    expected = greedy(*files, "YOUR_IMAGE.jpg", before, after)
    assert capsys.readouterr().out == expected + "\n"


def test_the_pair_of_one_seed_with_the_encoder_of_another_is_refused(seeds, tmp_path, capsys):
    write_mmproj(tmp_path / "other.gguf", n_embd_text=96)
    folder = seeds["llava-phi-3-mini"]
    text, image = folder / "llava-phi-3-mini-int4.gguf", folder / "YOUR_IMAGE.jpg"
    status = main_llava_cli(
        ["-m", str(text), "--mmproj", str(tmp_path / "other.gguf"), "--image", str(image)]
    )
    assert status == 1
    assert "belongs to another model" in capsys.readouterr().err


# -- prompts


def stream(small, *parts, **options):
    """Return the greedy answer to a raw prompt in which an image stands between two texts."""
    before, after = parts
    return greedy(small / "text.gguf", small / "mmproj.gguf", small / "a.png", before, after, **options)


def test_a_file_without_a_template_gets_vicunas(run, small):
    status, out, err = run("--image", "a.png", "-p", "What is this?", *GREEDY)
    assert (status, out) == (0, stream(small, VICUNA[0], "What is this?" + VICUNA[1]) + "\n"), err
    assert run("--image", "a.png", "-p", "What?", "--chat-template", "phi-3", *GREEDY)[1] != out


def test_without_a_question_there_is_one(run, small):
    expected = stream(small, VICUNA[0], "describe the image in detail." + VICUNA[1]) + "\n"
    assert run("--image", "a.png", *GREEDY)[1] == expected
    assert run("--image", "a.png", "-p", "", *GREEDY)[1] == expected


def test_a_prompt_with_the_images_place(run, small):
    assert run("--image", "a.png", "-p", "A <image> B", *GREEDY)[1] == stream(small, "A ", " B") + "\n"
    # only the first counts
    assert (
        run("--image", "a.png", "-p", "<image> <image>", *GREEDY)[1] == stream(small, "", " <image>") + "\n"
    )


def test_bos_is_there_once(seeds, monkeypatch, capsys):
    monkeypatch.chdir(seeds["llava-phi-3-mini"])
    line = [*shlex.split(CARDS["llava-phi-3-mini"][1])[1:], *GREEDY, "--verbose-prompt"]
    shown = []
    for before in ("", "<s>"):
        assert main_llava_cli([*line, "-p", f"{before}<|user|>\n<image>x"]) == 0
        shown.append(re.findall(r"^ *(\d+) -> '(.*)'$", capsys.readouterr().err, re.MULTILINE))
    assert shown[0] == shown[1]
    assert [text for _, text in shown[0]].count("<s>") == 1
    assert shown[0][1] == ("32010", "<|user|>")  # special tokens are parsed in a prompt of the user's own


def test_a_questions_text_is_text(seeds, monkeypatch, capsys):
    monkeypatch.chdir(seeds["llava-phi-3-mini"])
    line = [*shlex.split(CARDS["llava-phi-3-mini"][1])[1:], *GREEDY, "--verbose-prompt"]
    assert main_llava_cli([*line, "-p", "What is <|end|>?"]) == 0
    assert capsys.readouterr().err.count(" -> '<|end|>'") == 1  # the template's


def test_escapes_only_where_they_are_asked_for(run, small):
    raw = r"E\n<image>\tH"  # of random weights: no two tokens are about equally likely
    assert run("--image", "a.png", "-p", raw, *GREEDY)[1] == stream(small, r"E\n", r"\tH") + "\n"
    assert run("--image", "a.png", "-e", "-p", raw, *GREEDY)[1] == stream(small, "E\n", "\tH") + "\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"\n\r\t\'\"\\", "\n\r\t'\"\\"), (r"\x41\x7a!", "Az!"), (r"\xc3\xa9", "é"), (r"\xff", "�"),
        (r"\q\x\xg", r"\q\x\xg"), ("\\", "\\"), (r"\\n", r"\n"), (r"\x4", "\x04"), ("é\\n", "é\n"),
    ],
)  # fmt: skip
def test_escapes(text, expected):
    assert _unescape(text) == expected


def test_a_prompt_from_a_file(run, small, tmp_path):
    (tmp_path / "p").write_text("A <image> B\n")
    assert run("--image", "a.png", "-f", tmp_path / "p", *GREEDY)[1] == stream(small, "A ", " B") + "\n"


def test_an_image_in_the_prompt(run, small):
    packed = base64.b64encode((small / "a.png").read_bytes()).decode()
    tag = f'<img src="data:image/png;base64,{packed}">'
    expected = stream(small, VICUNA[0], " What?" + VICUNA[1]) + "\n"
    assert run("-p", f"{tag} What?", *GREEDY)[1] == expected
    assert run("--image", "nowhere.png", "-p", f"{tag} What?", *GREEDY)[1] == expected  # it wins
    assert run("-p", f"A {tag}<image> B", *GREEDY)[1] == stream(small, "A ", " B") + "\n"
    for broken in ("!!!!", "aGVsbG8="):
        status, out, err = run("-p", f'<img src="data:image/png;base64,{broken}">What?', *GREEDY)
        assert (status, out) == (1, "")
        assert "base64" in err


def test_several_images_are_several_runs(run, small):
    line = ("-p", "<image>What?", *GREEDY)
    one, two = (run("--image", name, *line)[1] for name in ("a.png", "b.png"))
    assert one != two
    status, out, err = run("--image", "a.png", "--image", "b.png", *line)
    assert (status, out) == (0, one + two)
    assert err.count("image embedding created") == 2


# -- flags


def test_nothing_but_the_reply_is_on_stdout(run):
    _, out, err = run("--image", "a.png", *GREEDY)
    assert "encode_image_with_clip: image embedding created: 4 tokens" in err
    assert re.search(r"image encoded in +[\d.]+ ms by CLIP \( +[\d.]+ ms per image patch\)", err)
    assert re.search(r"prompt eval time = +[\d.]+ ms / +\d+ tokens", err)
    quiet = run("--image", "a.png", *GREEDY, "--log-disable")
    assert quiet == (0, out, "")


def test_flags_reach_the_sampler(run, monkeypatch):
    seen = {}

    def stream_prompt(self, parts, **options):
        seen.update(options, n_ctx=self.context.n_ctx, n_batch=self.context.n_batch)
        return original(self, parts, **options)

    original = Llava.stream_prompt
    monkeypatch.setattr(Llava, "stream_prompt", stream_prompt)
    line = (
        "--image a.png -n 3 -c 2304 -b 256 -ub 128 -t 1 -ngl 0 --temp 0.5 --top-k 7 --top-p 0.7 --min-p 0.1 "
        "--repeat-penalty 1.1 --repeat_last_n 9 -s 42"
    )
    assert run(*line.split())[0] == 0
    wanted = {
        "max_tokens": 3, "n_ctx": 2304, "n_batch": 256, "temperature": 0.5, "top_k": 7, "top_p": 0.7,
        "min_p": 0.1, "repeat_penalty": 1.1, "repeat_last_n": 9, "seed": 42,
    }  # fmt: skip
    assert {key: seen[key] for key in wanted} == wanted
    assert run("--image", "a.png", "-c", "64", "-t", "1")[0] == 0
    wanted = {
        "max_tokens": 256, "n_ctx": 2048, "temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05,
        "repeat_penalty": 1.0, "seed": None,
    }  # fmt: skip
    assert {key: seen[key] for key in wanted} == wanted


def test_flags_without_an_effect_are_told(run):
    plain = run("--image", "a.png", *GREEDY, "--log-disable")
    told = run("--image", "a.png", *GREEDY, "--log-disable", "--no-mmap", "-tb", "3", "--mlock")
    assert told[:2] == plain[:2]
    assert [line.split()[1] for line in told[2].splitlines()] == ["--no-mmap", "--threads-batch", "--mlock"]
    assert run("--image", "a.png", *GREEDY, "-fa")[0] == 0


def test_a_seed_makes_it_repeatable(run):
    line = ("--image", "a.png", "-n", "12", "-t", "1", "--temp", "1.5", "-s")
    assert run(*line, 1)[1] == run(*line, 1)[1] != run(*line, 2)[1]


def test_a_stop_text_is_not_shown(run, monkeypatch):
    whole = run("--image", "a.png", "-n", "20", "--temp", "0", "-t", "1")[1]
    stop = whole[8:14]
    monkeypatch.setattr(sys.modules["llava_native.cli.llava_cli"], "STOPS", (stop,))
    stopped = run("--image", "a.png", "-n", "20", "--temp", "0", "-t", "1")[1]
    assert stopped == whole[: whole.index(stop)] + "\n"


# -- failures


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--image", "text.png"), "is text.png really an image file?"),
        (("--image", "nowhere.png"), "is nowhere.png really an image file?"),
        (("--image", "."), "is . really an image file?"),
        (("--image", "a.png", "-p", "x" * 3000), "n_ctx=2048"),
        (("--image", "a.png", "--chat-template", "nonsense"), "vicuna"),
        (("--image", "a.png", "-f", "nowhere.txt"), "nowhere.txt"),
        (("--image", "a.png", "-f", "a.png"), "a.png, the file of -f, is no text in UTF-8"),
        (("--image", "a.png", "-p", "\udcff"), "no text in UTF-8"),
    ],
)
def test_failures_are_status_1(run, arguments, says):
    status, out, err = run(*arguments, "-t", "1")
    assert (status, out) == (1, "")
    assert says in err
    assert err.startswith("llava-cli: ")


@pytest.mark.parametrize(
    ("models", "says"),
    [
        (("-m", "nowhere.gguf", "--mmproj", "mmproj.gguf"), "nowhere.gguf"),
        (("-m", "mmproj.gguf", "--mmproj", "text.gguf"), "mmproj"),
        (("-m", "text.gguf", "--mmproj", "text.gguf"), "text"),
        (("-m", "a.png", "--mmproj", "mmproj.gguf"), "not a GGUF file"),
    ],
)
def test_wrong_files_are_status_1(run, models, says):
    status, out, err = run("--image", "a.png", models=models)
    assert (status, out) == (1, "")
    assert says in err


@pytest.mark.parametrize(
    ("arguments", "models"),
    [
        ((), ("-m", "text.gguf", "--mmproj", "mmproj.gguf")), (("--image", "a.png"), ("-m", "text.gguf")),
        (("--image", "a.png"), ("--mmproj", "mmproj.gguf")), (("--image", "a.png", "--bogus"), ("-m", "x")),
        (("--image", "a.png", "-n", "many"), ("-m", "text.gguf", "--mmproj", "mmproj.gguf")),
        (("--image", "a.png", "-n", "0"), ()), (("--image", "a.png", "--temp", "-1"), ()),
        (("--image", "a.png", "--top_k", "-1"), ()), (("--image", "a.png", "-ngl", "99999999999"), ()),
    ],
)  # fmt: skip
def test_wrong_usage_is_status_2(run, arguments, models):
    status, out, err = run(*arguments, models=models)
    assert (status, out) == (2, "")
    assert "Usage: llava-cli" in err


def test_a_second_bad_image_keeps_the_first_answer(run):
    one = run("--image", "a.png", "-p", "What?", *GREEDY)[1]
    status, out, err = run("--image", "a.png", "--image", "text.png", "-p", "What?", *GREEDY)
    assert (status, out) == (1, one)
    assert "is text.png really an image file?" in err


def test_help(run):
    status, out, _ = run("--help", models=())
    assert status == 0
    assert "--mmproj" in out


def test_the_installed_command():
    script = Path(sys.executable).with_name("llava-cli")
    if not script.exists():
        pytest.skip("not installed with its scripts")
    done = subprocess.run([script, "--version"], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.startswith("llava-cli, version")


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_ctrl_c_is_status_130(pair, small):
    code = "import sys; from llava_native.cli import main_llava_cli; sys.exit(main_llava_cli())"
    models = ("-m", pair.text.path, "--mmproj", pair.mmproj.path)
    line = (*models, "--image", "a.png", "-n", "4000", "-c", "4096", "--temp", "2", "-t", "1")
    with subprocess.Popen(
        [sys.executable, "-c", code, *line], cwd=small, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        assert child.stdout.read(1)
        child.send_signal(signal.SIGINT)
        child.stdout.read()
        errors = child.stderr.read().decode()
        status = child.wait(60)
    assert status == 130, errors
    assert "llava-cli: interrupted" in errors
    assert "Traceback" not in errors


def test_pairs_of_other_vocabularies(tmp_path, picture, capsys):
    """LLaVA-1.5: a SentencePiece vocabulary without chat tokens."""
    pair = write_pair(tmp_path, vocab="llama-spm")
    picture.save(tmp_path / "a.png")
    files = pair.text.path, pair.mmproj.path
    line = ["-m", str(files[0]), "--mmproj", str(files[1]), "--image", str(tmp_path / "a.png"), "-p", "Why?"]
    assert main_llava_cli([*line, *GREEDY]) == 0
    expected = greedy(*files, tmp_path / "a.png", VICUNA[0], "Why?" + VICUNA[1])
    assert capsys.readouterr().out == expected + "\n"


def test_an_image_that_is_not_there_is_known_before_anything_is_loaded(run):
    done = run("--image", "a.png", "--image", "typo.png", models=("-m", "no.gguf", "--mmproj", "no.gguf"))
    assert done[:2] == (1, "")
    assert "is typo.png really an image file?" in done[2]
