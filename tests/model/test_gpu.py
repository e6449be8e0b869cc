"""A GPU answers as the CPU does, and gives its memory back. Needs a build with a GPU backend, and a GPU."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from support.child import outcome

from llava_native import ImageEncoder, Llava, devices
from llava_native.demo import demo_files
from llava_native.machine import gpus

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
PICTURES = [EXAMPLES / name for name in ("shapes.png", "sign.webp", "turned.jpg", "large.jpg")]

pytestmark = pytest.mark.skipif(
    not gpus(devices()),
    reason="this build or this machine has no GPU (pip install . -C cmake.define.GGML_CUDA=ON)",
)


def free_memory() -> int:
    return gpus(devices())[0]["memory_free"]


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


def test_an_abort_tells_what_the_driver_said():
    code = """
        import resource
        from llava_native import Llava, devices
        devices()
        resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))  # less than is reserved
        Llava.demo(memory_limit=1 << 40).describe(%r)
    """
    status, _, said = outcome(code % str(PICTURES[0]))
    assert status != 0
    assert "out of memory" in said or "MemoryError" in said or "cannot allocate" in said.lower(), said


def test_a_forked_child_is_refused():
    code = """
        import os
        from llava_native import Model, devices
        from llava_native.demo import demo_files
        from llava_native.errors import ForkError
        devices()
        pid = os.fork()
        if not pid:
            for call in (devices, lambda: Model(demo_files()[0])):
                try:
                    call()
                except ForkError as exc:
                    print(exc, flush=True)
            os._exit(7)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    """
    status, out, err = outcome(code, strict=False)
    assert (status, err) == (0, "")
    *said, ended = out.splitlines()
    assert len(said) == 2
    assert all("spawn" in line for line in said)
    assert ended == "7"


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
