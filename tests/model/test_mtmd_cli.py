"""Greedy answers equal those of llama-mtmd-cli, built from the same patched tree.

LLAVA_NATIVE_MTMD_CLI names the program (``python benchmarks/peers.py`` builds it); LLAVA_NATIVE_BENCH_CACHE
the folder of the models of real shape (``python benchmarks/models.py`` writes them, 3 GB).
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from PIL import Image
from support.tiny_models import llama_cpp_dir

from llava_native import Llava
from llava_native.images import llava_pixels

CLI = os.environ.get("LLAVA_NATIVE_MTMD_CLI", "")
CACHE = Path(os.environ.get("LLAVA_NATIVE_BENCH_CACHE", "/nonexistent"))
REAL_TEXT = CACHE / "llava-phi-3-mini-int4.gguf"
REAL_MMPROJ = CACHE / "llava-phi-3-mini-mmproj-f16.gguf"
QUESTION = "Describe this image."

pytestmark = pytest.mark.skipif(
    not CLI, reason="LLAVA_NATIVE_MTMD_CLI does not name a llama-mtmd-cli of the patched tree"
)


def prepared_jpeg(tmp_path: Path, size: int) -> Path:
    """Return the pinned source's test JPEG at the encoder's exact size, which both sides pass through."""
    pixels = llava_pixels(llama_cpp_dir() / "tools/mtmd/test-1.jpeg", size)
    path = tmp_path / "prepared.png"
    Image.frombytes("RGB", (size, size), bytes(pixels.data)).save(path)
    return path


def cli_answer(text: Path, mmproj: Path, image: Path, n_predict: int) -> str:
    """Return what llama-mtmd-cli answers greedily, with the settings that `our_answer` has."""
    command = [CLI, "-m", text, "--mmproj", mmproj, "--image", image, "-p", f"<__media__>\n{QUESTION}"]
    command += ["--no-jinja", "--chat-template", "phi3", "--temp", "0", "-n", str(n_predict), "-c", "2048"]
    command += ["-fa", "on", "-t", "1", "-ub", "512", "--no-warmup"]  # -fa is the encoder's, too
    command += ["--no-repack"]  # copies may be multiplied by other kernels
    # it prints from a thread of its own, and at exit drops what that has not come to: leave it a core
    for _ in range(5):
        done = subprocess.run(list(map(str, command)), capture_output=True, timeout=1200, check=False)
        assert done.returncode == 0, done.stderr.decode("utf-8", "replace")[-2000:]
        if answer := done.stdout.decode("utf-8", "replace").strip():
            return answer
    pytest.fail("llama-mtmd-cli printed no answer in five runs")


def our_answer(text: Path, mmproj: Path, image: Path, n_predict: int) -> str:
    """Return our greedy answer as that program prints it: special tokens as their text."""
    options = {"n_ctx": 2048, "n_ubatch": 512, "n_threads": 1, "flash_attn": True, "dtype": "f16"}
    with Llava(text, mmproj, chat_template="phi-3", repack=False, **options) as llava:
        # text and image apart, as that program has them: the last bits of sums depend on what is beside them
        llava.engine._scheduler._can_mix = False
        with llava.stream(QUESTION, image=image, temperature=0, max_tokens=n_predict) as stream:
            raw = b"".join(llava.model.token_bytes(token.id, special=True) for token in stream)
    return raw.decode("utf-8", "replace").strip()


@pytest.mark.parametrize("layout", ["legacy", "full", "modern"])
def test_tiny_pair(tiny_pair, tmp_path, layout):
    pair = tiny_pair("phi-3", layout, "f16")
    image = prepared_jpeg(tmp_path, pair.mmproj.params.image_size)
    ours = our_answer(pair.text.path, pair.mmproj.path, image, 24)
    assert len(ours) > 20
    assert ours == cli_answer(pair.text.path, pair.mmproj.path, image, 24)


@pytest.mark.skipif(not REAL_TEXT.exists(), reason="LLAVA_NATIVE_BENCH_CACHE has no models of real shape")
def test_pair_of_real_shape(tmp_path):
    image = prepared_jpeg(tmp_path, 336)
    ours = our_answer(REAL_TEXT, REAL_MMPROJ, image, 24)
    assert len(ours) > 20
    assert ours == cli_answer(REAL_TEXT, REAL_MMPROJ, image, 24)


def test_without_the_image_the_answer_differs(tiny_pair, tmp_path):
    """The comparison would notice another image: the answer depends on the rows."""
    pair = tiny_pair("phi-3", "legacy", "f16")
    size = pair.mmproj.params.image_size
    image = prepared_jpeg(tmp_path, size)
    black = tmp_path / "black.png"
    Image.new("RGB", (size, size)).save(black)
    answers = {our_answer(pair.text.path, pair.mmproj.path, path, 24) for path in (image, black)}
    assert len(answers) == 2
