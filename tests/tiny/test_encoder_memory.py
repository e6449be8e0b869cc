"""An encoder works alone, and its weights lie in memory once, converted or not."""

from __future__ import annotations

import pytest
from support.child import outcome
from support.tiny_models import write_mmproj

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
    with llava_native.ImageEncoder(sys.argv[1], dtype=sys.argv[2]) as encoder:
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
