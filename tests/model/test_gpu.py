"""A GPU answers as the CPU does, and gives its memory back. Needs a build with a GPU backend, and a GPU."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from llava_native import ImageEncoder, Llava, devices
from llava_native.demo import demo_files

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
PICTURES = [EXAMPLES / name for name in ("shapes.png", "sign.webp", "turned.jpg", "large.jpg")]

pytestmark = pytest.mark.skipif(
    not any(device["type"] == "gpu" for device in devices()),
    reason="this build or this machine has no GPU (pip install . -C cmake.define.GGML_CUDA=ON)",
)


def free_memory() -> int:
    return next(device["memory_free"] for device in devices() if device["type"] == "gpu")


def test_rows_are_those_of_the_cpu():
    _, mmproj = demo_files()
    with ImageEncoder(mmproj) as gpu, ImageEncoder(mmproj, use_gpu=False) as cpu:
        for picture in PICTURES:
            ours, theirs = np.asarray(gpu.encode(picture)), np.asarray(cpu.encode(picture))
            norms = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
            assert ((ours * theirs).sum(1) / norms).min() >= 0.999


@pytest.mark.parametrize("n_gpu_layers", [-1, 2])
@pytest.mark.parametrize("flash_attn", [None, True, False])
def test_greedy_answers_are_those_of_the_cpu(n_gpu_layers, flash_attn):
    with (
        Llava.demo(n_gpu_layers=n_gpu_layers, flash_attn=flash_attn) as gpu,
        Llava.demo(n_gpu_layers=0) as cpu,
    ):
        for picture in PICTURES:
            assert gpu.describe(picture) == cpu.describe(picture)


def test_many_callers_at_once():
    with Llava.demo(n_seq_max=8) as llava:
        alone = [llava.describe(picture) for picture in PICTURES]
        with ThreadPoolExecutor(8) as pool:
            together = list(pool.map(llava.describe, PICTURES * 8))
    assert together == alone * 8


def test_a_cancelled_stream_leaves_the_engine_usable():
    with Llava.demo() as llava:
        expected = llava.describe(PICTURES[0])
        stream = llava.stream("Describe this image.", image=PICTURES[1])
        next(stream)
        stream.cancel()
        assert llava.describe(PICTURES[0]) == expected


def test_a_saved_conversation_goes_on(tmp_path):
    with Llava.demo() as llava:
        chat = llava.chat()
        chat.send("Describe this image.", image=PICTURES[0], temperature=0).result()
        chat.save(tmp_path / "a.chat")
        expected = chat.send("How many circles are there?", temperature=0).result().text
    with Llava.demo() as llava:
        chat = llava.load_chat(tmp_path / "a.chat")
        result = chat.send("How many circles are there?", temperature=0).result()
    assert result.text == expected
    assert result.timings.cached_tokens > 100


def test_a_child_process_uses_the_gpu_too():
    with Llava.demo() as here, Llava.demo(isolate=True) as there:
        assert there.describe(PICTURES[0]) == here.describe(PICTURES[0])


def test_closing_gives_the_memory_back():
    def once() -> None:
        with Llava.demo() as llava:
            llava.describe(PICTURES[0])

    once()  # the backend keeps what it allocates once
    before = free_memory()
    for _ in range(5):
        once()
    assert free_memory() >= before - 32 * 2**20
