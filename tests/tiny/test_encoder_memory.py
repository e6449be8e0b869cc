"""An encoder works alone, its weights lie in memory once, converted or not, and its threads end."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support.child import outcome
from support.threads import until
from support.tiny_models import write_mmproj

from llava_native import ImageEncoder

LOAD = """
    import sys
    from pathlib import Path

    import llava_native
    from llava_native import _native

    def rss():
        fields = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
        return int(fields["VmRSS"].split()[0]) * 1024, int(fields["VmHWM"].split()[0]) * 1024

    llava_native.ImageEncoder
    _native.devices()
    before, _ = rss()
    with llava_native.ImageEncoder(sys.argv[1], dtype=sys.argv[2], use_gpu=False) as encoder:
        loaded, peak = rss()
        assert _native.live_counts()["model"] == 0
        print(encoder.dtype, loaded - before, peak - before)
"""


@pytest.fixture(scope="module")
def mmproj(tmp_path_factory):
    """Return an encoder of about 50 MB, large beside what a process needs anyway."""
    path = tmp_path_factory.mktemp("memory") / "mmproj.gguf"
    write_mmproj(path, dtype="f16", n_embd=512, n_ff=2048, n_layer=9, n_head=8)
    return path


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_weights_lie_in_memory_once(mmproj, dtype):
    status, out, err = outcome(LOAD, mmproj, dtype)
    assert status == 0, err
    kept_as, loaded, peak = out.split()
    size = mmproj.stat().st_size
    assert size > 40e6
    assert kept_as == dtype
    assert size * 0.9 < int(loaded) < size * 1.15 + 4e6
    assert int(peak) < size * 1.3 + 8e6  # one tensor at a time is converted


@pytest.mark.skipif(sys.platform != "linux", reason="counts the threads in /proc")
def test_an_encode_leaves_no_threads_behind(pair, picture):
    """Threads of OpenMP that wait for another image slow every barrier of a context down."""

    def n_threads() -> int:
        return len(list(Path("/proc/self/task").iterdir()))

    def work() -> None:
        before = n_threads()
        with ImageEncoder(pair.mmproj.path, n_threads=2) as encoder:
            encoder.encode(picture)
            until(lambda: n_threads() <= before)

    with ThreadPoolExecutor(1) as fresh:  # a thread that computed nothing before
        fresh.submit(work).result()
