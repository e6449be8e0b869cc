"""What is estimated, against what the libraries say that they allocate; and what is refused."""

from __future__ import annotations

import logging
import re
import resource
from pathlib import Path

import numpy as np
import pytest
from support.gguf_parts import Parts
from support.tiny_models import write_mmproj, write_text_model

from llava_native import Context, ImageEncoder, Llava, Model, devices
from llava_native.errors import InvalidInputError, LlavaError, NotEnoughMemoryError
from llava_native.gguf import read_header
from llava_native.machine import Room, gpus
from llava_native.memory import MemoryEstimate, check_fits, estimate_pair
from llava_native.repack import should_repack

MiB = 2**20
ON_GPU = bool(gpus(devices()))


def allocated(caplog, what: str) -> float:
    """Return the MiB of all buffers of a kind that the log names."""
    found = re.findall(what + r" buffer size\s*=\s*([\d.]+) MiB", caplog.text)
    return sum(map(float, found))


def test_text_model_against_the_log(tmp_path, caplog):
    """A model large enough for numbers in MiB: 6 layers of 512, of which the keys have half the width."""
    path = write_text_model(
        tmp_path / "text.gguf", n_embd=512, n_head=8, n_head_kv=4, n_ff=1024, n_layer=6, dtype="f16"
    ).path
    for options in ({}, {"flash_attn": True}, {"n_ctx": 1000, "n_ubatch": 512}, {"type_k": "q8_0"}):
        caplog.clear()
        estimate = estimate_pair(path, None, n_outputs=1, devices=devices(), on_gpu=ON_GPU, **options)
        with caplog.at_level(logging.DEBUG, "llava_native"), Model(path) as model, Context(model, **options):
            pass
        weights = allocated(caplog, "model")
        assert estimate.weights + estimate.repacked == pytest.approx(weights * MiB, rel=0.01, abs=0.2 * MiB)
        kv = allocated(caplog, "KV")
        assert estimate.kv == pytest.approx(kv * MiB, rel=0.01, abs=0.2 * MiB)
        compute = (allocated(caplog, "compute") + allocated(caplog, "output")) * MiB
        assert 0.98 * compute <= estimate.compute <= 1.6 * compute + MiB, options


@pytest.mark.skipif(ON_GPU, reason="on a GPU keys and values are not in this process's memory")
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc/self/statm")
def test_a_context_takes_memory_as_it_is_filled(tmp_path):
    def resident():
        return int(Path("/proc/self/statm").read_text("utf-8").split()[1]) * resource.getpagesize()

    path = write_text_model(tmp_path / "text.gguf", n_embd=512, n_head=8, n_ff=512, n_layer=4).path
    n_ctx = 16384
    kv = n_ctx * 4 * 2 * 512 * 2  # layers, keys and values, width, bytes
    with Model(path) as model:
        before = resident()
        with Context(model, n_ctx=n_ctx, n_ubatch=32, flash_attn=True, n_threads=1) as context:
            assert resident() - before < kv / 4
            context.eval([1, 2, 3])
            first = np.array(context.logits)
            context.eval(range(3, 1000))
            assert kv / 32 < resident() - before < kv / 2
            context.clear()
            context.eval([1, 2, 3])
            np.testing.assert_array_equal(np.array(context.logits), first)


@pytest.mark.parametrize("dtype", ["f32", "f16"])
def test_encoder_against_the_log(tmp_path, caplog, dtype):
    path = write_mmproj(
        tmp_path / "m.gguf", layout="full", dtype=dtype, image_size=224, n_layer=4, n_embd=256, n_head=8
    ).path
    estimate = estimate_pair(None, path)
    with caplog.at_level(logging.DEBUG, "llava_native"), ImageEncoder(path):
        pass
    weights = float(re.search(r"model size:\s*([\d.]+) MiB", caplog.text)[1])
    needed = (weights + allocated(caplog, "compute")) * MiB
    # heads as narrow as these have no flash attention on a GPU
    assert (0.5 if ON_GPU else 0.95) * needed <= estimate.encoder <= 1.4 * needed + MiB


@pytest.mark.cpu("with a GPU nothing is repacked")
@pytest.mark.skipif("REPACK" not in devices()[-1]["features"], reason="a build that repacks nothing")
@pytest.mark.parametrize("kind", ["Q4_0", "Q4_K"])
@pytest.mark.parametrize("repack", [None, False, True])
def test_repacked_weights_against_the_log(tmp_path, caplog, kind, repack):
    shape = {"n_embd": 256, "n_head": 8, "n_ff": 512, "n_layer": 4}
    parts = Parts.read(write_text_model(tmp_path / "f16.gguf", **shape).path)
    for name, tensor in list(parts.tensors.items()):
        if name.startswith("blk.") and len(tensor.shape) == 2:
            parts.reshape(name, tensor.shape, {"Q4_0": 2, "Q4_K": 12}[kind])
    path = tmp_path / "text.gguf"
    path.write_bytes(parts.to_bytes())
    estimate = estimate_pair(path, None, devices=devices(), repack=repack)
    with caplog.at_level(logging.DEBUG, "llava_native"), Model(path, repack=repack):
        pass
    copied = allocated(caplog, "(?:CPU_REPACK|AMX) model")
    assert estimate.repacked == pytest.approx(copied * MiB, rel=0.01)
    wanted = should_repack(read_header(path).tensors.values(), devices()) if repack is None else repack
    assert (copied > 0) == wanted


def test_refused_with_the_numbers():
    estimate = MemoryEstimate(2**30, 0, 2**31, 2**28, 0)
    roomy = Room(2**34, 2**33, "this machine")
    check_fits(estimate, None, roomy)
    with pytest.raises(NotEnoughMemoryError, match=r"3.25 GiB.*its control group has 1.00 GiB in all"):
        check_fits(estimate, None, Room(2**30, 2**30, "its control group"))
    with pytest.raises(NotEnoughMemoryError, match=r"2.25 GiB must be free.*1.00 GiB free"):
        check_fits(estimate, None, Room(2**34, 2**30, "this machine"))
    check_fits(estimate, None, Room(2**34, estimate.private, "this machine"))  # what is mapped may be dropped
    check_fits(estimate, estimate.total, Room(0, 0, "this machine"))  # who sets a limit knows better
    with pytest.raises(NotEnoughMemoryError, match=r"memory_limit is 3.00 GiB.*smaller n_ctx \(now 9\)"):
        check_fits(estimate, 3 * 2**30, n_ctx=9)


def test_llava_refuses_before_loading(pair):
    with pytest.raises(MemoryError, match=r"memory_limit is 1\.0 MiB") as caught:
        Llava(pair.text.path, pair.mmproj.path, memory_limit=MiB)
    assert isinstance(caught.value, LlavaError)
    with pytest.raises(NotEnoughMemoryError, match="n_ctx"):
        Llava(pair.text.path, n_ctx=2**30)
    with Llava(pair.text.path, pair.mmproj.path, n_ctx=256, memory_limit=2**30):
        pass


def test_a_group_with_too_little(pair, monkeypatch):
    monkeypatch.setattr("llava_native.loading.host_room", lambda: Room(2**20, 2**20, "its control group"))
    with pytest.raises(NotEnoughMemoryError, match=r"its control group has 1\.0 MiB in all"):
        Llava(pair.text.path, n_ctx=256, n_gpu_layers=0)


def test_show_tells(pair, capsys):
    import json

    from llava_native.cli import main

    assert main(["show", str(pair.text.path), "--json"]) == 0
    memory = json.loads(capsys.readouterr().out)["memory"]
    assert memory["n_ctx"] == 4096
    assert memory["total"] >= memory["weights"] + memory["kv"] + memory["compute"] > 0


def test_options_of_what_was_made_already_are_refused(pair):
    with Model(pair.text.path) as model, ImageEncoder(pair.mmproj.path) as encoder:
        for given in ({"repack": False}, {"kv_overrides": {"a": 1}}, {"dtype": "bf16"}, {"device": "CPU"}):
            with pytest.raises(InvalidInputError, match=f"{next(iter(given))} is an option of"):
                Llava(model, encoder, n_ctx=64, **given)
