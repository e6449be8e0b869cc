"""Both sides of each comparison: llama.cpp's own programs, and llava_native in a fresh process."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import harness

WORKER = Path(__file__).with_name("worker.py")
ENCODED = re.compile(r"(?:mtmd batch encoding done|slice encoded) in (\d+) ms")
QUESTION = "What is this?"


@dataclasses.dataclass
class Setup:
    """Where everything is and how it is run."""

    tools: dict[str, Path]
    files: dict[str, Path]
    picture: Path  # 336x336 and lossless, so that neither side's preprocessing changes it
    threads: int
    depth: int = 600
    n_gen: int = 32
    n_answer: int = 16
    tries: int = 3
    repeat: int = 3
    n_ctx: int = 4096
    ubatch: int = 672  # ours by default; an image's 576 rows and its prompt in one pass


@dataclasses.dataclass
class Sample:
    """What one process measured."""

    values: list[float]  # milliseconds, tokens/s or MiB, as the metric says
    foreign: float | None
    note: dict[str, Any] = dataclasses.field(default_factory=dict)


def _peer(setup: Setup, tool: str, *arguments: object) -> harness.Run:
    return harness.run_quiet([str(setup.tools[tool]), *map(str, arguments)], tries=setup.tries)


def _ours(setup: Setup, job: str, *arguments: object) -> tuple[dict[str, Any], harness.Run]:
    command = [sys.executable, str(WORKER), job, "--threads", setup.threads]
    done = harness.run_quiet([str(part) for part in (*command, *arguments)], tries=setup.tries)
    return json.loads(done.stdout), done


def peer_encode(setup: Setup, flash: str = "auto") -> Sample:
    """Take llama-mtmd-cli's own report of its encode times, each image anew."""
    images: list[object] = []
    for _ in range(setup.repeat):
        images += ["--image", setup.picture]
    done = _peer(
        setup, "llama-mtmd-cli", "-m", setup.files["stub"], "--mmproj", setup.files["mmproj"], *images,
        "-p", "x", "-n", 1, "--temp", 0, "-t", setup.threads, "-c", setup.n_ctx, "-fa", flash,
    )  # fmt: skip
    found = [float(ms) for ms in ENCODED.findall(done.stderr + done.stdout)]
    if not found:
        raise harness.BenchError("llama-mtmd-cli reported no encode time")
    return Sample(found, done.foreign)


def ours_encode(setup: Setup, dtype: str) -> Sample:
    """Time our encoder, alone in its process, on the same picture."""
    answer, done = _ours(
        setup, "encode", "--mmproj", setup.files["mmproj"], "--image", setup.picture,
        "--dtype", dtype, "--repeat", setup.repeat,
    )  # fmt: skip
    return Sample(answer["ms"], done.foreign, {"dtype": answer["dtype"]})


def peer_bench(setup: Setup, flash: str, ubatch: int, repack: bool, *test: object) -> Sample:
    """Run llama-bench with one setting; its values are tokens per second."""
    done = _peer(
        setup, "llama-bench", "-m", setup.files["text"], "-t", setup.threads, "-fa", flash,
        "-ub", ubatch, "--repack", int(repack), "-r", setup.repeat, "-o", "json", *test,
    )  # fmt: skip
    (result,) = json.loads(done.stdout)
    return Sample([float(v) for v in result["samples_ts"]], done.foreign)


def peer_prefill(setup: Setup, flash: str, ubatch: int, repack: bool) -> Sample:
    """Prefill as many tokens as the prompt and the image have together."""
    return peer_bench(setup, flash, ubatch, repack, "-p", setup.depth, "-n", 0)


def peer_decode(setup: Setup, flash: str, repack: bool, cache: str = "f16") -> Sample:
    """Generate after `depth` tokens, without sampling; `cache` is the type of the keys."""
    test = ("-p", 0, "-n", setup.n_gen, "-d", setup.depth, "-ctk", cache)
    return peer_bench(setup, flash, setup.ubatch, repack, *test)


def ours_prefill(setup: Setup, flash: str, rows: int) -> Sample:
    """Prefill the same number of tokens; `rows` of them are an image's (0: plain tokens)."""
    answer, done = _ours(
        setup, "prefill", "--model", setup.files["text"], "--flash-attn", flash, "--prompt", setup.depth,
        "--rows", rows, "--ubatch", setup.ubatch, "--repeat", setup.repeat,
    )  # fmt: skip
    return Sample([answer["tokens"] / ms * 1e3 for ms in answer["ms"]], done.foreign)


def ours_decode(setup: Setup, flash: str) -> Sample:
    """Generate after `depth` tokens, every token sampled greedily."""
    answer, done = _ours(
        setup, "decode", "--model", setup.files["text"], "--flash-attn", flash, "--depth", setup.depth,
        "--n", setup.n_gen, "--ubatch", setup.ubatch, "--repeat", setup.repeat,
    )  # fmt: skip
    return Sample([answer["tokens"] / ms * 1e3 for ms in answer["ms"]], done.foreign)


def peer_ask(setup: Setup) -> Sample:
    """Answer a question about the picture with llama-mtmd-cli; the value is peak RSS in MiB."""
    done = _peer(
        setup, "llama-mtmd-cli", "-m", setup.files["text"], "--mmproj", setup.files["mmproj"],
        "--image", setup.picture, "-p", QUESTION, "-n", setup.n_answer, "--temp", 0,
        "-t", setup.threads, "-c", setup.n_ctx, "-ub", setup.ubatch,
    )  # fmt: skip
    return Sample([done.peak_rss / 2**20], done.foreign, {"text": done.stdout.strip()})


def ours_ask(setup: Setup, dtype: str, flash: str, repack: bool = False) -> Sample:
    """Do the same in one Python process; with `repack` weights are copied, as llama-mtmd-cli does."""
    answer, done = _ours(
        setup, "ask", "--model", setup.files["text"], "--mmproj", setup.files["mmproj"], "--image",
        setup.picture, "--question", QUESTION, "--n", setup.n_answer, "--ctx", setup.n_ctx,
        "--ubatch", setup.ubatch, "--dtype", dtype, "--flash-attn", flash, *(["--repack"] if repack else []),
    )  # fmt: skip
    note = {"text": answer["text"].strip(), "seconds": answer["seconds"]}
    return Sample([done.peak_rss / 2**20], done.foreign, note)


def ours_import(setup: Setup, names: str = "") -> Sample:
    """Time ``import llava_native``, or ``from llava_native import NAMES``, in a fresh interpreter."""
    answer, done = _ours(setup, "imports", *(["--names", names] if names else []))
    return Sample(answer["ms"], done.foreign, {"loaded": answer["loaded"]})


def square_picture(source: Path, target: Path, size: int = 336) -> Path:
    """Prepare the test JPEG as our encoder would, and save it as PNG for both sides."""
    if not target.exists():
        from PIL import Image

        picture = Image.open(source).convert("RGB")
        side = max(picture.size)
        square = Image.new("RGB", (side, side), (122, 116, 104))
        square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
        square.resize((size, size), Image.Resampling.BICUBIC).save(target)
    return target


def texts(samples: Sequence[Sample]) -> set[str]:
    """Return the different answers among samples."""
    return {sample.note["text"] for sample in samples}
